"""Evaluations, time and judged quality of ways to draw with fewer evaluations, side by side.

    python benchmarks/evaluations.py [--people 3] [--prompts 3] [--tuned] [--out outputs/evaluations.json]

Validation people and the validation judge: identity is how much of a person the judge finds, asked how much of what
the prompts ask for. Time is the process's CPU time, which other work hardly changes, as a ratio to the first row of the
same run; evaluations are U-Net rows for each image. Few people tell large differences only: the interval of the paired
difference to the first row (bootstrap over people) is printed beside each.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch

from promptnet import PromptNetPipeline
from promptnet.commands._threads import choose_threads
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.tasks import make_people
from promptnet.evaluation.subjects.score import make_scorer
from promptnet.metrics.judge import load_judge

SPLIT = "validation"
DDIM, DPM, UNIPC = "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"


@dataclass(frozen=True)
class Way:
    """One way to draw.

    Args:
        name: in the table.
        scheduler: of diffusers.
        config: parameters of the call.
    """

    name: str
    scheduler: str
    config: dict[str, Any] = field(default_factory=dict)


def _fused(steps: int, end: float, **more: Any) -> dict[str, Any]:
    return {"num_inference_steps": steps, "fusion_steps": 1, "fusion_end": end, **more}


WAYS = (
    Way("DDIM, 50 steps, fused", DDIM, _fused(50, 1.0)),
    Way("DDIM, 20 steps, fused", DDIM, _fused(20, 1.0)),
    Way("DDIM, 20 steps, fused to 0.3", DDIM, _fused(20, 0.3)),
    Way("DPM-Solver++ 2M, 20 steps, fused to 0.3", DPM, _fused(20, 0.3)),
    Way("UniPC, 15 steps, fused to 0.3", UNIPC, _fused(15, 0.3)),
    Way(
        "the same, S* for 3 steps, guided to 0.7",
        UNIPC,
        _fused(15, 0.3, pseudo_word_every=3, guidance_interval=(0, 0.7)),
    ),
    Way("UniPC, 15 steps, not fused", UNIPC, {"num_inference_steps": 15, "fusion_steps": 0}),
)


@contextmanager
def counted_rows(unet: Any) -> Iterator[list[int]]:
    """Rows of the U-Net's calls."""
    rows: list[int] = []
    handle = unet.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    try:
        yield rows
    finally:
        handle.remove()


def drawn(pipe: Any, subjects: Sequence[Any], people: Sequence[Any], way: Way) -> tuple[list[Any], float, float]:
    """The images of each person, seconds, and evaluations for each image."""
    pipe.scheduler = getattr(diffusers, way.scheduler).from_config(pipe.scheduler.config)
    images, start_s = [], time.process_time()
    with counted_rows(pipe.unet) as rows:
        for who, subject in zip(people, subjects, strict=True):
            asked = who.eval_prompts
            generator = [torch.Generator().manual_seed(eval_prompt.seed) for eval_prompt in asked]
            prompts = [eval_prompt.prompt for eval_prompt in asked]
            images.append(pipe(prompts, subject=subject, generator=generator, **way.config).images)
    return images, time.process_time() - start_s, sum(rows) / sum(map(len, images))


def interval(differences: torch.Tensor, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of the mean over people, by bootstrap."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(differences), (draws, len(differences)), generator=generator)
    low, high = differences[picks].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=differences.dtype))
    return float(low), float(high)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="checkpoints/tiny")
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=3, help="of each person")
    parser.add_argument("--ways", type=int, nargs="+", help="places in the list, the first always; default all")
    parser.add_argument("--tuned", action="store_true", help="customise each person, in place of encoding")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    args = parser.parse_args(argv)
    print(f"{choose_threads()} threads, torch {torch.__version__}, {args.people} validation people")
    pipe: Any = PromptNetPipeline.from_pretrained(args.base)
    pipe.set_progress_bar_config(disable=True)
    people = make_people(SPLIT, args.people, args.prompts, 0)
    size_px = pipe.trained_size_px[0]
    scorer = make_scorer(people, load_judge(judge_folder(Path(args.base), "validation")), SPLIT, size_px)
    references = [who.reference_image(size_px) for who in people]
    subjects = [pipe.customize(image, progress_bar=False) if args.tuned else pipe.encode(image) for image in references]
    found: list[dict[str, Any]] = []
    first: dict[str, torch.Tensor] = {}
    print("| way | evaluations | time | " + " | ".join(("identity", "asked", "difference of their mean")) + " |")
    for place in [0, *(place for place in args.ways or range(len(WAYS)) if place)]:
        way = WAYS[place]
        images, seconds, evaluations = drawn(pipe, subjects, people, way)
        scores = {name: torch.as_tensor(values).double() for name, values in scorer.score(images).people.items()}
        first = first or {**scores, "seconds": torch.tensor(seconds)}
        found.append({"way": way.name, "evaluations": evaluations, "time": seconds / float(first["seconds"])})
        found[-1] |= {name: float(values.mean()) for name, values in scores.items()}
        print(row_of(found[-1], scores, first), flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps(found, indent=1))


def row_of(record: dict[str, Any], scores: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> str:
    """A row of the table."""
    names = [name for name in ("identity", "attributes") if name in scores] or list(scores)[:2]
    low, high = interval(torch.stack([scores[name] - first[name] for name in names]).mean(dim=0))
    values = " | ".join(f"{record[name]:.3f}" for name in names)
    measured = f"{record['evaluations']:.0f} | {record['time']:.2f} | {values}"
    return f"| {record['way']} | {measured} | {low:+.3f} to {high:+.3f} |"


if __name__ == "__main__":
    main()
