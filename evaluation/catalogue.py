"""Which tasks can be scored, found by reading YAML files alone: importing lm-eval to ask it takes seconds."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

OWN_TASKS = Path(__file__).parent / "tasks"
_NAME = re.compile(rb"^[\"']?(?:task|group)[\"']?:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)


def known_tasks() -> dict[str, Path]:
    """mergeflow's own tasks: the YAML files under `evaluation/tasks/` by their task name."""
    return _names_in(OWN_TASKS)


def lm_eval_tasks() -> dict[str, Path]:
    """The tasks and groups that the installed lm-eval brings, by name, each with its YAML file."""
    spec = find_spec("lm_eval")
    return _names_in(Path(spec.origin).parent / "tasks") if spec and spec.origin else {}


def task_file(name: str) -> Path | None:
    """The YAML file of a task or group, ours before lm-eval's; None if neither has it."""
    return known_tasks().get(name) or lm_eval_tasks().get(name)


@cache
def _names_in(folder: Path) -> dict[str, Path]:
    # A pattern over the bytes takes 0.3 s for lm-eval's 14 000 files; parsing them takes 5 s.
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.yaml")):
        for match in _NAME.finditer(path.read_bytes()):
            found.setdefault(match[1].decode(), path)
    return found


def read_task(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """A task's settings with its includes merged in, and every file they were read from or name.

    The files are the YAML and its includes, the Python modules of `!function` values, and `data_files` on disk:
    what the task's questions and its scoring depend on. Functions are left as text.
    """
    modules: list[Path] = []
    settings, files = _read_yaml(path, modules)
    data = [file for files_of_split in data_files(settings, path.parent).values() for file in files_of_split]
    return settings, list(dict.fromkeys([*files, *modules, *data]))


def data_files(settings: dict[str, Any], folder: Path) -> dict[str, list[Path]]:
    """The task's own data files by split, absolute (they are written relative to the YAML); {} if it has none."""
    named = (settings.get("dataset_kwargs") or {}).get("data_files") or {}
    if not isinstance(named, dict):
        named = {"train": named}
    by_split = {split: one if isinstance(one, list) else [one] for split, one in named.items()}
    if any("://" in name for names in by_split.values() for name in names):
        return {}
    return {split: [(folder / name).resolve() for name in names] for split, names in by_split.items()}


def _read_yaml(path: Path, modules: list[Path]) -> tuple[dict[str, Any], list[Path]]:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        reference = loader.construct_scalar(node)
        module = path.parent / (reference.rpartition(".")[0].replace(".", "/") + ".py")
        if module.is_file():
            modules.append(module.resolve())
        return reference

    Loader.add_constructor("!function", function)
    settings = yaml.load(path.read_text(), Loader=Loader)  # noqa: S506 (a SafeLoader)
    includes = settings.pop("include", [])
    merged: dict[str, Any] = {}
    files = [path.resolve()]
    for include in includes if isinstance(includes, list) else [includes]:
        inherited, inherited_files = _read_yaml(path.parent / include, modules)
        merged.update(inherited)
        files += inherited_files
    return {**merged, **settings}, files
