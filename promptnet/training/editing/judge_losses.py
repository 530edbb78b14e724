"""Parts of an edit's loss that the validation judge reads: does what is asked appear, does the rest stay.

Never the test judge, by whose answers edits are measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from promptnet.models.judge import JUDGE_SIZE_PX, AvatarJudge
from promptnet.training.editing.losses import Edit, LossPart, frozen, resized

VALIDATION_JUDGE = "checkpoints/judges/validation"


class JudgePart(LossPart):
    """A part that reads images with a judge.

    Args:
        judge_dir: of the validation judge.
        weight: its factor.
    """

    def __init__(self, judge_dir: str = VALIDATION_JUDGE, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.judge_dir = judge_dir

    def prepare(self, edit: Edit) -> None:
        """Load the judge."""
        check_judge(self.judge_dir, edit.base_dir)
        judge: Any = AvatarJudge.from_pretrained(self.judge_dir)
        self.known: dict[str, list[str]] = judge.config["fields"]
        self.judge = frozen(judge.float(), edit.device)

    def check_fields(self, fields: Iterable[str], argument: str) -> None:
        """Refuse fields that the judge does not read.

        Raises:
            ValueError: naming them.
        """
        if unknown := set(fields) - set(self.known):
            raise ValueError(
                f"{argument}={sorted(unknown)} are not fields that the judge reads: {', '.join(self.known)}."
            )

    def read(self, image: torch.Tensor, temperature: float = 1.0) -> dict[str, torch.Tensor]:
        """Images (B, 3, H, W) -> field to log-probabilities (B, values), of logits divided by the temperature."""
        read = self.judge(resized(image, JUDGE_SIZE_PX))
        return {field: F.log_softmax(logits / temperature, 1) for field, logits in read.items()}


class JudgePreservation(JudgePart):
    """The fields that are not to change are read as in the original: the divergence of the judge's answers.

    Args:
        changed: fields that may change.
        judge_dir: of the validation judge.
        weight: its factor.
    """

    name = "kept"

    def __init__(self, changed: list[str], judge_dir: str = VALIDATION_JUDGE, weight: float = 1.0) -> None:
        super().__init__(judge_dir, weight)
        self.changed = changed

    def prepare(self, edit: Edit) -> None:
        """Load the judge."""
        super().prepare(edit)
        self.check_fields(self.changed, "changed")

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,)."""
        read, was = self.read(image), self.read(original)
        kept = [field for field in read if field not in self.changed]
        divergences = [F.kl_div(read[field], was[field], reduction="none", log_target=True) for field in kept]
        return torch.stack([one.sum(1) for one in divergences]).mean(0)


class JudgeEditSuccess(JudgePart):
    """The image shows what is asked: minus the log-probability that the judge gives it, the mean over fields.

    Args:
        asked: field to the value to show, for example {"glasses": "sunglasses"}.
        judge_dir: of the validation judge.
        weight: its factor.
        temperature: what the judge's logits are divided by. Judges are sure of themselves: at 1 nothing is left to
            learn as soon as an image is read right, and what is learned on a few images fails on others.
    """

    name = "shown"

    def __init__(
        self,
        asked: dict[str, str],
        judge_dir: str = VALIDATION_JUDGE,
        weight: float = 1.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(judge_dir, weight)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0.")
        self.temperature = temperature
        if not asked:
            raise ValueError("asked={} names nothing to show: give a field and its value.")
        self.asked = asked

    def prepare(self, edit: Edit) -> None:
        """Load the judge."""
        super().prepare(edit)
        self.check_fields(self.asked, "asked")
        for field, value in self.asked.items():
            if value not in self.known[field]:
                raise ValueError(
                    f"asked: {field}={value!r} is nothing that the judge reads: {', '.join(self.known[field])}."
                )
        self.places = {field: list(self.known[field]).index(value) for field, value in self.asked.items()}

    def __call__(self, image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """(B,); the original has no say."""
        read = self.read(image, self.temperature)
        return torch.stack([-read[field][:, place] for field, place in self.places.items()]).mean(0)


def check_judge(judge_dir: str | Path, base_dir: Path) -> None:
    """Refuse the test judge, however its path is spelt.

    Raises:
        ValueError: it is the base model's test judge, or a folder of that judge's name.
    """
    folder = Path(judge_dir).resolve()
    tests = (base_dir.resolve().parent / "judges/validation").with_name("test")
    if folder.name == tests.name or (folder.exists() and tests.exists() and folder.samefile(tests)):
        raise ValueError(
            f"judge_dir={str(judge_dir)!r} is the test judge, which measures what was learned and must not teach it: "
            "take the validation judge (checkpoints/judges/validation)."
        )
