"""The edit cards of the evaluation: learned once, kept in a folder, found again by what decided them."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptnet.evaluation.edits_tasks import NEUTRAL, Edit
from promptnet.evaluation.files import write_text
from promptnet.evaluation.running import each_in_processes, with_progress
from promptnet.inference.mixing import MixingWeights

DDIM = "DDIMScheduler"


@dataclass(frozen=True)
class Learning:
    """How edits are learned."""

    num_steps: int = 25
    iterations: int = 20
    guidance_scale: float = 3.0
    learning_rate: float = 0.05
    preserve: float = 0.05
    start_share: float = 0.4
    batch_size: int = 8
    seed: int = 0
    scheduler: str = DDIM

    def record(self) -> dict[str, Any]:
        """What decides a card; the scheduler where it is another than DDIM."""
        found = asdict(self)
        if self.scheduler == DDIM:
            del found["scheduler"]
        return found


@dataclass(frozen=True)
class CardTask:
    """One card to learn."""

    base: Path
    device: str
    edit: Edit
    num_seeds: int
    how: Learning
    path: Path


def card_path(folder: Path, base_hash: str, edit: Edit, num_seeds: int, how: Learning) -> Path:
    """Where a card lies, or will: its name holds a hash of all that decides it."""
    content = [base_hash, NEUTRAL, edit.styled, num_seeds, how.record()]
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{edit.name}.{num_seeds}-seeds.{name}.safetensors"


def learn_cards(tasks: Sequence[CardTask], workers: int) -> list[MixingWeights]:
    """The cards, those learned that are not there yet, with a progress bar."""
    missing = [task for task in tasks if not task.path.is_file()]
    done = each_in_processes(learn, missing, workers)
    already = len(tasks) - len(missing)
    for _ in with_progress(done, total=len(tasks), already=already, about="learning edits", counting="cards"):
        pass
    return [MixingWeights.load(task.path) for task in tasks]


def learn(task: CardTask) -> None:
    """Learn one card."""
    from promptnet.training.disentangle import DisentangleStage
    from promptnet.training.disentangle_data import SeedDataModule
    from promptnet.training.disentangle_learning import learn_card
    from promptnet.training.disentangle_parts import DirectionalClip, VisionPerceptual

    how = task.how
    stage = DisentangleStage(
        NEUTRAL,
        task.edit.styled,
        str(task.path),
        str(task.base),
        num_steps=how.num_steps,
        scheduler=how.scheduler,
        guidance_scale=how.guidance_scale,
        start_share=how.start_share,
        learning_rate=how.learning_rate,
        parts=[VisionPerceptual(how.preserve), DirectionalClip()],
        picture_every=0,
        seed=how.seed,
    )
    data = SeedDataModule(task.num_seeds, min(how.batch_size, task.num_seeds), how.seed)
    start_s = time.perf_counter()
    learn_card(stage, data, iterations=how.iterations, device=task.device)
    write_text(seconds_path(task.path), f"{time.perf_counter() - start_s:.1f}\n")


def seconds_path(card: Path) -> Path:
    """Where it is noted how long a card took to learn."""
    return card.with_suffix(".seconds.txt")


def learning_seconds(task: CardTask) -> float | None:
    """How long the card took to learn, where that was noted."""
    path = seconds_path(task.path)
    return float(path.read_text("utf-8")) if path.is_file() else None
