"""What a study will do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plan(file: Annotated[Path, typer.Argument(help="a study (YAML)")]) -> None:
    """List the candidates a study expands to."""
    from rich.console import Console
    from rich.table import Table

    from evaluation.candidates import expand
    from evaluation.study import Study

    study = Study.load(file)
    table = Table("candidate", "method", "informed", "experts")
    candidates = expand(study)
    for one in candidates:
        table.add_row(one.name, one.method, one.informed, "+".join(one.combination))
    Console().print(table)
    models = len(candidates) + len(study.sources)
    print(f"study {study.name}: {len(candidates)} candidates; {models} models on {len(study.benchmarks)} benchmarks")
