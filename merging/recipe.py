"""A recipe: one merge as data, in mergekit's YAML with `aim` and `random_seed` beside it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from merging.calibration_choice import CalibrationChoice
from merging.digest import json_digest
from merging.errors import InputError
from merging.methods import METHODS, Method
from merging.recipe_problems import TOKENIZER_WORDS, acm_problems, method_problems, tokenizer_problems
from merging.settings import canonical, resolve
from merging.validation import explain
from merging.yaml_file import read_yaml

AIM_VERSION = 2  # changes whenever the bytes that AIM gives change
ACM_VERSION = 1  # likewise for ACM
MERGED = "merged"  # stands for the plain merge where ACM needs to know what was measured
VOCABULARY_VERSION = 1  # changes whenever rows are matched with tokens in another way
Dtype = Annotated[
    Literal["float64", "float32", "bfloat16", "float16"],
    BeforeValidator(lambda value: value.removeprefix("torch.") if isinstance(value, str) else value),
]
Parameters = Annotated[
    dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)
]  # a key left empty


class Data(BaseModel):
    """Settings that refuse what they do not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelEntry(Data):
    """A model to merge: a local path, hub id or s3 address, and the parameters that are its own."""

    model: str = Field(min_length=1)
    parameters: Parameters = {}


class Source(Data):
    """A model's layers [first, end) that go into a slice."""

    model: str = Field(min_length=1)
    layer_range: tuple[int, int]
    parameters: Parameters = {}


class Slice(Data):
    """Layers of the output, merged from as many layers of each source."""

    sources: list[Source] = Field(min_length=1)
    parameters: Parameters = {}

    @property
    def length(self) -> int:
        first, end = self.sources[0].layer_range
        return end - first


class Aim(Data):
    """Activation-informed merging: `omega` (1 changes nothing), and the file of the base's statistics, if named."""

    omega: float = Field(0.4, ge=0, le=1)
    statistics: str | None = None


class TokenizerChoice(Data):
    """mergekit's longer form of `tokenizer_source`: the tables' rows are filled up to a multiple, if one is given."""

    source: str = "union"
    pad_to_multiple_of: int | None = Field(None, ge=1)
    tokens: dict[str, Any] | None = None


class Acm(Data):
    """Activation-guided consensus merging: `t`, a control in place of the lambdas it gives, and the statistics' files.

    `statistics` is one file by expert for task arithmetic, for other methods that of the plain merge.
    """

    t: float = Field(0.7, allow_inf_nan=False)
    control: Literal["uniform", "shuffled"] | None = None
    statistics: str | dict[str, str] | None = None

    def files(self, measured: list[str]) -> dict[str, Path]:
        """The statistics' file of each model that is measured against the base, as far as they are named."""
        if isinstance(self.statistics, str):
            return {measured[0]: Path(self.statistics)}
        return {model: Path(file) for model, file in (self.statistics or {}).items()}


