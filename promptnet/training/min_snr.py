"""Min-SNR weighting of the denoising loss (Hang et al., arXiv 2303.09556, section 3.4)."""

from __future__ import annotations

import torch


def min_snr_weights(alphas: torch.Tensor, gamma: float, kind: str) -> torch.Tensor:
    """Weights (B,) of the squared errors at alphabar (B,): min(SNR, gamma) of the error in x_0, with SNR = a / (1-a).

    An error in epsilon is sqrt(SNR) times that in x_0, one in v sqrt(SNR + 1) times. So the weights are
    min(SNR, gamma) / SNR = min(1, gamma (1-a) / a) for epsilon and min(SNR, gamma) / (SNR + 1) = min(a, gamma (1-a))
    for v. Written in a, both are finite everywhere. At zero terminal SNR (a = 0) the weight of epsilon is 1, and that
    of v 0: pure noise says nothing of x_0, so by this measure there is nothing to be learnt from it.

    Args:
        alphas: in [0, 1].
        gamma: published 5.
        kind: "epsilon" or "v_prediction".
    """
    rest = gamma * (1 - alphas)
    if kind == "epsilon":
        return (rest / alphas.clamp(min=torch.finfo(alphas.dtype).tiny)).clamp(max=1)
    return torch.minimum(alphas, rest)
