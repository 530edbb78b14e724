"""The image cache of a renderer's images."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from promptnet.evaluation.harness.image_cache import ImageCache
from promptnet.evaluation.harness.methods import Method
from promptnet.evaluation.harness.renderer import image_size, weight_hashes
from promptnet.evaluation.harness.workers import RendererSpec


@contextlib.contextmanager
def renderer_cache(spec: RendererSpec, methods: Sequence[Method], folder: Path | None) -> Iterator[ImageCache]:
    """Yield the image cache: in the output folder, or in a temporary one."""
    size_px, weights = image_size(spec.base), weight_hashes(spec.base, methods)
    if folder is not None:
        yield ImageCache(folder / "pictures", weights, spec.steps, size_px)
        return
    with tempfile.TemporaryDirectory() as passing:
        yield ImageCache(Path(passing), weights, spec.steps, size_px)
