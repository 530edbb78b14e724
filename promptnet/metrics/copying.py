"""Is the drawn image the person, or only the reference image again?

With f a scorer's unit feature vectors and angle(a, b) the angle between two of them, a drawn image x of a person with
reference image r and another true image o (the true answer where it is known) has

    copy_paste(x) = (angle(f(x), f(o)) - angle(f(x), f(r))) / angle(f(r), f(o))

Angles obey the triangle inequality, so it lies in [-1, 1]: 1 is the reference again, -1 is the other image, 0 is as
far from either. A face of the right person that is nobody's copy is near 0; an encoder that copies drifts towards 1.
"""

from __future__ import annotations

import torch

MIN_ANGLE = 0.05
"""Radians; where reference and other image are nearer than this, nothing can be told."""


def angle_between(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Angles (N,) in radians between unit rows (N, F), accurate for small ones too."""
    return 2 * torch.asin(((first - second).norm(dim=1) / 2).clamp(max=1.0))


def copy_paste(generated: torch.Tensor, reference: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How much of a copy each drawn image is, (N,) in [-1, 1]; NaN where reference and other look the same.

    Args:
        generated: (N, F) unit rows.
        reference: (N, F), of the reference images.
        other: (N, F), of other true images of the same people.
    """
    apart = angle_between(reference, other)
    ratio = (angle_between(generated, other) - angle_between(generated, reference)) / apart
    return torch.where(apart < MIN_ANGLE, torch.nan, ratio.clamp(-1.0, 1.0))
