"""The study file: which models, methods, benchmarks and rules; validated whole, then expanded into candidates."""

from __future__ import annotations

from itertools import combinations, product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from evaluation.benchmark import Benchmark
from evaluation.informed import Informed
from evaluation.study_checks import cross_check
from merging.errors import InputError
from merging.methods import METHODS, validate_parameters
from merging.validation import explain, suggest
from merging.yaml_file import read_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$"  # no dot: it stands in task ids and before `.response_tokens`
Goal = Literal["maximise", "minimise"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_method(value: Any) -> Any:
    return {"merge_method": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class MethodGrid(_Part):
    """A merge method and its parameters; a list-valued parameter spans a grid."""

    merge_method: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> MethodGrid:
        if self.merge_method not in METHODS:
            raise ValueError(f"unknown merge method {self.merge_method!r}{suggest(self.merge_method, METHODS)}")
        problems = [f"{key}: an empty list" for key, value in self.parameters.items() if value == []]
        for values in self.points():
            problems += [p for p in validate_parameters(self.merge_method, values, "parameters") if p not in problems]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def points(self) -> list[dict[str, Any]]:
        """Every parameter setting of the grid, in the file's order."""
        axes = [value if isinstance(value, list) else [value] for value in self.parameters.values()]
        return [dict(zip(self.parameters, point, strict=True)) for point in product(*axes)]


class Calibration(_Part):
    """The texts whose activations inform the merges: a JSONL file, or a field of a data set on the hub.

    AIM joins them and cuts blocks; the published setting (arXiv 2502.02421) is 256 samples of the Pile's validation
    split in blocks of 512 tokens. ACM takes each text as a sample of its own, cut to `longest` tokens if that is given.
    """

    texts: str | None = None
    dataset: str | None = None
    split: str = "validation"
    field: str = "text"
    samples: int = Field(256, ge=1)
    block: int = Field(512, ge=2)
    longest: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Calibration:
        if (self.texts is None) == (self.dataset is None):
            raise ValueError("name either `texts` (a JSONL file) or `dataset` (a hub id), one of the two")
        return self


class Promotion(_Part):
    """What may enter the registry, under which name, and how the champion is chosen."""

    model: str = Field(pattern=NAME)
    rule: Literal["hypervolume_gain"] = "hypervolume_gain"
    require: list[str] = []


class Study(_Part):
    """A study file, valid as a whole. Relative paths are meant from the file's own folder (`folder`)."""

    name: str = Field(pattern=NAME)
    description: str = ""
    base: str
    experts: dict[Annotated[str, Field(pattern=PLAIN_NAME)], str] = Field(min_length=1)
    combinations: Literal["all"] | list[list[str]] = "all"
    methods: list[Annotated[MethodGrid, BeforeValidator(_as_method)]] = Field(min_length=1)
    informed: list[Informed] = Field([Informed()], min_length=1)
    calibration: Calibration | None = None
    benchmarks: dict[Annotated[str, Field(pattern=PLAIN_NAME)], Benchmark] = Field(min_length=1)
    objectives: dict[str, Goal] = Field(min_length=1)
    length_reference: str | None = None
    promotion: Promotion | None = None
    schedule: str | None = None
    seed: int = Field(42, ge=0)
    folder: Path = Field(Path("."), exclude=True)

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Read and validate a study file; every mistake in it is reported at once as one InputError."""
        path = Path(path)
        data = read_yaml(path)
        if data is None:
            raise InputError(f"{path}: the file is empty")
        if not isinstance(data, dict):
            raise InputError(f"{path}: a study is a YAML mapping with the keys {', '.join(_keys(cls))}")
        return cls.parse(data, folder=path.parent, where=str(path))

    @classmethod
    def parse(cls, data: dict[str, Any], *, folder: Path, where: str = "study") -> Study:
        """Validate a study already read into a mapping; `where` prefixes each problem."""
        if "folder" in data:
            raise InputError(f"{where}: folder: not a key of a study file; paths are relative to the file")
        problems, bad = [], set()
        try:
            study = cls.model_validate({**data, "folder": folder})
        except ValidationError as error:
            problems = explain(error, cls, where)
            bad = {item["loc"][0] for item in error.errors() if item["loc"]}
            study = _valid_parts(cls, data, bad)
        problems += [f"{where}: {problem}" for problem in cross_check(study, bad)]
        if problems:
            raise InputError(problems)
        return study

    @field_validator("combinations")
    @classmethod
    def _no_empty_combination(cls, value: Any) -> Any:
        if value != "all" and (not value or any(not one for one in value)):
            raise ValueError("give 'all' or a list of lists of experts, each with one expert or more")
        return value

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        from croniter import croniter

        if value is not None and not croniter.is_valid(value):
            raise ValueError(f"{value!r} is not a cron expression; write it like '0 3 * * *' (every night at three)")
        return value

    @property
    def sources(self) -> dict[str, str]:
        """Every model by its name in the study, the base first."""
        return {"base": self.base, **self.experts}

    @property
    def needs_calibration(self) -> bool:
        return self.needs_aim or self.needs_acm

    @property
    def needs_aim(self) -> bool:
        return any(informed.aim for informed in self.informed)

    @property
    def needs_acm(self) -> bool:
        return any(informed.by_acm for informed in self.informed)

    @property
    def scales_merges(self) -> bool:
        """Whether ACM measures merges before it scales them; with task arithmetic it measures the experts."""
        return self.needs_acm and any(grid.merge_method != "task_arithmetic" for grid in self.methods)

    def describe(self) -> str:
        """The study in a few lines of Markdown, for the DAG's page."""
        experts = "\n".join(f"| {name} | `{source}` |" for name, source in self.sources.items())
        goals = ", ".join(f"{name} ({goal})" for name, goal in self.objectives.items())
        methods = ", ".join(dict.fromkeys(grid.merge_method for grid in self.methods))
        promotion = f"`{self.promotion.model}`" if self.promotion else "nothing is promoted"
        return (
            f"{self.description}\n\n| model | source |\n|---|---|\n{experts}\n\n"
            f"**Methods:** {methods}\n\n**Objectives:** {goals}\n\n**Registry:** {promotion}\n"
        )

    def expert_combinations(self) -> list[tuple[str, ...]]:
        """What to merge, each in the order of `experts`; 'all' is every subset of two or more, largest first."""
        names = list(self.experts)
        if self.combinations == "all":
            sizes = range(len(names), min(2, len(names)) - 1, -1)
            return [chosen for size in sizes for chosen in combinations(names, size)]
        return [tuple(sorted(chosen, key=names.index)) for chosen in self.combinations]


def _keys(model: type[BaseModel]) -> list[str]:
    return [name for name in model.model_fields if name != "folder"]


def _valid_parts(model: type[Study], data: dict[str, Any], bad: set[Any]) -> Study:
    """A study of the keys that are right by themselves, so that these can still be checked against each other."""
    fields = {name: field for name, field in model.model_fields.items() if name in data and name not in bad}
    adapters = {name: TypeAdapter(Annotated[field.annotation, field]) for name, field in fields.items()}
    return model.model_construct(**{name: adapter.validate_python(data[name]) for name, adapter in adapters.items()})
