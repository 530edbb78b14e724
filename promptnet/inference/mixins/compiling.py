"""`pipe.compile()`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline


class CompilingMixin(DiffusionPipeline):
    """Compiled networks, for all calls that follow."""

    unet: Any
    promptnet: Any
    _compiled: Any = None

    def compile(self, backend: str = "inductor", *, rank: int = 4) -> None:
        """Compile the transformer blocks of the U-Net and of the encoder (`torch.compile`), once for all subjects.

        The first call at a number of images, a size or an adaptation takes longer, once each. Then tuned and untuned
        subjects and plain prompts run the same code. Adapted sizes and mixed edits are included. Customising and
        learning an edit go through the same blocks, which then are compiled for gradients, too.

        Args:
            backend: of `torch.compile`.
            rank: of the largest tuned subject; a larger one compiles once more.

        Raises:
            ValueError: the blocks are compiled already, or the backend is not known.
        """
        import torch

        from promptnet.inference.sampling.compiled import CompiledNetworks
        from promptnet.inference.values import whole

        if self._compiled is not None and self._compiled.unet is self.unet:
            raise ValueError("This pipeline is compiled already.")
        known = torch._dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"backend={backend!r} must be one of {', '.join(known)}.")
        self._compiled = CompiledNetworks(self.unet, self.promptnet, backend=backend, rank=whole("rank", rank, 1))

    @property
    def num_compilations(self) -> int:
        """How many graphs `compile` has made so far."""
        return 0 if self._compiled is None else self._compiled.num_compilations

    def _compiled_calls(self) -> AbstractContextManager[None]:
        """The context of a call's U-Net evaluations."""
        compiled = self._compiled
        return compiled.calls() if compiled is not None and compiled.unet is self.unet else nullcontext()
