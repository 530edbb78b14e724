"""Metrics on records, images and feature vectors."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.metrics.bootstrap import Interval, difference, interval
    from promptnet.metrics.identity import IdentityScorer
    from promptnet.metrics.judge import load_judge
    from promptnet.metrics.kid import kid
    from promptnet.metrics.scores import harmonic, rescaled

__all__ = [
    "IdentityScorer",
    "Interval",
    "difference",
    "harmonic",
    "interval",
    "kid",
    "load_judge",
    "rescaled",
]

_HOMES = {
    "IdentityScorer": "identity",
    "Interval": "bootstrap",
    "difference": "bootstrap",
    "harmonic": "scores",
    "interval": "bootstrap",
    "kid": "kid",
    "load_judge": "judge",
    "rescaled": "scores",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
