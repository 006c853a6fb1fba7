"""What a merging method declares, and the check of a user's parameters against it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

RUN = 16  # neighbours a sample takes at a time


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method. `symbol` stands for it in short labels; `per_model` ones may differ by expert."""

    name: str
    kind: str  # float, int, bool or choice
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    symbol: str = ""
    per_model: bool = False
    aliases: Mapping[Any, str] = field(default_factory=dict)  # other spellings of a choice

    def problem(self, value) -> str | None:
        """What is wrong with a value, or None."""
        match self.kind:
            case "bool":
                good, wanted = isinstance(value, bool), "true or false"
            case "choice":
                good = value in self.choices or any(value is alias for alias in self.aliases)
                wanted = "one of " + ", ".join(self.choices)
            case _:
                number = isinstance(value, int) or (self.kind == "float" and isinstance(value, float))
                good = number and not isinstance(value, bool) and math.isfinite(value)
                good = good and (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
                wanted = {"float": "a number", "int": "a whole number"}[self.kind] + self._range()
        return None if good else f"{self.name} must be {wanted}, found {value!r}"

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low:g} to {self.high:g}"
        if self.low is not None:
            return f" of at least {self.low:g}"
        return "" if self.high is None else f" of at most {self.high:g}"

    def read(self, value):
        """A checked value in the form the methods use."""
        if self.kind == "float":
            return float(value)
        if self.kind == "choice":
            return self.aliases.get(value, value) if isinstance(value, bool) else value
        return value


@dataclass(frozen=True)
class Group:
    """One tensor of every model of a merge, or a block of whole rows of it, in the compute dtype and of one shape.

    `shared` holds the parameters of the merge, `settings[i]` those of expert i; `keys[i]` is expert i's model digest.
    `start` is the index, in the flattened whole tensor, of the block's first element; `facts` is what the method's
    survey of the whole found. A kernel gets numpy arrays (rows, columns) instead of tensors: float32, or uint16 that
    holds the bits of bfloat16.
    """

    name: str
    base: Tensor | None
    experts: list[Tensor]
    shared: dict[str, Any]
    settings: list[dict[str, Any]]
    keys: list[str]
    seed: int = 0
    start: int = 0
    facts: Any = None

    def deltas(self) -> list[Tensor]:
        """`x_i - b` for each expert."""
        return [expert - self.base for expert in self.experts]

    def weights(self) -> list[float]:
        return [setting["weight"] for setting in self.settings]


class Over(Protocol):
    """A pass over all blocks of a tensor or of a model: the function's results in the blocks' order.

    With a `stride` the blocks hold `runs` of their elements only, for an estimate. `stored(function)` hands over the
    blocks as kernels read them, `stored(function, only=i)` the i-th of them; it is None where no kernels run.
    """

    stored: Callable[..., list] | None

    def __call__(self, function: Callable[[Group], Any], stride: int = 1) -> list: ...


@dataclass(frozen=True)
class Method:
    """A merging method: its declaration, and the pure functions that compute it.

    `merge` makes an output block from a block of the inputs. What it must know of the whole tensor, `survey(over,
    total, shared, settings)` finds before, in passes over its `total` elements; where `whole_model(shared)` is true,
    over all tensors at once. `kernel` names ("module:function") what computes `merge` faster on a CPU, from a block as
    it is stored, to float32 and to the same bits. `check(shared,
    settings)` finds what is wrong between parameters good one by one, as a tensor has them.

    `version` changes whenever the bytes change. `random` methods depend on the seed; `symmetric` ones not on the
    experts' order, but for float64 with `ordered_in_float64`: there the last bits are the published code's, which
    adds in the recipe's order. `needs_base` methods work on deltas, `takes_base` ones do where a base is named.
    `experts` are the least and most that are merged.
    """

    name: str
    summary: str
    paper: str
    needs_base: bool
    parameters: dict[str, Parameter]
    merge: Callable[[Group], Tensor]
    survey: Callable[[Over, int, dict, list[dict]], Any] | None = None
    whole_model: Callable[[dict], bool] = staticmethod(lambda shared: False)
    kernel: str | None = None
    version: int = 1
    random: bool = False
    symmetric: bool = True
    ordered_in_float64: bool = False
    takes_base: bool = False
    experts: tuple[int, int | None] = (1, None)
    check: Callable[[dict, list[dict]], str | None] = staticmethod(lambda shared, settings: None)


def runs(tensor: Tensor, stride: int) -> Tensor:
    """`RUN` neighbours out of every `stride` elements, flattened: reading one costs as much as reading its line."""
    flat = tensor.reshape(-1)
    return flat.unfold(0, RUN, max(stride, RUN)).reshape(-1) if len(flat) >= RUN else flat


def merge_whole(method: Method, group: Group) -> Tensor:
    """A method on whole tensors in memory, its survey included."""

    def over(function, stride=1):
        def sampled(tensor):
            return None if tensor is None else runs(tensor, stride)

        if stride == 1:
            return [function(group)]
        return [function(replace(group, base=sampled(group.base), experts=[sampled(e) for e in group.experts]))]

    total = group.experts[0].numel()
    facts = method.survey(over, total, group.shared, group.settings) if method.survey else None
    return method.merge(replace(group, facts=facts))


def declare(*parameters: Parameter) -> dict[str, Parameter]:
    """Parameters by name, in the order given."""
    return {parameter.name: parameter for parameter in parameters}
