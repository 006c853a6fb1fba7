"""The `mergeflow` command: what a person does without Airflow. Imports nothing heavy until a subcommand needs it."""

from __future__ import annotations

import sys

import typer

from merging.errors import InputError, MergeflowError, TransientError
from operators.cli import aim, calibrate, check, consensus, evaluate, merge, study

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    check.check,
    study.plan,
    merge.methods,
    merge.merge,
    aim.aim,
    calibrate.calibrate,
    consensus.consensus,
    evaluate.evaluate,
):
    app.command()(command)


@app.callback()
def _about() -> None:
    """Merge fine-tuned language models, measure the results, promote the best."""


def main() -> None:
    """Run a subcommand. A user's mistake is one line each on stderr and exit status 2; a failing service is 1."""
    try:
        app()
    except InputError as error:
        _stop(error.problems, 2)
    except TransientError as error:
        _stop([f"{error} (try again)"], 1)
    except (MergeflowError, OSError) as error:
        _stop([str(error)], 1)


def _stop(lines: list[str], status: int) -> None:
    for line in lines:
        print(f"mergeflow: {line}", file=sys.stderr)
    sys.exit(status)
