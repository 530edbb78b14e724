"""Metrics on records, images and feature vectors."""

from typing import TYPE_CHECKING

from promptnet.io.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from promptnet.metrics.bootstrap import Interval, difference, interval
    from promptnet.metrics.clip_models import load_clip_model
    from promptnet.metrics.fid import fid
    from promptnet.metrics.identity import IdentityScorer
    from promptnet.metrics.judge import load_judge
    from promptnet.metrics.kid import kid, unpaired_kid
    from promptnet.metrics.scores import harmonic, rescaled

__all__ = [
    "IdentityScorer",
    "Interval",
    "difference",
    "fid",
    "harmonic",
    "interval",
    "kid",
    "load_clip_model",
    "load_judge",
    "rescaled",
    "unpaired_kid",
]

_HOMES = {
    "IdentityScorer": "identity",
    "Interval": "bootstrap",
    "difference": "bootstrap",
    "fid": "fid",
    "harmonic": "scores",
    "interval": "bootstrap",
    "kid": "kid",
    "load_clip_model": "clip_models",
    "load_judge": "judge",
    "rescaled": "scores",
    "unpaired_kid": "kid",
}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
