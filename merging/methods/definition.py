"""What a merging method declares, and the check of a user's parameters against it. Imports no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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
    """One tensor of every model of a merge, in the compute dtype and of one shape.

    `shared` holds the parameters of the merge, `settings[i]` those of expert i; `keys[i]` is expert i's model digest.
    """

    name: str
    base: Tensor | None
    experts: list[Tensor]
    shared: dict[str, Any]
    settings: list[dict[str, Any]]
    keys: list[str]
    seed: int = 0
    survey: Any = None

    def deltas(self) -> list[Tensor]:
        """`x_i - b` for each expert."""
        return [expert - self.base for expert in self.experts]

    def weights(self) -> list[float]:
        return [setting["weight"] for setting in self.settings]


@dataclass(frozen=True)
class Method:
    """A merging method: its declaration, and the pure function that computes it.

    `version` changes whenever the bytes it gives change. `random` ones depend on the seed; `symmetric` ones not on
    the order of the experts. `survey`, where there is one, looks at the whole model before the first tensor is merged.
    """

    name: str
    summary: str
    paper: str
    needs_base: bool
    parameters: dict[str, Parameter]
    merge: Callable[[Group], Tensor]
    version: int = 1
    random: bool = False
    symmetric: bool = True
    survey: Callable | None = None


def declare(*parameters: Parameter) -> dict[str, Parameter]:
    """Parameters by name, in the order given."""
    return {parameter.name: parameter for parameter in parameters}


def suggest(word: str, known) -> str:
    """`; did you mean X?` where a known word is close, and what is known otherwise."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
