"""What every step of a study shares: its plan and typed errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from evaluation.plan import StudyPlan
from merging.errors import InputError, MergeflowError
from operators.hooks import object_store
from operators.hooks.object_store import ObjectStore
from operators.hooks.sources import Sources


class StudyStep(BaseOperator):
    """One step of a study run.

    `plan` is the address that the plan step returned; `member` names the model or candidate a mapped step works on,
    and is what the UI shows for it (`map_index_template="{{ task.member }}"`).
    """

    template_fields = ("plan", "member")

    def __init__(self, *, plan: str, member: str | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.plan = plan
        self.member = member

    def execute(self, context: Any) -> Any:
        with typed_errors():
            store = object_store.from_connection()
            plan = StudyPlan.model_validate(store.read_json(store.key(self.plan)))
            return self.work(store, plan, context)

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> Any:
        """The step itself; raises merging.errors' exceptions."""
        raise AirflowFailException(f"{type(self).__name__} does not say what its step does")


def report_key(plan: StudyPlan) -> str:
    """Where the bucket keeps the run's report."""
    return f"studies/{plan.study.name}/{plan.run}/report.json"


@contextmanager
def typed_errors() -> Iterator[None]:
    """InputError ends the task for good; what else we report is left to Airflow's retries."""
    try:
        yield
    except InputError as error:
        raise AirflowFailException(str(error)) from None
    except MergeflowError as error:
        raise AirflowException(str(error)) from None


def sources(store: ObjectStore) -> Sources:
    """Where input models come from: the hub of huggingface_default, local folders, S3 by aws_default."""
    from operators.hooks import hub

    return Sources(store.cache / "sources", hub.from_connection(), store.client)
