"""Parameters that vary over a model, as mergekit writes them: by tensor name, and as a gradient over the layers.

A setting is a value; a list of values, a gradient from the first layer to the last; or a list of `{filter, value}`, of
which the first whose filter is part of the tensor's name holds (no filter, or `*`, holds for all). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merging.methods.definition import Parameter


def is_plain(setting: Any) -> bool:
    """Whether a setting is one value for the whole model."""
    return not isinstance(setting, list | tuple | Mapping)


def is_conditional(setting: Any) -> bool:
    return isinstance(setting, Mapping) or (
        isinstance(setting, list | tuple) and any(isinstance(item, Mapping) for item in setting)
    )


def problems(parameter: Parameter, setting: Any) -> list[str]:
    """What is wrong with a setting, each of its values included; [] when all is good."""
    if is_plain(setting):
        problem = parameter.problem(setting)
        return [problem] if problem else []
    if not setting:
        return [f"{parameter.name}: an empty list says nothing"]
    if not is_conditional(setting):
        if not all(map(is_plain, setting)):
            return [f"{parameter.name}: a gradient is a list of values, found {setting!r}"]
        return [problem for value in setting if (problem := parameter.problem(value))]
    found = []
    for condition in [setting] if isinstance(setting, Mapping) else setting:
        if not isinstance(condition, Mapping) or not {"value"} <= set(condition) <= {"value", "filter"}:
            found.append(f"{parameter.name}: expected {{filter, value}}, found {condition!r}")
        elif condition.get("filter") is not None and not isinstance(condition["filter"], str):
            found.append(f"{parameter.name}: a filter is a part of a tensor's name, found {condition['filter']!r}")
        elif is_conditional(condition["value"]):
            found.append(f"{parameter.name}: conditions cannot be nested")
        else:
            found += problems(parameter, condition["value"])
    return found


def evaluate(parameter: Parameter, setting: Any, tensor: str, t: float) -> Any:
    """A setting's value for a tensor at `t` (0 the first layer, 1 the last); None where no filter holds."""
    if is_plain(setting):
        return parameter.read(setting)
    if is_conditional(setting):
        for condition in [setting] if isinstance(setting, Mapping) else setting:
            wanted = condition.get("filter")
            if wanted in (None, "*") or wanted in tensor:
                return evaluate(parameter, condition["value"], tensor, t)
        return None
    values = [parameter.read(value) for value in setting]
    position = t * (len(values) - 1)
    if parameter.kind != "float":
        return values[int(position)]
    first = int(position)
    second, share = min(first + 1, len(values) - 1), position - first
    return (1 - share) * values[first] + share * values[second]


def resolve(parameter: Parameter, scopes: Sequence[Mapping], tensor: str, t: float) -> Any:
    """A parameter's value for a tensor: from the first scope that gives one, else the default."""
    for scope in scopes:
        if parameter.name in scope:
            value = evaluate(parameter, scope[parameter.name], tensor, t)
            if value is not None:
                return value
    return parameter.read(parameter.default)


def canonical(parameter: Parameter, scopes: Sequence[Mapping]) -> Any:
    """A parameter's settings as they enter a digest: its value where that is plain."""
    given = []
    for scope in scopes:
        if parameter.name in scope:
            setting = scope[parameter.name]
            if is_plain(setting) and not given:
                return parameter.read(setting)
            given.append(parameter.read(setting) if is_plain(setting) else setting)
            if is_plain(setting):
                return given
    return [*given, parameter.read(parameter.default)] if given else parameter.read(parameter.default)
