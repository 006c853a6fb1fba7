"""Run a study through Airflow and print what came out."""

import json
import time
from contextlib import suppress

from rich.console import Console
from rich.markup import escape

from evaluation.study import Study
from infra.local.airflow_api import ApiError
from infra.local.dag_run import GOOD, DagRun, Task, wait_until_parsed
from infra.local.progress import follow
from infra.local.report_table import print_report, summary
from infra.local.settings import Settings
from infra.local.stack import Stack, running_stack
from merging.errors import InputError


def run_demo(settings: Settings, name: str, console: Console) -> int:
    """Run the study dags/studies/`name`.yaml; the exit status: 0 if every task succeeded, else 1.

    Raises:
        InputError: there is no such study, or it is not valid; nothing was started.
    """
    study = _load_study(settings, name)
    begin = time.time()
    with running_stack(settings, console.print) as stack:
        console.print(f"Ready after {time.time() - begin:.0f} s. Airflow: {stack.settings.airflow_url}")
        report = _run_study(stack, study.name, begin, console)
        if report:
            print_report(report, stack.settings, console)
    if report:
        console.print(summary(report), markup=False, highlight=False, soft_wrap=True)
    return 0 if report else 1


def _load_study(settings: Settings, name: str) -> Study:
    folder = settings.dags / "studies"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise InputError(f"study {name!r}: there is no file {path}; studies there: {known}")
    return Study.load(path)


def _run_study(stack: Stack, name: str, begin: float, console: Console) -> dict | None:
    """The run's report; None if a task failed, which is printed."""
    api = stack.airflow.api()
    newest = max(path.stat().st_mtime for path in stack.settings.dags.rglob("*") if path.suffix in (".py", ".yaml"))
    wait_until_parsed(api, name, begin if stack.instance.is_held else newest, stack.require_running)
    if stack.instance.is_held:
        for run in DagRun.unfinished(api, name):
            run.cancel()  # its services were stopped under it
    run = DagRun.trigger(api, name)
    console.print(f"Study {name}, run {run.id}", highlight=False)
    try:
        tasks = follow(run, console, stack.require_running)
    except BaseException:
        with suppress(ApiError, OSError):
            run.cancel()
        raise
    if bad := [task for task in tasks if task.state not in GOOD]:
        _print_failures(run, bad, console)
        return None
    body = stack.store.client().get_object(Bucket=stack.settings.bucket, Key=f"studies/{name}/{run.id}/report.json")[
        "Body"
    ]
    return json.loads(body.read())


def _print_failures(run: DagRun, bad: list[Task], console: Console) -> None:
    for task in bad:
        if task.state == "failed":
            console.print(f"\n[red]failed[/]: {escape(task.name)}; the end of its log:", highlight=False)
            for line in run.log_tail(task):
                console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    waiting = sum(task.state != "failed" for task in bad)
    console.print(f"\nThe run failed; tasks not run because of it: {waiting}.", highlight=False)
