"""The DAG that stands in for a study file with mistakes, so that they are seen where the study is looked for."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from merging.errors import InputError


class InvalidStudyOperator(BaseOperator):
    def __init__(self, *, problems: list[str], **kwargs: Any):
        super().__init__(**kwargs)
        self.problems = problems

    def execute(self, context: Any) -> None:
        raise AirflowFailException("\n".join(self.problems))


def invalid_study_dag(path: Path, error: InputError, taken: Collection[str]) -> DAG:
    """A DAG named like the file (a study in `taken` keeps its name), never scheduled, that says what to correct."""
    name = re.sub(r"[^\w.-]", "-", path.stem)[:200]
    while name in taken:
        name += "-invalid"
    listed = "\n".join(f"- `{problem}`" for problem in error.problems)
    with DAG(
        name,
        schedule=None,
        start_date=datetime(2026, 1, 1),
        doc_md=f"**This study file has mistakes; correct them in `{path.name}`:**\n\n{listed}",
        tags=["mergeflow", "invalid study"],
    ) as dag:
        InvalidStudyOperator(task_id="correct_the_study_file", problems=error.problems)
    return dag
