"""How a merge is informed by activations: not at all, by AIM, by ACM, or by one of ACM's controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

CONTROLS = {"acm": None, "acm_uniform": "uniform", "acm_shuffled": "shuffled"}
WAYS = ("plain", "aim", *CONTROLS)


@dataclass(frozen=True)
class Way:
    """One way to inform a merge: its name among WAYS, AIM's omega, ACM's t."""

    name: str = "plain"
    omega: float | None = None
    t: float | None = None

    @property
    def label(self) -> str:
        """What stands behind the method in a candidate's name: `+aim(w=0.4)`, `+acm(t=0.7)`."""
        if self.omega is not None:
            return f"+{self.name}(w={self.omega:g})"
        return "" if self.t is None else f"+{self.name}(t={self.t:g})"

    @property
    def keys(self) -> dict[str, Any]:
        """The keys of a recipe that ask for it."""
        if self.omega is not None:
            return {"aim": {"omega": self.omega}}
        return {} if self.t is None else {"acm": {"t": self.t, "control": CONTROLS[self.name]}}

    def replaces_parameters(self, method: str) -> bool:
        """Whether a method's parameters have no effect: ACM takes the place of all that task arithmetic has."""
        return self.t is not None and method == "task_arithmetic"


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _not_zero(t: float) -> float:
    if t == 0:
        raise ValueError("0 makes lambda 0.5 everywhere; use 0.7, as published, or another number above 0")
    return t


T = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_not_zero)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AimGrid(_Part):
    omega: Annotated[list[Annotated[float, Field(ge=0, le=1)]], BeforeValidator(_as_list), Field(min_length=1)] = [0.4]


class AcmGrid(_Part):
    t: Annotated[list[T], BeforeValidator(_as_list), Field(min_length=1)] = [0.7]


class Informed(_Part):
    """An entry of a study's `informed`: the word `plain`, or one way with its settings; a word alone has the defaults.

    `acm_uniform` and `acm_shuffled` are ACM's controls: the mean lambda everywhere, and the lambdas in another order.
    """

    aim: AimGrid | None = None
    acm: AcmGrid | None = None
    acm_uniform: AcmGrid | None = None
    acm_shuffled: AcmGrid | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if value == "plain":
            return {}
        if isinstance(value, str):
            if value not in WAYS:
                raise ValueError(f"{value!r} is not a way to inform a merge; valid: {', '.join(WAYS)}")
            return {value: {}}
        if not isinstance(value, dict):
            return value
        if [*value.values()] == [None]:  # `- acm:` in YAML
            return {name: {} for name in value}
        named = [str(name) for name, settings in value.items() if settings is not None]
        if len(named) > 1:
            raise ValueError(f"found {', '.join(named)} in one entry; give each an entry of its own")
        return value

    @property
    def by_acm(self) -> bool:
        return any(getattr(self, name) for name in CONTROLS)

    def ways(self) -> list[Way]:
        """What the entry spans, in the file's order."""
        if self.aim:
            return [Way("aim", omega=omega) for omega in self.aim.omega]
        found = [Way(name, t=t) for name in CONTROLS if (grid := getattr(self, name)) for t in grid.t]
        return found or [Way()]
