"""Count the heads in an image with the validation judge's features.

An image generated larger than trained fails by repetition. The judge classifies one avatar an image and cannot show
that, but its convolutions apply everywhere. A linear map on them is fitted by least squares to scenes composed of real
avatars of training people, whose heads' places and sizes are known: 1 in the middle of a head of the judge's size, 0
elsewhere and on smaller and larger heads. An image is searched at several sizes; of responses nearer to each other
than heads can be, the strongest counts.
"""

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from promptnet.datasets.avatars.colours import BACKGROUND
from promptnet.datasets.avatars.person import sample_avatar
from promptnet.datasets.avatars.render import render_avatar
from promptnet.metrics.judge import to_pixels
from promptnet.models.judge import JUDGE_SIZE_PX

CELL_PX = 8
"""Pixels to one place of the features, after three of the judge's halvings."""
NUM_LAYERS = 18
"""The judge's first six convolutions, each with its norm and activation: the receptive field is 43 px, about a head."""
HEAD_CENTRE = (0.5, 0.45)
"""Of an avatar, in fractions of its side."""
SEARCHED_PER_DOUBLING = 2
NEAREST = 0.4
"""Heads nearer to each other than this fraction of the larger avatar's side are one."""
THRESHOLD = 0.6
ROUNDS = 4


@dataclass(frozen=True)
class Head:
    """A detected head: its centre and the side of its avatar in pixels, and the response."""

    x_px: float
    y_px: float
    side_px: float
    score: float

    def is_same(self, other: "Head") -> bool:
        """Return whether two heads overlap too much to be two."""
        apart = math.hypot(self.x_px - other.x_px, self.y_px - other.y_px)
        return apart < NEAREST * max(self.side_px, other.side_px)


