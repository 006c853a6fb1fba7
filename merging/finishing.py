"""Where merged blocks go: relaxed, rounded to what is stored, their change measured, handed on to be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from merging import aim
from merging.preflight import Output

Put = Callable[[str, torch.Tensor, int], None]
Factor = torch.Tensor | float | None


@dataclass
class Target:
    """Where a merge's tensors go, `put(name, piece, start)`; those not in `outputs` are there already.

    `factor(name)` is what a tensor's change is multiplied by: a vector over the last dimension, a number, or None to
    leave it; no `factor` leaves all. `squares` collects the changes' sums of squares by tensor, where there is a base.
    """

    outputs: Mapping[str, Output]
    put: Put
    factor: Callable[[str], Factor] | None = None
    squares: dict[str, float] = field(default_factory=dict)

    def factor_of(self, name: str, dtype: torch.dtype, device: str) -> torch.Tensor | None:
        """The factor of a tensor, on a device: (columns,) or a scalar."""
        found = self.factor(name) if self.factor and name in self.outputs else None
        return None if found is None else torch.as_tensor(found, dtype=dtype, device=device)

    def take(self, name: str, start: int, base, merged: torch.Tensor, factor) -> float | None:
        """Finish a block of a tensor, merged in the compute dtype. The sum of squares of the change, given a base."""
        if name not in self.outputs:
            return None
        if factor is not None:
            merged = aim.scaled(base, merged, factor)
        self.put(name, merged.to(self.outputs[name].dtype).cpu(), start)
        if base is None:
            return None
        change = (merged - base).flatten()
        return float(torch.dot(change, change))

    def take_array(self, name: str, start: int, base, merged, factor) -> float | None:
        """The same for a kernel's block: `merged` float32, `base` as it is stored, numpy arrays (rows, columns)."""
        if name not in self.outputs:
            return None
        import numpy

        from merging.kernels.finish import finish

        dtype = self.outputs[name].dtype
        short = dtype == torch.bfloat16
        across = None if factor is None else factor.expand(merged.shape[1]).contiguous().numpy()
        stored, square = finish(merged, base, across, numpy.uint16 if short else numpy.float32)
        piece = torch.from_numpy(stored)
        self.put(name, piece.view(torch.bfloat16) if short else piece.to(dtype), start)
        return None if base is None else square
