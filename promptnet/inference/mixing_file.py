"""An edit card on disk; it tells nothing about anybody, so anybody may read it."""

from pathlib import Path

from promptnet.inference.mixing import MixingError, MixingWeights
from promptnet.io.artifacts import FileKind, Tensors, Texts

KIND = FileKind(
    key="promptnet.mixing",
    version=1,
    max_bytes=1024 * 1024,
    error=MixingError,
    title="Edit card",
    noun="an edit card",
    maker="promptnet optimize-edit",
    again="learn the edit again",
    mode=0o644,
)


def save_card(card: MixingWeights, path: Path) -> None:
    """See `MixingWeights.save`."""
    KIND.save(path, card.texts(), {"weights": card.weights})


def load_card(path: Path) -> MixingWeights:
    """See `MixingWeights.load`."""
    return KIND.load(path, _assembled)


def _assembled(texts: Texts, tensors: Tensors) -> MixingWeights:
    return MixingWeights(**tensors, **texts)
