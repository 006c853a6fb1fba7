"""Links between a run in Airflow and the same run in MLflow."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink


class MLflowLink(BaseOperatorLink):
    """The button on a task's page that opens the run in MLflow: the operator's `mlflow_url` once it has executed."""

    name = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return operator.mlflow_url


def airflow_url(context: Any) -> str:
    """The page of the DAG run in Airflow."""
    return context["ti"].log_url.partition("/tasks/")[0]
