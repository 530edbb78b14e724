"""Measure whether a generated image shows the person, or copies the reference image.

With f a scorer's unit feature vectors and angle(a, b) the angle between two of them, a generated image x of a person
with reference image r and another true image o (the true answer if it is known) has

    copy_paste(x) = (angle(f(x), f(o)) - angle(f(x), f(r))) / angle(f(r), f(o))

Angles obey the triangle inequality, so it lies in [-1, 1]: 1 is the reference, -1 is the other image, 0 is equally far
from both. An image of the right person that is no copy is near 0; an encoder that copies moves towards 1.
"""

from __future__ import annotations

import torch

MIN_ANGLE = 0.05
"""Radians; if reference and other image are nearer than this, the measure is undefined."""


def angle_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the angles (N,) in radians between unit rows (N, F), accurate for small ones too."""
    return 2 * torch.asin(((first - second).norm(dim=1) / 2).clamp(max=1.0))


def copy_paste(generated: torch.Tensor, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return how much of a copy each generated image is, (N,) in [-1, 1]; NaN if reference and other look the same.

    Args:
        generated: (N, F) unit rows.
        reference: (N, F), of the reference images.
        other: (N, F), of other true images of the same people.
    """
    apart = angle_between(reference, other)
    ratio = (angle_between(generated, other) - angle_between(generated, reference)) / apart
    return torch.where(apart < MIN_ANGLE, torch.nan, ratio.clamp(-1.0, 1.0))
