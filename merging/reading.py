"""Blocks of the inputs: as they are stored, for the kernels, or widened to the compute dtype on a device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from merging.errors import InputError
from merging.inputs import Model
from merging.methods.definition import runs

Tensor = tuple[str, str]  # a model's name, and the name of a tensor in it
Rows = tuple[int, int]  # the rows [first, end) of an output tensor


class Reader:
    """The inputs of a merge, read block by block. NaN and Inf are refused wherever they are met."""

    def __init__(self, models: Mapping[str, Model], dtype: torch.dtype, read_as: torch.dtype | None, device: str):
        """Inputs are read as the dtype `read_as` (None: as stored), computed with in `dtype` on `device`."""
        self.models, self.dtype, self.read_as, self.device = models, dtype, read_as, device

    def stored(self, tensor: Tensor, rows: Rows) -> torch.Tensor:
        """A block in the dtype it is stored in, or read as, on the CPU."""
        found = self.models[tensor[0]].rows(tensor[1], *rows)
        return found.to(self.read_as) if self.read_as else found

    def wide(self, wanted: Iterable[Tensor], rows: Rows) -> dict[Tensor, torch.Tensor]:
        """A block of each input in the compute dtype. Raises InputError if one is found not to be finite."""
        found: dict[Tensor, torch.Tensor] = {}
        for tensor in wanted:
            if tensor in found:
                continue
            found[tensor] = self.stored(tensor, rows).to(self.device).to(self.dtype)
            if not is_finite(found[tensor]):
                raise self.not_finite(tensor)
        return found

    def sample(self, wanted: Iterable[Tensor], rows: Rows, stride: int) -> dict[Tensor, torch.Tensor]:
        """`RUN` neighbours out of every `stride` elements of a block of each input, flattened, in the compute dtype."""
        return {tensor: runs(self.stored(tensor, rows), stride).to(self.device).to(self.dtype) for tensor in wanted}

    def arrays(self, wanted: Iterable[Tensor], rows: Rows) -> dict:
        """A block of each input as kernels read it, (rows, columns): uint16 if all are bfloat16, else float32."""
        found = {tensor: self.stored(tensor, rows) for tensor in wanted}
        short = all(block.dtype == torch.bfloat16 for block in found.values())
        return {
            tensor: (block.view(torch.uint16) if short else block.float()).reshape(shape_of(block)).numpy()
            for tensor, block in found.items()
        }

    def fetch_ahead(self, tensors: Iterable[Tensor]) -> int:
        """Have the kernel read tensors from disk in the background. How many bytes that is."""
        return sum(
            self.models[model].checkpoint.fetch_ahead(self.models[model].stored(name)) for model, name in set(tensors)
        )

    def not_finite(self, tensor: Tensor) -> InputError:
        model = self.models[tensor[0]]
        what = f"{model.checkpoint.folder}: tensor {tensor[1]} holds"
        if is_finite(model.checkpoint.read(model.stored(tensor[1]))):
            dtype = str(self.read_as or self.dtype).removeprefix("torch.")
            return InputError(f"{what} numbers too large for {dtype}, which the merge reads; choose a wider dtype")
        return InputError(f"{what} NaN or Inf; this checkpoint is damaged")


def shape_of(block: torch.Tensor) -> tuple[int, int]:
    """Rows and columns; a vector is one row."""
    return (len(block), block[0].numel() if len(block) else 0) if block.dim() > 1 else (1, block.numel())


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite. The sum settles it in one cheap pass, unless it overflows."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())
