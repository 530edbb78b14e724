"""Measure blending on pairs of held-out avatars: each tuned alone, both generated side by side in one image.

The image is two trained sizes wide. With regions each person has a half; without, one prompt holds both words. A judge
reads the halves. Alone, each is generated at the trained size: what identity there is to keep.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.renderer import generator, weight_hashes
from promptnet.evaluation.harness.tasks import CLASS_PHRASE, Person, Split, make_people
from promptnet.images.contact_sheet import contact_sheet
from promptnet.io.atomic import make_folder, write_whole
from promptnet.metrics.blending import Blending, blending
from promptnet.metrics.bootstrap import interval, ratio
from promptnet.metrics.judge import Judge, load_judge, read_images

WAYS = ("regions", "one prompt")
PROMPT = "a portrait of S1* and a portrait of S2*"
ALONE = "a portrait of S*"
Row = dict[str, Any]


def pairs_of(split: Split, pairs: int, seed: int = 0) -> list[tuple[Person, Person]]:
    """Return pairs of different held-out people, nobody in two."""
    people = make_people(split, 2 * pairs, 1, seed)
    return list(zip(people[::2], people[1::2], strict=True))


def evaluate_two_people(
    base: str | Path,
    *,
    pairs: int = 32,
    steps: int = 20,
    split: Split = "test",
    out: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    judge: str | Path | None = None,
    on_pair: Callable[[int, int], object] | None = None,
) -> dict[str, Any]:
    """Compare regions with one prompt for both, and print the comparison.

    With `out` it writes results.json, results.md and sheet.png there, and keeps each pair's figures and images: repeat
    the command to resume.

    Args:
        base: folder of the base model; judges lie beside it.
        pairs: of held-out people.
        steps: denoising steps.
        split: "test" for results, "validation" for choices.
        out: a folder, made if it is missing.
        seed: decides people and noise.
        device: where to generate; None is the CPU.
        judge: folder of the judge; None is the one beside the base model.
        on_pair: (pairs done, pairs in all), called after each.

    Raises:
        ValueError: unknown folder, base model, judge or split.
    """
    folder = None if out is None else make_folder(out)
    reader = load_judge(judge_folder(base, split, judge), device)
    maker = _Maker(base, steps, device or "cpu")
    weights = hashlib.sha256(json.dumps(weight_hashes(base, []), sort_keys=True).encode()).hexdigest()[:8]
    rows, images = [], []
    for index, pair in enumerate(pairs_of(split, pairs, seed)):
        row, drawn = _kept(folder, f"{weights}-{split}-{seed}-{steps}-{index:03d}", maker, pair, reader)
        rows.append(row)
        images.append(drawn)
        if on_pair is not None:
            on_pair(index + 1, pairs)
    results = summarise(rows, {"split": split, "pairs": pairs, "steps": steps, "seed": seed})
    if folder is not None:
        write_whole(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode(), public=True)
        write_whole(folder / "results.md", (table(results) + "\n").encode(), public=True)
        sheet = contact_sheet([("", line) for line in images[:8]], ["alone 1", "alone 2", *WAYS])
        write_whole(folder / "sheet.png", sheet.save, public=True)
    print(table(results))
    return results


class _Maker:
    """The base model, loaded when the first pair needs it."""

    def __init__(self, base: str | Path, steps: int, device: str) -> None:
        self.base, self.steps, self.device = Path(base), steps, device
        self._pipe: Any = None

    @property
    def pipe(self) -> Any:
        if self._pipe is None:
            from promptnet import PromptNetPipeline

            self._pipe = PromptNetPipeline.from_pretrained(self.base, use_safetensors=True).to(self.device)
            self._pipe.set_progress_bar_config(disable=True)
        return self._pipe

    def images(self, pair: Sequence[Person]) -> dict[str, Image.Image]:
        """Return the pair in both ways, and each alone."""
        height, width = self.pipe.trained_size_px
        subjects = [self._subject(person, width) for person in pair]
        run = {"num_inference_steps": self.steps, "height": height}
        seed = pair[0].eval_prompts[0].seed
        wide = {**run, "width": 2 * width, "resolution": "off", "subject": subjects}
        found = {
            name: self.pipe(PROMPT, generator=generator(seed), regions=regions, **wide).images[0]
            for name, regions in zip(WAYS, ("halves", None), strict=True)
        }
        for place, subject in enumerate(subjects):
            alone = self.pipe(ALONE, generator=generator(seed), width=width, subject=subject, **run).images[0]
            found[f"alone {place + 1}"] = alone
        return found

    def _subject(self, person: Person, size_px: int) -> Any:
        quiet = {"generator": generator(person.seed), "progress_bar": False}
        return self.pipe.customize(person.reference_image(size_px), class_word=CLASS_PHRASE, **quiet)


def _kept(
    folder: Path | None, name: str, maker: _Maker, pair: tuple[Person, Person], judge: Judge
) -> tuple[Row, list[Image.Image]]:
    """Return a pair's figures and images, from the folder if they are there."""
    parts = ("alone 1", "alone 2", *WAYS)
    paths = {part: folder / "pictures" / f"{name}-{part.replace(' ', '-')}.png" for part in parts} if folder else {}
    if paths and all(path.is_file() for path in paths.values()):
        images = {part: Image.open(path).convert("RGB") for part, path in paths.items()}
    else:
        images = maker.images(pair)
        for part, path in paths.items():
            path.parent.mkdir(exist_ok=True)
            write_whole(path, images[part].save, public=True)
    return score(images, [person.identity.record() for person in pair], judge), [images[part] for part in parts]


