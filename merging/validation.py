"""Says what a person mistook in lines they can act on: what was found, where, what is valid. Imports no torch."""

from __future__ import annotations

import difflib
import types
import typing

from pydantic import BaseModel, ValidationError


def suggest(word: str, valid: typing.Iterable[str]) -> str:
    """What follows a misspelt `word`: "; did you mean X?" where a valid one is near, and the list of all."""
    valid = list(valid)
    near = difflib.get_close_matches(str(word), valid, n=1)
    return "; " + (f"did you mean {near[0]}? " if near else "") + f"valid: {', '.join(valid)}"


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """One line per mistake in `error`, each beginning with `where` and the path to the value, as models[0].weight."""
    return list(dict.fromkeys(_explain_one(item, model, where) for item in error.errors(include_url=False)))


def _explain_one(item: typing.Any, model: type[BaseModel], where: str) -> str:
    parts = [part for part in item["loc"] if not _is_internal(part)]
    if item["type"] == "extra_forbidden" and _is_internal(item["loc"][-1]):
        parts.append(item["loc"][-1])  # what the user wrote only looks like pydantic's own
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")
    place = ": ".join(filter(None, [where, path]))
    if item["type"] == "extra_forbidden":
        return f"{place}: unknown key{suggest(str(item['loc'][-1]), _keys_at(model, item['loc'][:-1]))}"
    if item["type"] == "missing":
        return f"{place}: missing; it is required"
    message = item["msg"].removeprefix("Value error, ")
    found = item["input"]
    short = isinstance(found, str | int | float | bool) and item["type"] != "value_error"
    return f"{place}: {message[0].lower()}{message[1:]}" + (f", found {found!r}" if short else "")


def _is_internal(part: object) -> bool:
    """Pydantic puts the tags of union branches and validators into the path."""
    return isinstance(part, str) and any(mark in part for mark in "[(")


def _keys_at(model: type[BaseModel], loc: tuple[typing.Any, ...]) -> list[str]:
    """The valid keys of the model that `loc` leads to, starting at `model`."""
    for part in loc:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                break
            model = inner
    return [field.alias or name for name, field in model.model_fields.items() if not field.exclude]


def _model_in(annotation: typing.Any) -> type[BaseModel] | None:
    """The pydantic model inside list[...], dict[..., ...], Optional[...] or Annotated[...]."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_in(arg))), None)
