"""A recipe: one merge as data, in mergekit's YAML with `aim` and `random_seed` beside it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merging.digest import json_digest
from merging.errors import InputError
from merging.methods import METHODS, Method, suggest, validate_parameters

AIM_VERSION = 1  # changes whenever the bytes that AIM gives change
Dtype = Literal["float64", "float32", "bfloat16", "float16"]


class Data(BaseModel):
    """Settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelEntry(Data):
    """A model to merge: a local path, hub id or s3 address, and the parameters that are its own."""

    model: str = Field(min_length=1)
    parameters: dict[str, Any] = {}


class Aim(Data):
    """Activation-informed merging: `omega` (1 changes nothing), and the file of the base's statistics, if named."""

    omega: float = Field(0.4, ge=0, le=1)
    statistics: str | None = None


class Recipe(Data):
    """One merge. `Recipe.parse` and `Recipe.load` check it whole; see the methods' own parameters in `METHODS`.

    `dtype` is what the inputs are read as and the output is written in, unless `out_dtype` says otherwise; without
    either both keep the dtype they are stored in. The arithmetic is float64 with `dtype: float64`, else float32.
    """

    merge_method: str
    base_model: str | None = None
    models: list[ModelEntry] = Field(min_length=1)
    parameters: dict[str, Any] = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    random_seed: int = Field(0, ge=0)
    tokenizer_source: str | None = "base"
    chat_template: str | None = None
    aim: Aim | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file. Raises InputError with every problem at once, the file's name before each."""
        try:
            data = yaml.safe_load(Path(path).read_text())
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.parse(data)
        except InputError as error:
            raise InputError([f"{path}: {problem}" for problem in error.problems]) from None

    @classmethod
    def parse(cls, data: Any) -> Recipe:
        """The recipe a dict holds. Raises InputError with every problem at once."""
        if not isinstance(data, Mapping):
            raise InputError(f"recipe: expected keys and values, found {type(data).__name__}")
        problems, recipe = [], None
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            problems = [describe(cls, entry) for entry in error.errors()]
        problems += method_problems(data)
        if problems:
            raise InputError(problems)
        return recipe

    def to_yaml(self) -> str:
        """The recipe as YAML, without what is left at its default."""
        data = self.model_dump(exclude_defaults=True)
        if self.aim:
            data["aim"] = self.aim.model_dump(exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False)

    @property
    def method(self) -> Method:
        return METHODS[self.merge_method]

    @property
    def experts(self) -> list[ModelEntry]:
        """The models that are merged; the base listed among them is no expert of a method that works on deltas.

        For the other methods (linear, karcher) the base is one of the models only if it is listed.
        """
        return [entry for entry in self.models if not (self.works_on_deltas and entry.model == self.base_model)]

    @property
    def symmetric(self) -> bool:
        """Whether the order of the experts changes no byte."""
        return self.method.symmetric and not (self.method.ordered_in_float64 and self.compute_dtype == "float64")

    @property
    def works_on_deltas(self) -> bool:
        return self.method.needs_base or (self.method.takes_base and self.base_model is not None)

    @property
    def inputs(self) -> list[str]:
        """The models a merge reads, as the recipe names them: the base first, each once."""
        named = ([self.base_model] if self.base_model else []) + [entry.model for entry in self.models]
        return list(dict.fromkeys(named))

    @property
    def frame(self) -> str:
        """The model whose config, tokenizer and tensor list the output takes: the base, else the first named."""
        return self.inputs[0]

    @property
    def compute_dtype(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    def shared(self) -> dict[str, Any]:
        """The parameters of the whole merge, defaults filled in."""
        declared = self.method.parameters.values()
        return {p.name: p.read(self.parameters.get(p.name, p.default)) for p in declared if not p.per_model}

    def settings(self, entry: ModelEntry) -> dict[str, Any]:
        """The parameters of one model: its own, else those given for all models, else the defaults."""
        given = {**self.parameters, **entry.parameters}
        return {p.name: p.read(given.get(p.name, p.default)) for p in self.method.parameters.values() if p.per_model}

    def digest(self, models: Mapping[str, str], calibration: str | None) -> str:
        """The digest of the merge's result: equal digests mean equal bytes.

        `models` gives the digest of each of `inputs`. Names and paths do not enter it; the seed does where the method
        is random, `calibration` (a calibration digest) where AIM is asked for.
        """
        experts = [[models[entry.model], self.settings(entry)] for entry in self.experts]
        if self.symmetric:
            experts.sort(key=json_digest)
        return json_digest(
            {
                "merge": [self.merge_method, self.method.version],
                "frame": models[self.frame],
                "base": models[self.base_model] if self.base_model else None,
                "experts": experts,
                "parameters": self.shared(),
                "seed": self.random_seed if self.method.random else None,
                "dtype": [self.dtype or "float32", self.out_dtype or self.dtype],
                "tokenizer": self.tokenizer_source or "base",
                "chat_template": self.chat_template,
                "aim": [AIM_VERSION, self.aim.omega, calibration] if self.aim else None,
            }
        )


def describe(model: type[BaseModel], error: Mapping) -> str:
    """One pydantic error as a line a person can act on."""
    location, name = error["loc"], error["loc"][-1] if error["loc"] else ""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        owner = {"models": ModelEntry, "aim": Aim}.get(location[0], model) if len(location) > 1 else model
        return f"{where}: unknown key {name!r}{suggest(name, owner.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: missing; it must be given"
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}"


def method_problems(data: Mapping) -> list[str]:
    """What is wrong with the method, its parameters and its base, in a recipe that may be malformed elsewhere."""
    name = data.get("merge_method")
    if not isinstance(name, str):
        return []
    parameters = data.get("parameters") or {}
    if name not in METHODS:
        return [f"merge_method: unknown method {name!r}{suggest(name, METHODS)}"]
    method = METHODS[name]
    problems = validate_parameters(name, parameters, "parameters") if isinstance(parameters, Mapping) else []
    entries = data.get("models")
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        own = entry.get("parameters") if isinstance(entry, Mapping) else None
        if not isinstance(own, Mapping):
            continue
        where = f"models[{i}].parameters"
        problems += validate_parameters(name, own, where)
        problems += [
            f"{where}: {key} is for the whole merge; put it in the recipe's own parameters"
            for key in own
            if key in method.parameters and not method.parameters[key].per_model
        ]
    return problems + base_problems(method, data)


def base_problems(method: Method, data: Mapping) -> list[str]:
    """What is wrong between the method, AIM and the base."""
    base, entries = data.get("base_model"), data.get("models")
    if method.needs_base and not base:
        return [f"base_model: {method.name} works on deltas from a base; name it"]
    if data.get("aim") is not None and not base:
        return ["base_model: AIM relaxes towards a base; name it"]
    named = [entry.get("model") for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    on_deltas = method.needs_base or (method.takes_base and base)
    return count_problems(method, len([model for model in named if not (on_deltas and model == base)])) if named else []


def count_problems(method: Method, count: int) -> list[str]:
    """Too few or too many models for a method."""
    least, most = method.experts
    if count >= least and (most is None or count <= most):
        return []
    wanted = f"{least}" if least == most else f"at least {least}"
    beside = " beside the base" if method.needs_base else ""
    return [f"models: {method.name} merges {wanted}{beside}, found {count}"]