class Recipe(Data):
    """One merge. `Recipe.parse` and `Recipe.load` check it whole; see the methods' own parameters in `METHODS`.

    Either `models` are merged whole, or `slices` stack layers, each slice a merge of its own.

    `dtype` is what the inputs are read as and the output is written in, unless `out_dtype` says otherwise; without
    either both keep the dtype they are stored in. The arithmetic is float64 with `dtype: float64`, else float32.
    `calibration` says what statistics that `aim` does not name are made on.
    """

    merge_method: str
    base_model: str | None = None
    models: list[ModelEntry] = []
    slices: list[Slice] | None = None
    parameters: Parameters = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    random_seed: int = Field(0, ge=0)
    tokenizer_source: str | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    aim: Aim | None = None
    acm: Acm | None = None
    calibration: CalibrationChoice | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """The recipe in a YAML file. Raises InputError with every problem at once, the file's name before each."""
        data = read_yaml(path)
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
            problems = explain(error, cls)
        problems += method_problems(data) + acm_problems(data) + tokenizer_problems(data)
        if problems:
            raise InputError(problems)
        return recipe

    def to_yaml(self) -> str:
        """The recipe as YAML, without what is left at its default."""
        data = self.model_dump(exclude_defaults=True)
        if self.aim:
            data["aim"] = self.aim.model_dump(exclude_none=True)
        if self.acm:
            data["acm"] = self.acm.model_dump(exclude_none=True)
        return yaml.safe_dump(data, sort_keys=False)

    @property
    def method(self) -> Method:
        return METHODS[self.merge_method]

    @property
    def experts(self) -> list[ModelEntry]:
        """The models that are merged; the base listed among them is no expert of a method that works on deltas.

        For the other methods (linear, karcher) the base is one of the models only if it is listed.
        """
        return self.experts_of(self.models)

    def experts_of(self, entries: list) -> list:
        """The experts among a list of models or of a slice's sources."""
        return [entry for entry in entries if not (self.works_on_deltas and entry.model == self.base_model)]

    @property
    def symmetric(self) -> bool:
        """Whether the order of the experts changes no byte."""
        return self.method.symmetric and not (self.method.ordered_in_float64 and self.compute_dtype == "float64")

    @property
    def works_on_deltas(self) -> bool:
        return self.method.needs_base or (self.method.takes_base and self.base_model is not None)

    @property
    def acm_by_expert(self) -> bool:
        """Whether ACM gives each expert's delta a lambda (ACM-TA), rather than the delta of what was merged."""
        return self.acm is not None and self.merge_method == "task_arithmetic"

    @property
    def measured(self) -> list[str]:
        """What ACM needs measured against the base: the experts, or the plain merge."""
        if self.acm is None:
            return []
        return list(dict.fromkeys(entry.model for entry in self.experts)) if self.acm_by_expert else [MERGED]

    @property
    def inputs(self) -> list[str]:
        """The models a merge reads, as the recipe names them: the base first, each once."""
        listed = [*self.models, *(source for slice in self.slices or [] for source in slice.sources)]
        named = ([self.base_model] if self.base_model else []) + [entry.model for entry in listed]
        return list(dict.fromkeys(named))

    @property
    def frame(self) -> str:
        """The model whose config, tokenizer and tensor list the output takes: the base, else the first named."""
        return self.inputs[0]

    @property
    def vocabulary(self) -> TokenizerChoice:
        """Whose tokens the output has: `source` is base, union or one of `inputs`."""
        return self.tokenizer or TokenizerChoice(source=self.tokenizer_source or "base")

    @property
    def compute_dtype(self) -> str:
        return "float64" if self.dtype == "float64" else "float32"

    def shared(self, tensor: str = "", t: float = 0.0, slice: Slice | None = None) -> dict[str, Any]:
        """The parameters of the whole merge, defaults filled in, for a tensor at depth `t` (0 to 1)."""
        scopes = [slice.parameters, self.parameters] if slice else [self.parameters]
        declared = self.method.parameters.values()
        return {p.name: resolve(p, scopes, tensor, t) for p in declared if not p.per_model}

    def settings(self, entry: ModelEntry | Source, tensor: str = "", t: float = 0.0, slice: Slice | None = None):
        """The parameters of one model, a dict: its own, else those given for all models, else the defaults."""
        scopes = [entry.parameters, *([slice.parameters] if slice else []), self.parameters]
        return {p.name: resolve(p, scopes, tensor, t) for p in self.method.parameters.values() if p.per_model}

    def identity(self, entry: ModelEntry | Source, digest: str, slice: Slice | None = None) -> list:
        """What an expert is in a digest and in the order of summing: its model's digest, its parameters, its layers."""
        scopes = [entry.parameters, *([slice.parameters] if slice else []), self.parameters]
        own = {p.name: canonical(p, scopes) for p in self.method.parameters.values() if p.per_model}
        return [digest, own, *([list(entry.layer_range)] if slice else [])]

    def digest(
        self, models: Mapping[str, str], calibration: str | None = None, consensus: Mapping[str, str] | None = None
    ) -> str:
        """The digest of the merge's result: equal digests mean equal bytes.

        `models` gives the digest of each of `inputs`. Names and paths do not enter it; the seed does where the method
        is random, `calibration` (a calibration digest) where AIM is asked for, `consensus` (the statistics' digest of
        each of `measured`) where ACM is.
        """

        def identities(entries, slice: Slice | None = None) -> list:
            found = [self.identity(entry, models[entry.model], slice) for entry in self.experts_of(entries)]
            return sorted(found, key=json_digest) if self.symmetric else found

        def shared(*scopes) -> dict:
            return {p.name: canonical(p, scopes) for p in self.method.parameters.values() if not p.per_model}

        slices = [
            [
                identities(slice.sources, slice),
                [list(source.layer_range) for source in slice.sources if source.model == self.base_model],
                shared(slice.parameters, self.parameters),
            ]
            for slice in self.slices or []
        ]
        return json_digest(
            {
                "merge": [self.merge_method, self.method.version],
                "frame": models[self.frame],
                "base": models[self.base_model] if self.base_model else None,
                "experts": slices or identities(self.models),
                "parameters": shared(self.parameters),
                "seed": self.random_seed if self.method.random else None,
                "dtype": [self.dtype or "float32", self.out_dtype or self.dtype],
                "tokenizer": self.tokenizer_identity(models),
                "chat_template": self.chat_template,
                "aim": [AIM_VERSION, self.aim.omega, calibration] if self.aim else None,
                **({"acm": self.acm_identity(models, consensus)} if self.acm else {}),
            }
        )

    def tokenizer_identity(self, models: Mapping[str, str]) -> str | list:
        """What the choice of tokens is in a digest; `models` are the digests of `inputs`."""
        source, multiple = self.vocabulary.source, self.vocabulary.pad_to_multiple_of
        if source == "base" and not multiple:
            return "base"
        named = [] if source in TOKENIZER_WORDS else [models[source]]
        return [VOCABULARY_VERSION, "model" if named else source, *named, multiple]

    def acm_identity(self, models: Mapping[str, str], consensus: Mapping[str, str]) -> list:
        """What ACM is in a digest: its settings, and which statistics are of which model."""
        measured = sorted([models[name] if self.acm_by_expert else name, consensus[name]] for name in self.measured)
        seed = self.random_seed if self.acm.control == "shuffled" else None
        return [ACM_VERSION, self.acm.t, self.acm.control, seed, measured]
