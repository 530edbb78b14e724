"""Networks whose features FID and KID compare, behind one interface: Inception of FID, a judge of avatars, or a CLIP.

Weights are files that the user names; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception

from promptnet.io.network_weights import read_weights
from promptnet.metrics.fid import Array
from promptnet.metrics.judge import Judge, read_images, to_pixels

INCEPTION_SIZE_PX = 299
NUM_INCEPTION_CLASSES = 1008


class FeatureNetwork(Protocol):
    """Map images of any size to features."""

    def features(self, images: Sequence[Image.Image]) -> Array:
        """Return (N, F) in float64."""
        ...


class JudgeFeatures:
    """The features of a judge of avatars: the network for the embedded model.

    Args:
        judge: an attribute classifier.
        device: of the judge.
    """

    def __init__(self, judge: Judge, device: str | None = None) -> None:
        self.judge, self.device = judge, device

    def features(self, images: Sequence[Image.Image]) -> Array:
        """Return its features of images resized to its size, (N, F)."""
        return read_images(self.judge, images, self.device).features


class InceptionFeatures:
    """FID's Inception V3: the 2048 means before its classifier.

    Images are resized to 299 px with antialiasing (bicubic, both sides). Published figures were made with several ways
    of resizing, so that figures of one way belong together.

    Args:
        network: of `load_inception`.
        device: where it computes.
        batch: images at a time.
    """

    def __init__(self, network: nn.Module, device: str | None = None, batch: int = 16) -> None:
        self.device, self.batch = device or "cpu", batch
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image]) -> Array:
        """Return (N, 2048)."""
        size = (INCEPTION_SIZE_PX, INCEPTION_SIZE_PX)
        found = []
        for start in range(0, len(images), self.batch):
            part = [
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
                for image in images[start : start + self.batch]
            ]
            found.append(self.network(to_pixels(part).to(self.device)).double().cpu())
        return torch.cat(found).numpy() if found else np.zeros((0, 2048))


def _as_trained(kind: Any, pool: Callable[[Tensor], Tensor]) -> Any:
    """Return a block of torchvision's Inception whose pooling branch pools as FID's network does."""

    class Block(kind):
        def _forward(self, x: Tensor) -> list[Tensor]:
            return [*super()._forward(x)[:-1], self.branch_pool(pool(x))]

    return Block


def _mean_of_inside(x: Tensor) -> Tensor:
    """Return 3x3 means that leave out what lies outside the image."""
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, kernel_size=3, stride=1, padding=1)


def new_inception() -> nn.Module:
    """Return FID's Inception with random weights, (B, 3, 299, 299) in [-1, 1] -> (B, 2048).

    It is the network of 2015 in torchvision's names; it differs from torchvision's in the pooling branches.
    """
    a, c, e = (
        _as_trained(kind, _mean_of_inside)
        for kind in (inception.InceptionA, inception.InceptionC, inception.InceptionE)
    )
    blocks = [inception.BasicConv2d, a, inception.InceptionB, c, inception.InceptionD, e, inception.InceptionAux]
    network: Any = inception.Inception3(
        num_classes=NUM_INCEPTION_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False
    )
    network.Mixed_7c = _as_trained(inception.InceptionE, _largest)(2048)
    network.fc = nn.Identity()
    return network.eval()


def load_inception(weights: Path) -> nn.Module:
    """Load FID's Inception from a file of the user's: safetensors, or a torch file of tensors.

    Raises:
        ValueError: there is no such file, it is TorchScript, or it holds another network.
    """
    network = new_inception()
    found = {name: value for name, value in read_weights(weights, "FID's Inception").items() if "fc." not in name}
    found = {name: value for name, value in found.items() if not name.startswith("AuxLogits.")}
    wanted = {name: value for name, value in network.state_dict().items() if "num_batches_tracked" not in name}
    missing = [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]
    if missing:
        raise ValueError(
            f"'{weights}' is not FID's Inception of 2015 in torchvision's names: it lacks {missing[0]} and "
            f"{len(missing) - 1} more"
        )
    network.load_state_dict({name: found[name] for name in wanted}, strict=False)
    return network
