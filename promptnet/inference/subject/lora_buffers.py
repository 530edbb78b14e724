"""LoRA layers of many users in tensors of one shape, which compiled code and graphs keep reading at one address."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from promptnet.inference.subject.lora import LoRALayers, Stacks, base_layer, matrix_shape


class LoRABuffers:
    """Stacks of one shape for many batches: A (B, R, d_in) and B (B, d_out, R) in every layer, zero in rows without.

    They are filled in place, so that compiled code and graphs that read these addresses stay valid whoever is in the
    batch. They belong to one worker, which fills and reads them behind its own lock.

    Args:
        layers: by name, such as `key_value_layers(unet)`.
        num_rows: B, of the largest batch.
        rank: R, of the largest LoRA layer.
    """

    def __init__(self, layers: Mapping[str, nn.Module], num_rows: int, rank: int) -> None:
        self.num_rows, self.rank = num_rows, rank
        self._stacks: dict[str, tuple[Tensor, Tensor]] = {}
        for name, layer in layers.items():
            (d_out, d_in), like = matrix_shape(name, layer), base_layer(layer).get_parameter("weight")
            zeros = like.detach().new_zeros
            self._stacks[name] = zeros(num_rows, rank, d_in), zeros(num_rows, d_out, rank)
        self._owners: list[LoRALayers | None] = [None] * num_rows
        self._torn: set[int] = set()  # rows that something interrupted: what is in them is not known

    def fits(self, row_loras: Sequence[LoRALayers | None]) -> bool:
        """Whether these rows' layers are among ours, with no larger rank and no other shape."""
        return len(row_loras) <= self.num_rows and all(
            name in self._stacks
            and lora.rank <= self.rank
            and lora.shape == (self._stacks[name][1].shape[1], self._stacks[name][0].shape[2])
            for loras in row_loras
            for name, lora in (loras or {}).items()
        )

    def filled(self, row_loras: Sequence[LoRALayers | None]) -> Stacks:
        """The stacks of the first rows with these LoRA layers in them; rows that kept their owner are not copied.

        Args:
            row_loras: for each row the LoRA layers by name, or None; all of them `fits`.
        """
        for row, loras in enumerate(row_loras):
            if self._owners[row] is not loras or row in self._torn:
                before = None if row in self._torn else self._owners[row] or {}
                self._torn.add(row)
                self._put(row, loras or {}, before)
                self._owners[row] = loras
                self._torn.discard(row)
        count = len(row_loras)
        return {name: (A[:count], B[:count]) for name, (A, B) in self._stacks.items()}

    def forget(self) -> None:
        """Empty every row, and let go of those who were in them."""
        self.filled([None] * self.num_rows)

    def _put(self, row: int, loras: LoRALayers, before: LoRALayers | None) -> None:
        """Copy layers into a row, and zero what the row's owner before had beyond them; None is anything."""
        zeros, targets, sources = list[Tensor](), list[Tensor](), list[Tensor]()
        for name, (A, B) in self._stacks.items():
            lora = loras.get(name)
            rank = 0 if lora is None else lora.rank
            used = self.rank if before is None else before[name].rank if name in before else 0
            if used > rank:
                zeros += [A[row, rank:used], B[row, :, rank:used]]
            if lora is not None:
                targets += [A[row, :rank], B[row, :, :rank]]
                sources += [lora.A, lora.B]
        if zeros:
            torch._foreach_zero_(zeros)
        if targets:
            torch._foreach_copy_(targets, sources)
