"""What the JSON files of a base model's folder say, read before anything heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptnet.inference.sampling.scheduler_names import RENOISING_SCHEDULERS

if TYPE_CHECKING:
    from promptnet.inference.sampling.config import SamplingConfig

FOR_SUBJECTS = {"promptnet": "--promptnet", "image_encoder": "--image-encoder"}


@dataclass(frozen=True)
class BaseFolder:
    """The configs of a base model. Of a Hub id nothing is known, and every question is answered with None.

    Args:
        name: a folder that exists, or a Hub id.
    """

    name: str

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """`model_index.json`; empty for a Hub id or a broken file, which loading explains."""
        return self._read("model_index.json")

    def _read(self, *path: str) -> Mapping[str, Any]:
        try:
            found = json.loads(Path(self.name, *path).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has(self, component: str) -> bool | None:
        """Return whether the base model brings a component."""
        return None if not self.index else bool((self.index.get(component) or [None, None])[1])

    @property
    def scheduler(self) -> str | None:
        """The class of its scheduler."""
        return (self.index.get("scheduler") or [None, None])[1]

    @property
    def trained_size_px(self) -> tuple[int, int] | None:
        """Height and width of the images that it was trained on."""
        size, factor = self._read("unet", "config.json").get("sample_size"), self._vae_factor
        if size is None or factor is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return height * factor, width * factor

    @property
    def size_multiple_px(self) -> int | None:
        """What sides must be multiples of."""
        blocks = self._read("unet", "config.json").get("block_out_channels")
        return None if not blocks or self._vae_factor is None else self._vae_factor * 2 ** (len(blocks) - 1)

    @property
    def _vae_factor(self) -> int | None:
        blocks = self._read("vae", "config.json").get("block_out_channels")
        return 2 ** (len(blocks) - 1) if blocks else None

    def check_size(self, size_px: tuple[int, int]) -> None:
        """Check (width, height) of an image.

        Raises:
            ValueError: a side is not a multiple of what the networks divide by.
        """
        multiple_px = self.size_multiple_px or 8
        for name, side_px in zip(("width", "height"), size_px, strict=True):
            if side_px < multiple_px or side_px % multiple_px:
                nearest = max(multiple_px, round(side_px / multiple_px) * multiple_px)
                raise ValueError(
                    f"{name}={side_px} pixels must be a multiple of {multiple_px} with this base model: "
                    f"the nearest is {nearest}"
                )

    def sampling(self, given: Mapping[str, Any]) -> SamplingConfig:
        """Return the parameters of a call.

        Raises:
            ValueError: a value is out of range.
        """
        from promptnet.inference.sampling.config import SamplingConfig

        return SamplingConfig().replaced(self.index.get("sampling") or {}).replaced(given)

    def check_subjects(self, given: Mapping[str, str | None]) -> None:
        """Check that there is what subjects need.

        Args:
            given: "promptnet" and "image_encoder" from elsewhere.

        Raises:
            ValueError: a part is neither in the base model nor given.
        """
        for component, option in FOR_SUBJECTS.items():
            if self.has(component) is False and given.get(component) is None:
                raise ValueError(
                    f"base model '{self.name}' has no {component}, which subjects need: give {option}, "
                    "or a base model's folder that holds it"
                )


def check_scheduler_name(name: str | None, *, renoising: bool) -> None:
    """Check `--scheduler`; None is the base model's own.

    Raises:
        ValueError: it is not known, or cannot re-noise.
    """
    from promptnet.commands._checks import check_choice
    from promptnet.inference.sampling.scheduler_names import OTHER_SCHEDULERS

    if name is None:
        return
    check_choice("scheduler", name, RENOISING_SCHEDULERS + OTHER_SCHEDULERS)
    if renoising and name not in RENOISING_SCHEDULERS:
        raise ValueError(
            f"--scheduler {name} cannot re-noise, which Fusion Sampling of subjects needs: take one of "
            f"{', '.join(RENOISING_SCHEDULERS)}, or --fusion-steps 0"
        )
