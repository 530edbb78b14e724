"""What pretraining the encoder sees: a reference image and a target image of the same person, with a prompt."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import Dataset

from promptnet.datasets.avatars.captions import caption
from promptnet.datasets.avatars.dataset import avatar_of
from promptnet.datasets.avatars.module import AvatarDataModule, codes_of, pixels_of
from promptnet.datasets.avatars.render import ATTRIBUTE_FIELDS, IDENTITY_FIELDS
from promptnet.datasets.stream import dataset_index, sample_rng

if TYPE_CHECKING:
    import datasets

Reference = Literal["same-image", "same-identity"]
GivenReference = Literal["same-image", "same-identity", "same-picture"]
NEUTRAL_PROMPT = "a portrait of S*"


def checked_reference(given: str) -> Reference:
    """Return which image is the reference; "same-picture" is the old name of "same-image", for one release.

    Raises:
        ValueError: it is neither "same-image" nor "same-identity".
    """
    if given == "same-picture":
        warnings.warn("reference: same-picture is now same-image.", DeprecationWarning, stacklevel=3)
        return "same-image"
    if given == "same-image" or given == "same-identity":
        return given
    raise ValueError(f"reference={given!r} must be 'same-image' or 'same-identity'")


class SubjectPairs(Dataset[dict[str, Any]]):
    """Sample number -> reference and target of one person; order, partner and prompt are functions of (seed, number).

    Items: `sample`; `reference_index` and `target_index`, places in the data set (of cached latents);
    `reference_pixels` (3, S, S) in [-1, 1]; `codes` of the target; `prompt` with the placeholder S*; `described`, the
    same prompt with the person's description in its place.

    Args:
        data: what `avatar_dataset` returns.
        seed: of order, partners and prompts.
        reference: "same-image" as published, or another image of the "same-identity".
        captioned: probability that the prompt names attributes of the target; else it is "a portrait of S*".
        shuffled: False keeps the data set's order (validation).
    """

    def __init__(
        self,
        data: datasets.Dataset,
        *,
        seed: int,
        reference: GivenReference = "same-identity",
        captioned: float = 2 / 3,
        shuffled: bool = True,
    ) -> None:
        reference = checked_reference(reference)
        if not 0 <= captioned <= 1:
            raise ValueError(f"captioned={captioned} must be a probability")
        self.data, self.seed, self.reference, self.captioned, self.shuffled = data, seed, reference, captioned, shuffled
        columns = data.select_columns(list(IDENTITY_FIELDS))[:]
        self.people = list(zip(*(columns[field] for field in IDENTITY_FIELDS), strict=True))
        self.images_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for index, person in enumerate(self.people):
            self.images_of[person].append(index)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, sample: int) -> dict[str, Any]:
        target = dataset_index(self.seed, sample, len(self.data)) if self.shuffled else sample % len(self.data)
        reference = self._partner(target, sample)
        row = self.data[target]
        return {
            "sample": sample,
            "target_index": target,
            "reference_index": reference,
            "reference_pixels": pixels_of(self.data[reference]["image"]),
            "codes": codes_of(row),
            **self._prompts(row, sample),
        }

    def _partner(self, target: int, sample: int) -> int:
        """Another image of the same person, where there is one."""
        if self.reference == "same-image":
            return target
        others = [index for index in self.images_of[self.people[target]] if index != target]
        return sample_rng(self.seed, sample, "partner").choice(others) if others else target

    def _prompts(self, row: dict[str, Any], sample: int) -> dict[str, str]:
        rng, avatar = sample_rng(self.seed, sample, "prompt"), avatar_of(row)
        fields: set[str] = set()
        prompt = NEUTRAL_PROMPT
        if rng.random() < self.captioned:
            keep = rng.random()
            fields = {field for field in ATTRIBUTE_FIELDS if rng.random() < keep}
            prompt = caption(None, avatar.attributes, subject="S*", fields=fields, rng=rng)
        described = caption(avatar.identity, avatar.attributes, fields=fields | set(IDENTITY_FIELDS))
        return {"prompt": prompt, "described": described}


class PairDataModule(AvatarDataModule):
    """`AvatarDataModule` whose items are `SubjectPairs`.

    Args:
        reference: "same-image" as published, or "same-identity".
        captioned: probability that the prompt names attributes of the target.
        avatars: arguments of `AvatarDataModule`.
    """

    def __init__(self, reference: GivenReference = "same-identity", captioned: float = 2 / 3, **avatars: Any) -> None:
        super().__init__(**avatars)
        self.reference, self.captioned = checked_reference(reference), captioned

    def setup(self, stage: str | None = None) -> None:
        """Open the rendered sets."""
        how: dict[str, Any] = {"seed": self.seed, "reference": self.reference, "captioned": self.captioned}
        self.train = SubjectPairs(self.rendered("train"), **how)  # type: ignore[assignment]
        self.validation = SubjectPairs(self.rendered("validation"), **how, shuffled=False)  # type: ignore[assignment]

    def counts(self) -> tuple[int, int]:
        """Return how many images are trained on, and of how many people."""
        pairs: Any = self.train
        return len(pairs), len(pairs.images_of)
