"""`promptnet demo`: customise to one image of a held-out person, generate five prompts and score them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.commands._checks import check_seed
from promptnet.commands._loading import EMBEDDED, check_model, load_pipeline
from promptnet.commands._progress import sampling_bar, status, tuning_bar
from promptnet.io.atomic import make_folder, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from promptnet import PromptNetPipeline, Subject
    from promptnet.evaluation.harness.tasks import Person
    from promptnet.evaluation.subjects.score import Scorer
    from promptnet.metrics.scores import Record

NUM_PROMPTS = 5
SPLIT = "test"
SHOWN = ("identity", "attributes", "harmonic", "preservation")
JUDGE = "validation"
"""The test judge is for `promptnet evaluate` alone."""


def demo(
    out: Path = Path("outputs"),
    person: int = 0,
    steps: int | None = None,
    seed: int = 0,
    base: str = EMBEDDED,
    device: str = "auto",
) -> None:
    """Customise to a person no training ever saw, generate five prompts, and compare with the true answers.

    Args:
        out: a folder, made if it is missing, for demo.png, demo.json and the subject, demo.safetensors
        person: index of the test person, counted from 0 without end
        steps: denoising steps an image (null: the pipeline's default)
        seed: decides the people, the prompts and the noise
        base: base model, a folder in diffusers layout
        device: auto, cpu, cuda, ...
    """
    check_request(person, steps)
    check_seed(seed)
    found = check_model(base, device, subjects=True).name
    folder = make_folder(out)
    from promptnet.commands._demo_sheet import demo_sheet
    from promptnet.evaluation.harness.judges import judge_folder
    from promptnet.evaluation.harness.renderer import image_size
    from promptnet.evaluation.harness.tasks import make_person
    from promptnet.evaluation.subjects.score import make_scorer
    from promptnet.metrics.judge import load_judge

    who = make_person(SPLIT, person, NUM_PROMPTS, seed)
    seconds: dict[str, float] = {}
    with timed(seconds, "load"), status("loading the base model"):
        pipe = load_pipeline(base, device)
    size_px = image_size(found)
    reference = who.reference_image(size_px)
    with timed(seconds, "customise"):
        subject = tune(pipe, reference, who)
    with timed(seconds, "draw"):
        images = generate(pipe, subject, who, steps)
    with timed(seconds, "judge"):
        scorer = make_scorer([who], load_judge(judge_folder(found, JUDGE)), SPLIT, size_px)
        scores = score(scorer, who, images)
    result = {**scores, "seconds": {stage: round(took, 2) for stage, took in seconds.items()}}

    sheet = demo_sheet(reference, [eval_prompt.prompt for eval_prompt in who.eval_prompts], images, list(scorer.truths))
    subject.save(folder / "demo.safetensors")
    write_whole(folder / "demo.png", sheet.save, public=True)
    write_whole(folder / "demo.json", json.dumps(result, indent=2) + "\n", public=True)
    show(result, folder)


def check_request(person: int, steps: int | None) -> None:
    """Check the arguments before minutes of work.

    Raises:
        ValueError: a person below 0, or no denoising steps.
    """
    if person < 0:
        raise ValueError(f"person={person} must be 0 or more: test people are counted from 0")
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps} must be 1 or more")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Record how long a stage took."""
    start_s = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start_s


def tune(pipe: PromptNetPipeline, reference: Image, who: Person) -> Subject:
    """Run per-user tuning on the one image."""
    import torch

    from promptnet.evaluation.harness.tasks import CLASS_PHRASE

    generator = torch.Generator().manual_seed(who.seed)
    with tuning_bar("customising") as callback:
        return pipe.customize(
            reference, class_word=CLASS_PHRASE, generator=generator, progress_bar=False, callback=callback
        )


def generate(pipe: PromptNetPipeline, subject: Subject, who: Person, steps: int | None) -> list[Image]:
    """Generate all prompts in one batch, each with its own noise."""
    import torch

    with sampling_bar(pipe, f"generating {len(who.eval_prompts)} prompts") as callback:
        generated: Any = pipe(
            [eval_prompt.prompt for eval_prompt in who.eval_prompts],
            subject=subject,
            generator=[torch.Generator().manual_seed(eval_prompt.seed) for eval_prompt in who.eval_prompts],
            num_inference_steps=steps,
            callback_on_step_end=callback,
        )
    return generated.images


def score(scorer: Scorer, who: Person, images: list[Image]) -> dict[str, Any]:
    """Return the content of `demo.json`: this person's scores, as in the comparison, and the judge's predictions."""
    from promptnet.metrics.judge import read_images

    scores = scorer.score([images])
    read = read_images(scorer.judge, images).records
    return {
        "person": who.identity.record(),
        "reference": who.reference.record(),
        **{metric: round(float(values[0]), 4) for metric, values in scores.people.items()},
        "fields": {field: round(fraction, 4) for field, fraction in scores.fields.items()},
        "images": [
            {
                "prompt": eval_prompt.prompt,
                "identity_right": compare(record, who.identity.record()),
                "asked_right": compare(record, eval_prompt.asked()),
                "kept_right": compare(record, eval_prompt.kept()),
            }
            for eval_prompt, record in zip(who.eval_prompts, read, strict=True)
        ],
    }


def compare(read: Record, truth: Record) -> dict[str, bool]:
    """Return for each field whether the judge's prediction is true."""
    return {field: read[field] == value for field, value in truth.items()}


def show(result: dict[str, Any], folder: Path) -> None:
    """Print the table on the console."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the judge's prediction for each image", caption="fields predicted right of all fields")
    table.add_column("prompt")
    table.add_column("same person", justify="right")
    table.add_column("as prompted", justify="right")
    table.add_column("left as it was", justify="right")
    for image in result["images"]:
        counts = [image[name].values() for name in ("identity_right", "asked_right", "kept_right")]
        table.add_row(image["prompt"], *(f"{sum(right)} of {len(right)}" for right in counts))
    console = Console()
    console.print(table)
    console.print(", ".join(f"{name} {result[name]:.2f}" for name in SHOWN))
    console.print(", ".join(f"{stage} {took:.1f} s" for stage, took in result["seconds"].items()))
    console.print(f"look at {folder / 'demo.png'}; generate more with")
    again = f'promptnet generate --subject {folder / "demo.safetensors"} --prompt "a happy portrait of S*" --out me.png'
    console.print("  " + again, soft_wrap=True, highlight=False)