@dataclass(frozen=True)
class HeadFinder:
    """Count heads.

    Args:
        trunk: (B, 3, H, W) in [-1, 1] to features (B, C, H / 8, W / 8).
        weight: (1, C, 3, 3), from features to responses.
        bias: (1,).
    """

    trunk: nn.Module
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, judge: Any, *, num_scenes: int = 200, seed: int = 0) -> "HeadFinder":
        """Fit to a judge's features on scenes of training people, then again with the false positives found there.

        Args:
            judge: an `AvatarJudge`.
            num_scenes: number of images of 128 px.
            seed: of the scenes.
        """
        trunk = judge.trunk[:NUM_LAYERS]
        places: list[Tensor] = []
        answers: list[Tensor] = []
        finder: HeadFinder | None = None
        for index, scene in enumerate(scenes(num_scenes, seed)):
            features = _features(trunk, scene.image)  # (1, C, h, w)
            around = F.unfold(features, 3, padding=1)[0].T  # (h w, 9 C)
            wanted = scene.answers(features.shape[2:]).flatten()  # (h w,)
            likeness = np.random.default_rng(index).random(len(wanted)) if finder is None else finder._respond(features)
            kept = chosen_places(wanted, likeness.flatten())
            places.append(around[kept].double())
            answers.append(torch.from_numpy(wanted[kept]))
            if (index + 1) % (num_scenes // ROUNDS) == 0:
                weight, bias = _least_squares(torch.cat(places), torch.cat(answers))
                finder = cls(trunk, weight.reshape(1, -1, 3, 3).float(), bias.reshape(1).float())
        assert finder is not None
        return finder

    def find(self, image: Image.Image) -> list[Head]:
        """Return the heads in an image, the strongest response first."""
        found: list[Head] = []
        for side_px in searched_sides(image.size):
            found += self._at(image, side_px)
        heads: list[Head] = []
        for head in sorted(found, key=lambda head: -head.score):
            if not any(head.is_same(other) for other in heads):
                heads.append(head)
        return heads

    def count(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return the number of heads in each image, (N,)."""
        return np.asarray([len(self.find(image)) for image in images])

    def _at(self, image: Image.Image, side_px: float) -> Iterator[Head]:
        """Yield heads of avatars of one size: local maxima above the threshold."""
        scale = JUDGE_SIZE_PX / side_px
        sized = image.resize([max(CELL_PX, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
        responses = self._respond(_features(self.trunk, sized))  # (h, w)
        highest = F.max_pool2d(torch.from_numpy(responses)[None], 3, 1, 1)[0].numpy()
        for y, x in np.argwhere((responses == highest) & (responses > THRESHOLD)):
            x_px, y_px = (float(place + 0.5) * CELL_PX / scale for place in (x, y))
            yield Head(x_px, y_px, side_px, float(responses[y, x]))

    def _respond(self, features: Tensor) -> np.ndarray:
        """Map (1, C, h, w) to (h, w): about 1 in the middle of a head of the judge's size, about 0 elsewhere."""
        return F.conv2d(features, self.weight, self.bias, padding=1)[0, 0].numpy()


@torch.no_grad()
def _features(trunk: nn.Module, image: Image.Image) -> Tensor:
    parameter = next(trunk.parameters())
    return trunk(to_pixels([image]).to(parameter.device)).cpu()


def searched_sides(size: tuple[int, int]) -> list[float]:
    """Return the sides of avatars to search for: from below the trained size to above the image's."""
    smallest = min(JUDGE_SIZE_PX, *size) / math.sqrt(2)
    steps = SEARCHED_PER_DOUBLING * math.log2(min(size) * math.sqrt(2) / smallest)
    return [smallest * 2 ** (step / SEARCHED_PER_DOUBLING) for step in range(math.floor(steps + 1e-6) + 1)]


def _least_squares(places: Tensor, answers: Tensor, ridge: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Return w, b that minimise sum_i a_i (w.f_i + b - y_i)^2 + ridge |w|^2, where heads weigh as much as the rest."""
    y = answers.double()
    weights = torch.where(y > 0, 0.5 / (y > 0).sum(), 0.5 / (y <= 0).sum())
    mean, spread = places.mean(0), places.std(0) + 1e-6
    f = torch.cat([(places - mean) / spread, torch.ones(len(places), 1, dtype=torch.float64)], dim=1)
    penalty = ridge * torch.eye(f.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    solution = torch.linalg.solve((f * weights[:, None]).T @ f + penalty, (f * weights[:, None]).T @ y)
    weight = solution[:-1] / spread
    return weight, solution[-1] - weight @ mean


def chosen_places(wanted: np.ndarray, likeness: np.ndarray, others: int = 32) -> np.ndarray:
    """Return every middle of a head, and of the other places those with the highest response."""
    heads, rest = (np.flatnonzero(wanted == value) for value in (1, 0))
    return np.concatenate([heads, rest[np.argsort(-likeness[rest])][:others]])


# --- scenes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Avatars on one canvas, with the places of their heads."""

    image: Image.Image
    heads: tuple[Head, ...]

    def answers(self, shape: Sequence[int]) -> np.ndarray:
        """Return for each place (h, w) 1 in the middle of a head of the judge's size, 0 elsewhere, -1 if undecided."""
        y, x = ((np.arange(n) + 0.5) * CELL_PX for n in shape)
        wanted = np.zeros((len(y), len(x)))
        for head in self.heads:
            apart = np.hypot(x[None, :] - head.x_px, y[:, None] - head.y_px)
            size = abs(math.log2(head.side_px / JUDGE_SIZE_PX))
            if size < 0.7:
                wanted[apart < 2 * CELL_PX] = -1
            if size < 0.35:
                wanted[apart <= CELL_PX * 0.75] = 1
        return wanted


def compose(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Place images of one size on a grid with so many columns."""
    width, height = images[0].size
    methods = math.ceil(len(images) / columns)
    whole = Image.new("RGB", (width * columns, height * methods), "white")
    for image, (method, column) in zip(images, itertools.product(range(methods), range(columns)), strict=False):
        whole.paste(image, (column * width, method * height))
    return whole


def scenes(count: int, seed: int, side_px: int = 128) -> Iterator[Scene]:
    """Yield scenes of up to five avatars of 37 to 194 px in random places on one colour, later ones on top."""
    rng = random.Random(f"scenes {seed}")
    for index in range(count):
        image = Image.new("RGB", (side_px, side_px), rng.choice(list(BACKGROUND.values())))
        heads: list[Head] = []
        for part in range(rng.choice((1, 2, 3, 4, 5))):
            size_px = round(
                JUDGE_SIZE_PX
                * 2 ** rng.choice((-0.8, *[rng.uniform(-0.3, 0.3)] * 3, rng.uniform(0.7, 1.6), rng.uniform(0.7, 1.6)))
            )
            avatar = render_avatar(sample_avatar(seed, 10 * index + part), size_px)
            ends = sorted((-size_px // 8, side_px - size_px * 7 // 8))  # if larger than the image, it covers it
            left, top = (rng.randint(*ends) for _ in range(2))
            centre = (left + HEAD_CENTRE[0] * size_px, top + HEAD_CENTRE[1] * size_px)
            box = (left, top, left + size_px, top + size_px)
            heads = [head for head in heads if not _hides(box, head)]
            image.paste(avatar, (left, top))
            heads.append(Head(*centre, size_px, 1.0))
        yield Scene(image, tuple(heads))


def _hides(box: tuple[int, int, int, int], head: Head) -> bool:
    """Return whether something pasted there covers the middle of a head."""
    left, top, right, bottom = box
    reach = 0.3 * head.side_px
    return (
        left < head.x_px + reach
        and right > head.x_px - reach
        and top < head.y_px + reach
        and bottom > head.y_px - reach
    )
