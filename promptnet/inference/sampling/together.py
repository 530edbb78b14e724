"""Many users in one batch: evaluations of drawings in several threads are joined, at whatever steps these are.

Each drawing keeps its own loop, scheduler and generators, and asks for U-Net evaluations as it goes. Here those that
can share a batch (one U-Net, one size, one kind of conditions) become one call: latents, timesteps and conditions row
by row, LoRA layers in stacks of constant shape in which rows without a subject are zero. One of the waiting threads
makes the call for all. A drawing that has just begun is in the next call; nobody waits longer than for that.

A row's result does not depend on who shares its batch, but for the rounding of kernels that depend on its size.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from promptnet.inference.sampling.loop import (
    Mode,
    UNetInputs,
    call_alone,
    evaluated_by,
    join_inputs,
    shape_of,
)
from promptnet.inference.sampling.schedule import Step
from promptnet.inference.subject.lora import LoRALayers, RowLoRAs, applied_stacks, key_value_layers
from promptnet.inference.subject.lora_buffers import LoRABuffers


@dataclass(eq=False)
class _Asked:
    """One thread's evaluation, and what became of it."""

    unet: nn.Module
    x: Tensor
    step: Step
    inputs: UNetInputs
    mode: Mode | None
    user: str
    since_s: float
    result: Tensor | None = None
    error: BaseException | None = None
    taken: bool = False

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def loras(self) -> Sequence[LoRALayers | None]:
        given = self.inputs.loras
        if given is None or not len(given):
            return [None] * self.rows
        return given.rows if isinstance(given, RowLoRAs) else given

    def kind(self) -> Any:
        """What evaluations of one call have in common; those in a mode of their own also the step."""
        states, extra = self.inputs.encoder_hidden_states, self.inputs.extra
        mode = None if self.mode is None else (self.mode, float(self.step.timestep))
        return id(self.unet), shape_of(self.x), shape_of(states), repr(shape_of(extra)), mode


