"""One run of a DAG, through Airflow's REST API."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from infra.local.airflow_api import AirflowApi, ApiError
from merging.errors import MergeflowError

PAGE = 100
FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
GOOD = frozenset({"success", "skipped", "removed"})


@dataclass(frozen=True)
class Task:
    """One task instance, at one moment. `name` includes the map label, `seconds` is how long it has run."""

    id: str
    map_index: int
    name: str
    state: str
    attempt: int
    seconds: float

    @classmethod
    def from_api(cls, item: dict) -> "Task":
        label = item["rendered_map_index"] or (str(item["map_index"]) if item["map_index"] >= 0 else None)
        start, end = (datetime.fromisoformat(item[key]) if item[key] else None for key in ("start_date", "end_date"))
        seconds = ((end or datetime.now(start.tzinfo)) - start).total_seconds() if start else 0.0
        return cls(
            id=item["task_id"],
            map_index=item["map_index"],
            name=f"{item['task_id']} [{label}]" if label else item["task_id"],
            state=item["state"] or "waiting",
            attempt=item["try_number"],
            seconds=seconds,
        )


class DagRun:
    """A run of the DAG `dag_id`; `id` is Airflow's run id."""

    def __init__(self, api: AirflowApi, dag_id: str, run_id: str):
        self._api, self.dag_id, self.id = api, dag_id, run_id
        self._path = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"

    @classmethod
    def trigger(cls, api: AirflowApi, dag_id: str) -> "DagRun":
        """Start a run now."""
        api.call("PATCH", f"/api/v2/dags/{quote(dag_id)}", {"is_paused": False})
        answer = api.call("POST", f"/api/v2/dags/{quote(dag_id)}/dagRuns", {"logical_date": None})
        return cls(api, dag_id, answer["dag_run_id"])

    @classmethod
    def unfinished(cls, api: AirflowApi, dag_id: str) -> list["DagRun"]:
        """The runs of the DAG that are queued or running."""
        path = f"/api/v2/dags/{quote(dag_id)}/dagRuns?state=queued&state=running&limit={PAGE}"
        return [cls(api, dag_id, item["dag_run_id"]) for item in api.call("GET", path)["dag_runs"]]

    def state(self) -> str:
        return self._api.call("GET", self._path)["state"]

    def tasks(self) -> list[Task]:
        """Every task instance so far; mapped tasks appear once it is known over what they are mapped."""
        items: list[dict] = []
        while True:
            page = self._api.call("GET", f"{self._path}/taskInstances?limit={PAGE}&offset={len(items)}")
            items += page["task_instances"]
            if not page["task_instances"] or len(items) >= page["total_entries"]:
                return [Task.from_api(item) for item in items]

    def cancel(self) -> None:
        """Mark it failed, which ends its running tasks."""
        self._api.call("PATCH", self._path, {"state": "failed"})

    def log_tail(self, task: Task, lines: int = 15) -> list[str]:
        """The last lines of a task's log: its messages, and the exception it ended with."""
        path = f"{self._path}/taskInstances/{quote(task.id)}/logs/{max(task.attempt, 1)}?map_index={task.map_index}"
        with suppress(ApiError, OSError):
            content = self._api.call("GET", path)["content"]
            return [line for entry in content for line in _readable(entry)][-lines:]
        return ["(its log could not be read)"]


def wait_until_parsed(
    api: AirflowApi, dag_id: str, since: float, check: Callable[[], None], timeout: float = 90
) -> None:
    """Return once Airflow has parsed the DAG's file after `since` (seconds since the epoch).

    `check` is called meanwhile and may raise.

    Raises:
        MergeflowError: the file cannot be imported, or the DAG does not appear within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        with suppress(ApiError):
            parsed = api.call("GET", f"/api/v2/dags/{quote(dag_id)}")["last_parsed_time"]
            if parsed and datetime.fromisoformat(parsed).timestamp() >= since:
                return
        errors = api.call("GET", "/api/v2/importErrors")["import_errors"]
        fresh = [error for error in errors if datetime.fromisoformat(error["timestamp"]).timestamp() >= since]
        if fresh:
            raise MergeflowError("\n".join(f"{Path(e['filename']).name}: {e['stack_trace'].strip()}" for e in fresh))
        if time.monotonic() > deadline:
            raise MergeflowError(
                f"Airflow knows no DAG {dag_id!r} after {timeout:.0f} seconds; see its dag-processor log"
            )
        check()
        time.sleep(0.5)


def _readable(entry: dict | str) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    event = entry.get("event", "")
    if event.startswith("::"):  # marks where a fold of the UI begins or ends
        return []
    lines = str(event).splitlines()
    for error in entry.get("error_detail") or []:
        lines += f"{error.get('exc_type')}: {error.get('exc_value')}".splitlines()
    return lines
