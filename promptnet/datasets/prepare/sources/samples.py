"""Which members of a tar shard are one sample: an image and its texts.

An image `22.05.png` takes each of its texts from the longest name that fits: `22.05.txt`, `22.05.png.txt`, `22.txt`.
So names with full stops work, and so do webdataset's own (`1.main.png` with `1.json`), in which all behind the first
full stop is the ending. What could mean either is refused by name: images whose names differ by an ending alone
(`1.png`, `1.jpg`), one whose name goes on from another's (`1.png`, `1.mask.png`), several that a shorter name fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from promptnet.datasets.prepare.sources.base import IMAGE_ENDINGS
from promptnet.datasets.prepare.sources.endings import shorter_stems, split_ending


@dataclass
class Sample:
    """An image and its texts, or what cannot be one.

    Attributes:
        stem: the name without an ending.
        images: members that are images by their ending; one where all is well.
        others: the other members, those of the longest name first.
    """

    stem: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def text(self, ending: str) -> str | None:
        """Return the member of that ending, None where there is none."""
        return next((name for name in self.others if ending and name.lower().endswith(f".{ending}")), None)


def samples_of(members: Iterable[str]) -> list[Sample]:
    """Return the samples that a shard's members make, in the members' order; texts without an image come last."""
    images, texts = _by_stem(members)
    groups: dict[str, list[str]] = defaultdict(list)
    for stem in images:
        shorter = [short for short in shorter_stems(stem) if short in images or short in texts]
        groups[shorter[-1] if shorter else stem].append(stem)
    samples = []
    for name, stems in groups.items():
        found = [image for stem in stems for image in images[stem]]
        fitting = dict.fromkeys(fits for stem in stems for fits in (stem, *images[stem], *shorter_stems(stem)))
        samples.append(Sample(name, found, [text for fits in fitting for text in texts.pop(fits, ())]))
    return samples + [Sample(stem, [], names) for stem, names in texts.items()]


def _by_stem(members: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return images and other members by their names without the ending."""
    images: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for name in members:
        stem, ending = split_ending(name)
        (images if f".{ending}" in IMAGE_ENDINGS else others)[stem].append(name)
    return images, others
