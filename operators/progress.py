"""Progress of long work: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

Report = Callable[[int, int, str], None]


def log_lines(every: float = 5.0, write: Callable[[str], None] = log.info) -> Report:
    """A callback (done, total, label) that writes a line at most every `every` seconds, and one at the end."""
    started = last = time.monotonic()

    def report(done: int, total: int, label: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every and done < total:
            return
        last = now
        left = (now - started) / max(done, 1) * (total - done)
        write(f"{label}: {done} of {total}, {left:.0f} s left")

    return report


@contextmanager
def bar() -> Iterator[Report]:
    """The same callback, drawn as a bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield log_lines(write=lambda line: print(line, file=sys.stderr))
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total, label: progress.update(task, completed=done, total=total, description=label)
