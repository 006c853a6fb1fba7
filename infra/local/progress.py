"""A run as it goes on: a live picture on a terminal, one line per finished task elsewhere."""

import time
from collections.abc import Callable
from contextlib import nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from infra.local.dag_run import FINISHED, DagRun, Task

POLL_SECONDS = 1.0
STYLES = {"success": "green", "failed": "red", "upstream_failed": "red", "up_for_retry": "yellow", "skipped": "dim"}


def follow(run: DagRun, console: Console, check: Callable[[], None]) -> list[Task]:
    """Show the run until it has ended and return its tasks. `check` is called again and again and may raise."""
    shown: set[tuple] = set()
    live = Live(console=console, transient=True, refresh_per_second=4) if console.is_terminal else nullcontext()
    with live:
        while True:
            ended = run.state() in ("success", "failed")
            tasks = run.tasks()
            for task in sorted(tasks, key=lambda task: task.seconds):
                moment = (task.id, task.map_index, task.attempt, task.state)
                if task.state in STYLES and moment not in shown:
                    shown.add(moment)
                    console.print(_line(task), highlight=False, soft_wrap=True)
            if ended:
                return tasks
            if console.is_terminal:
                live.update(_picture(tasks))
            check()
            time.sleep(POLL_SECONDS)


def _line(task: Task) -> str:
    style = STYLES[task.state]
    seconds = f"{task.seconds:7.1f} s" if task.state in ("success", "failed", "up_for_retry") else " " * 9
    return f"{seconds}  [{style}]{task.state:<15}[/]  {escape(task.name)}"


def _picture(tasks: list[Task]) -> Group:
    running = [task for task in tasks if task.state == "running"]
    done = sum(task.state in FINISHED for task in tasks)
    rows = [Text(f"{task.seconds:7.1f} s  running          {task.name}", style="cyan") for task in running]
    return Group(*rows, Text(f"{done} of {len(tasks)} tasks done, {len(running)} running", style="bold"))