class Together:
    """Joins the U-Net calls of the threads that are inside `joined`.

    Args:
        unet: whose calls are joined; others are made alone.
        max_rows: of one call; halved where the device's memory does not hold them.
        rank: of the LoRA buffers; larger layers let them grow.
        wait_s: how long a thread waits for others that compute something else meanwhile.
    """

    def __init__(self, unet: nn.Module, max_rows: int = 32, rank: int = 8, wait_s: float = 0.02) -> None:
        self.unet, self.max_rows, self.wait_s = unet, max_rows, wait_s
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self._rank = rank
        self._buffers: LoRABuffers | None = None
        self._changed = threading.Condition()
        self._waiting: list[_Asked] = []
        self._inside, self._calling = 0, False

    @contextmanager
    def joined(self, user: str = "") -> Iterator[None]:
        """For the length of the block this thread's drawing shares its evaluations.

        Args:
            user: whose it is: where not all fit into a call, users take turns.
        """

        def evaluate(unet: nn.Module, x: Tensor, step: Step, inputs: UNetInputs, mode: Mode | None) -> Tensor:
            if unet is not self.unet or torch.is_grad_enabled():
                return call_alone(unet, x, step, inputs, mode)
            return self._ask(_Asked(unet, x, step, inputs, mode, user, time.monotonic()))

        with self._changed:
            self._inside += 1
        try:
            with evaluated_by(evaluate):
                yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside and self._buffers is not None and not self._calling:
                    self._buffers.forget()  # nobody's layers stay
                self._changed.notify_all()

    def _ask(self, asked: _Asked) -> Tensor:
        with self._changed:
            self._waiting.append(asked)
            self._changed.notify_all()
        while not asked.done:
            with self._changed:
                while not asked.done and not self._may_call(asked):
                    self._changed.wait(self.wait_s)
                if asked.done:
                    break
                chosen = self._chosen()
                self._calling = True
            self._call(chosen)
        if asked.error is not None:
            raise asked.error
        assert asked.result is not None
        return asked.result

    def _may_call(self, asked: _Asked) -> bool:
        """Whether this thread makes the next call: nobody does, and there is nobody to wait for any longer."""
        if self._calling or asked.taken:
            return False
        return len(self._waiting) >= self._inside or time.monotonic() - asked.since_s >= self.wait_s

    def _chosen(self) -> list[_Asked]:
        """Those of the oldest one's kind, users in turn, as many as fit."""
        kind = self._waiting[0].kind()
        turns: Counter[str] = Counter()
        ordered = []
        for asked in self._waiting:
            if asked.kind() == kind:
                ordered.append((turns[asked.user], asked.since_s, len(ordered), asked))
                turns[asked.user] += 1
        chosen: list[_Asked] = []
        for *_, asked in sorted(ordered, key=lambda entry: entry[:3]):
            if not chosen or sum(one.rows for one in chosen) + asked.rows <= self.max_rows:
                chosen.append(asked)
        for asked in chosen:
            asked.taken = True
        self._waiting = [asked for asked in self._waiting if not asked.taken]
        return chosen

    def _call(self, chosen: list[_Asked]) -> None:
        start_s = time.perf_counter()
        try:
            for asked, result in zip(chosen, self._evaluated(chosen), strict=True):
                asked.result = result
        except torch.OutOfMemoryError as error:
            self._make_smaller(chosen, error)
        except BaseException as error:
            self._alone(chosen, error)
        finally:
            with self._changed:
                self.counts["unet_calls"] += 1
                self.counts["unet_rows"] += sum(asked.rows for asked in chosen)
                self.seconds += time.perf_counter() - start_s
                self._calling = False
                self._changed.notify_all()

    def _make_smaller(self, chosen: list[_Asked], error: BaseException) -> None:
        """Half as many rows from now on; those that were too many are asked again, and one alone has failed."""
        if len(chosen) == 1:
            chosen[0].error = error
            return
        with self._changed:
            self.max_rows = max(1, sum(asked.rows for asked in chosen) // 2)
            for asked in chosen:
                asked.taken = False
            self._waiting = [*chosen, *self._waiting]

    def _alone(self, chosen: list[_Asked], error: BaseException) -> None:
        """An error is of one of them; each finds out alone."""
        if len(chosen) == 1:
            chosen[0].error = error
            return
        for asked in chosen:
            try:
                (asked.result,) = self._evaluated([asked])
            except BaseException as own:
                asked.error = own

    def _evaluated(self, chosen: Sequence[_Asked]) -> list[Tensor]:
        first, counts = chosen[0], [asked.rows for asked in chosen]
        loras = [one for asked in chosen for one in asked.loras]
        buffers = self._buffers_for(loras)
        if buffers is None:
            return [call_alone(asked.unet, asked.x, asked.step, asked.inputs, asked.mode) for asked in chosen]
        inputs = join_inputs([replace(asked.inputs, loras=None) for asked in chosen])
        timesteps = torch.cat([asked.step.timestep.to(asked.x.device).expand(asked.rows) for asked in chosen])
        step = replace(first.step, timestep=timesteps) if len(set(map(float, timesteps))) > 1 else first.step
        with applied_stacks(first.unet, buffers.filled(loras), len(loras)), torch.no_grad():
            output = call_alone(first.unet, torch.cat([asked.x for asked in chosen]), step, inputs, first.mode)
        return list(output.split(counts))

    def _buffers_for(self, loras: Sequence[LoRALayers | None]) -> LoRABuffers | None:
        """Buffers that hold these rows, grown where they are too small; None where a layer is not of keys or values."""
        if self._buffers is not None and self._buffers.fits(loras):
            return self._buffers
        layers = key_value_layers(self.unet)
        if any(name not in layers for one in loras for name in one or {}):
            return None
        self._rank = max([self._rank, *(lora.rank for one in loras for lora in (one or {}).values())])
        self._buffers = LoRABuffers(layers, max(self.max_rows, len(loras)), self._rank)
        return self._buffers if self._buffers.fits(loras) else None