def score(images: Mapping[str, Image.Image], people: Sequence[Mapping[str, str]], judge: Judge) -> Row:
    """Return the figures of one pair."""
    alone = read_images(judge, [images["alone 1"], images["alone 2"]]).records
    row: Row = {"alone": _record(blending(alone, people))}
    for way in WAYS:
        found = read_images(judge, halves(images[way])).records
        row[way] = _record(blending(found, people, free=way == "one prompt"))
    return row


def _record(found: Blending) -> dict[str, float]:
    return {"identity": found.identity, "blended": found.blended, "swapped": float(found.swapped)}


def halves(image: Image.Image) -> list[Image.Image]:
    """Return the left and the right half."""
    middle = image.width // 2
    return [image.crop((0, 0, middle, image.height)), image.crop((middle, 0, 2 * middle, image.height))]


def summarise(rows: Sequence[Row], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return means and intervals over pairs."""
    alone = [row["alone"]["identity"] for row in rows]
    found: dict[str, Any] = {"settings": dict(settings), "alone": {"identity": interval(alone).record()}}
    for way in WAYS:
        own = [row[way]["identity"] for row in rows]
        blended = [row[way]["blended"] for row in rows]
        found[way] = {
            "identity": interval(own).record(),
            "identity_kept": ratio(own, alone).record() if all(alone) else None,
            "blended": interval(blended).record(),
            "swapped": interval([row[way]["swapped"] for row in rows]).record(),
        }
    found["by_chance_blended"] = interval([row["alone"]["blended"] for row in rows]).record()
    return found


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a Markdown table."""
    settings = results["settings"]
    lines = [
        f"{settings['pairs']} pairs of the {settings['split']} split, {settings['steps']} steps; 95 % intervals.",
        "",
        "| | identity | of what it is alone | fields that are the other's |",
        "|---|---|---|---|",
        f"| each alone | {_said(results['alone']['identity'])} | | {_said(results['by_chance_blended'])} |",
    ]
    for way in WAYS:
        row = results[way]
        kept = _said(row["identity_kept"]) if row["identity_kept"] else ""
        lines.append(f"| {way} | {_said(row['identity'])} | {kept} | {_said(row['blended'])} |")
    return "\n".join(lines)


def _said(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
