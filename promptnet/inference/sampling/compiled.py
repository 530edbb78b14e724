"""A pipeline's networks compiled block by block, for people that come and go.

Compiled code is made anew where shapes change, or where something is asked of a layer that was not. So the U-Net's
calls always bring LoRA layers, in stacks of one rank, zero for rows without a tuned subject: an untuned subject, a
tuned one and a plain prompt run the same code. What stays is one compilation for each number of rows, image size and
adaptation.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from promptnet.inference.sampling.loop import Mode, UNetInputs, call_alone, evaluated_by, has_evaluator
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.subject.lora import (
    LoRALayers,
    RowLoRAs,
    applied_stacks,
    install_slots,
    key_value_layers,
)
from promptnet.inference.subject.lora_buffers import LoRABuffers

# Blocks of one class share a limit of compilations: widths times numbers of rows times sizes, 8 if nobody says more.
_MOST_COMPILATIONS = 128


class CompiledNetworks:
    """The U-Net and the encoder of a pipeline with compiled blocks.

    Args:
        unet: whose transformer blocks are compiled.
        promptnet: whose are, too; None where there is none.
        backend: of `torch.compile`.
        rank: of the LoRA stacks; a subject of a larger one makes them larger, and compiles once more.
        rows: of the largest batch of evaluations; larger ones make the stacks larger, without compiling.
    """

    def __init__(self, unet: Any, promptnet: Any, *, backend: str = "inductor", rank: int = 4, rows: int = 16) -> None:
        self.unet, self.rank, self.rows = unet, rank, rows
        self.num_compilations = 0
        self._layers = key_value_layers(unet)
        self._buffers = LoRABuffers(self._layers, rows, rank)
        self._lock, self._inside = threading.Lock(), 0
        install_slots(self._layers)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_COMPILATIONS)
        for network in filter(None, (unet, promptnet)):
            network.compile_repeated_blocks(backend=self._counting(backend), dynamic=False)

    def _counting(self, name: str) -> Callable[..., Any]:
        compile_graph = torch._dynamo.lookup_backend(name)

        def backend(graph: Any, inputs: Any, **options: Any) -> Any:
            self.num_compilations += 1
            return compile_graph(graph, inputs, **options)

        return backend

    @contextmanager
    def calls(self) -> Iterator[None]:
        """For the length of the block, this thread's U-Net calls bring stacks of one rank.

        Drawings that share their evaluations (`together`) have stacks of their own. When the last block ends, nobody's
        layers stay.
        """
        if has_evaluator():
            yield
            return
        with self._lock:
            self._inside += 1
        try:
            with evaluated_by(self._evaluate):
                yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._buffers.forget()

    def _evaluate(self, unet: nn.Module, x: Tensor, step: Step, inputs: UNetInputs, mode: Mode | None) -> Tensor:
        loras = _rows_of(inputs, len(x))
        if unet is not self.unet or torch.is_grad_enabled():
            return call_alone(unet, x, step, inputs, mode)
        with self._lock:
            buffers = self._fitting(loras)
            if buffers is None:
                return call_alone(unet, x, step, inputs, mode)
            plain = UNetInputs(inputs.encoder_hidden_states, inputs.extra)
            with self._filled(buffers, loras):
                return call_alone(unet, x, step, plain, mode)

    @contextmanager
    def _filled(self, buffers: LoRABuffers, loras: Sequence[LoRALayers | None]) -> Iterator[None]:
        with torch.no_grad():
            stacks = buffers.filled(loras)
        with applied_stacks(self.unet, stacks, len(loras)):
            yield

    def _fitting(self, loras: Sequence[LoRALayers | None]) -> LoRABuffers | None:
        """Stacks that hold these rows; None where a subject's layers are not of keys and values."""
        if any(name not in self._layers for one in loras for name in one or {}):
            return None
        if not self._buffers.fits(loras):
            self.rank = max([self.rank, *(lora.rank for one in loras for lora in (one or {}).values())])
            self.rows = max(self.rows, len(loras))
            self._buffers = LoRABuffers(self._layers, self.rows, self.rank)
        return self._buffers if self._buffers.fits(loras) else None


def _rows_of(inputs: UNetInputs, num_rows: int) -> Sequence[LoRALayers | None]:
    given = inputs.loras
    if given is None or not len(given):
        return [None] * num_rows
    return given.rows if isinstance(given, RowLoRAs) else given
