"""Edit cards of the evaluation: each is learned once and stored under a hash of everything that decides it."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from promptnet.evaluation.edits.tasks import NEUTRAL, Edit
from promptnet.evaluation.harness.judges import judge_folder
from promptnet.evaluation.harness.renderer import weight_hashes
from promptnet.evaluation.harness.workers import each_in_processes, with_progress
from promptnet.inference.editing.card import EditCard
from promptnet.io.atomic import write_whole

DDIM = "DDIMScheduler"
Teacher = Literal["judge", "clip"]
"""What measures whether an edit appears: directional CLIP alone, as published, or the validation judge as well, which
also preserves the other fields."""
JUDGE_KEEPS, JUDGE_TEMPERATURE = 0.5, 4.0
"""The weight of that preservation, and the temperature of the judge's prediction of what appears."""


@dataclass(frozen=True)
class Learning:
    """Config of learning edits.

    Raises:
        ValueError: unknown teacher.
    """

    num_steps: int = 25
    iterations: int = 10
    guidance_scale: float = 3.0
    learning_rate: float = 0.1
    preserve: float = 0.05
    start_fraction: float = 0.4
    batch_size: int = 8
    seed: int = 0
    scheduler: str = DDIM
    teacher: Teacher = "judge"

    def __post_init__(self) -> None:
        if self.teacher not in get_args(Teacher):
            raise ValueError(f"teacher={self.teacher!r} must be one of {', '.join(get_args(Teacher))}")

    def record(self) -> dict[str, Any]:
        """Return what decides a card; scheduler and teacher only if they are not DDIM and CLIP."""
        usual = {"scheduler": DDIM, "teacher": "clip"}
        found = {name: value for name, value in asdict(self).items() if usual.get(name) != value}
        # the old key stays, because cards are found by a hash of this record
        return {"start_share" if name == "start_fraction" else name: value for name, value in found.items()}


@dataclass(frozen=True)
class CardTask:
    """One card to learn."""

    base: Path
    device: str
    edit: Edit
    num_seeds: int
    how: Learning
    path: Path


def hashes_behind(base: str | Path, how: Learning) -> list[str]:
    """Return the hashes of the networks that decide a card: the base model and the judge that teaches."""
    judges = [judge_folder(base, "validation")] if how.teacher == "judge" else []
    return [weight_hashes(folder, [])["base"] for folder in (base, *judges)]


def card_path(folder: Path, hashes: Sequence[str], edit: Edit, num_seeds: int, how: Learning) -> Path:
    """Return the path of a card; its name holds a hash of everything that decides it."""
    asked = [edit.field, edit.value, JUDGE_KEEPS, JUDGE_TEMPERATURE] if how.teacher == "judge" else []
    content = [*hashes, NEUTRAL, edit.styled, num_seeds, how.record(), *asked]
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{edit.name}.{num_seeds}-seeds.{name}.safetensors"


def card_name(edit: Edit) -> str:
    """Return the file name of an edit's card in a folder of cards to use."""
    return f"{edit.name}.safetensors"


def given_cards(folder: Path, edits: Sequence[Edit], how: Learning) -> dict[str, EditCard]:
    """Load cards that were learned before, by edit.

    Raises:
        ValueError: a card is missing, or is another edit's or of other sampling settings than asked for.
    """
    cards = {edit.name: EditCard.load(folder / card_name(edit)) for edit in edits}
    for edit in edits:
        card = cards[edit.name]
        found = {"styled": card.styled, "steps": card.num_steps, "scheduler": card.scheduler}
        found |= {"guidance_scale": card.guidance_scale}
        asked = {"styled": edit.styled, "steps": how.num_steps, "scheduler": how.scheduler}
        asked |= {"guidance_scale": how.guidance_scale}
        for name, value in asked.items():
            if found[name] != value:
                path = folder / card_name(edit)
                raise ValueError(f"the card '{path}' has {name}={found[name]!r}, not {value!r}: ask for the card's own")
    return cards


def learn_cards(tasks: Sequence[CardTask], workers: int) -> list[EditCard]:
    """Learn the missing cards, with a progress bar, and return all of them."""
    missing = [task for task in tasks if not task.path.is_file()]
    done = each_in_processes(learn, missing, workers)
    already = len(tasks) - len(missing)
    for _ in with_progress(done, total=len(tasks), already=already, about="learning edits", counting="cards"):
        pass
    return [EditCard.load(task.path) for task in tasks]


def learn(task: CardTask) -> None:
    """Learn one card."""
    from promptnet.training.editing.data import SeedDataModule
    from promptnet.training.editing.learn import learn_card
    from promptnet.training.editing.stage import EditStage

    how = task.how
    stage = EditStage(
        NEUTRAL,
        task.edit.styled,
        str(task.path),
        str(task.base),
        num_steps=how.num_steps,
        scheduler=how.scheduler,
        guidance_scale=how.guidance_scale,
        start_fraction=how.start_fraction,
        learning_rate=how.learning_rate,
        parts=loss_parts(task),
        image_every=0,
        seed=how.seed,
    )
    data = SeedDataModule(task.num_seeds, min(how.batch_size, task.num_seeds), how.seed)
    start_s = time.perf_counter()
    learn_card(stage, data, iterations=how.iterations, device=task.device)
    write_whole(seconds_path(task.path), f"{time.perf_counter() - start_s:.1f}\n", public=True)


def teaching(how: Learning) -> dict[str, float]:
    """Return the settings of the judge's loss terms; empty if CLIP teaches alone."""
    return {} if how.teacher == "clip" else {"kept": JUDGE_KEEPS, "temperature": JUDGE_TEMPERATURE}


def loss_parts(task: CardTask) -> list[Any]:
    """Return the loss terms: similarity to the original, change along the prompts, and the judge's terms."""
    from promptnet.training.editing.judge_losses import JudgeEditSuccess, JudgePreservation
    from promptnet.training.editing.losses import DirectionalClip, VisionPerceptual

    published, edit = [VisionPerceptual(task.how.preserve), DirectionalClip()], task.edit
    if task.how.teacher == "clip":
        return published
    judge = str(judge_folder(task.base, "validation"))
    shows = JudgeEditSuccess({edit.field: edit.value}, judge, temperature=JUDGE_TEMPERATURE)
    return [*published, shows, JudgePreservation([edit.field], judge, weight=JUDGE_KEEPS)]


def seconds_path(card: Path) -> Path:
    """Return the path of the file that holds a card's learning time."""
    return card.with_suffix(".seconds.txt")


def learning_seconds(task: CardTask) -> float | None:
    """Return a card's learning time in seconds, or None if it was not recorded."""
    path = seconds_path(task.path)
    return float(path.read_text("utf-8")) if path.is_file() else None
