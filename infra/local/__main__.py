"""`python -m infra.local up|down|demo|env`: the local services, and a study run on them."""

import argparse
import os
import shlex
import sys
import time

from infra.local.settings import Settings
from infra.local.signals import ending_raises_keyboard_interrupt
from merging.errors import InputError, MergeflowError


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 for a failure, 2 for what the user must change first, 130 for an interruption."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__.split("`: ")[1])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="run the services until Ctrl-C").set_defaults(run=up)
    commands.add_parser("down", help="stop what `up` started in another terminal").set_defaults(run=down)
    demo_parser = commands.add_parser("demo", help="run a study on the services and print its results")
    demo_parser.add_argument("--study", default="tiny", help="the name of a file in dags/studies (default: tiny)")
    demo_parser.set_defaults(run=demo)
    commands.add_parser("env", help='print the variables for a shell: eval "$(...)"').set_defaults(run=env)
    options = parser.parse_args(arguments)
    try:
        with ending_raises_keyboard_interrupt():
            return options.run(Settings.from_environment(), options)
    except MergeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def up(settings: Settings, options: argparse.Namespace) -> int:
    from infra.local.stack import Stack

    print("Starting SeaweedFS, MLflow and Airflow ...", flush=True)
    with Stack(settings) as stack:
        print(_welcome(stack), flush=True)
        try:
            while True:
                stack.require_running()
                time.sleep(1)
        except KeyboardInterrupt:
            print("\nStopping ...", flush=True)
            return 0


def down(settings: Settings, options: argparse.Namespace) -> int:
    from infra.local.instance import Instance

    stopped = settings.home.exists() and Instance(settings.home).stop_running()
    print("Stopped." if stopped else f"Nothing is running in {settings.home}.")
    return 0


def demo(settings: Settings, options: argparse.Namespace) -> int:
    from rich.console import Console

    from infra.local.demo import run_demo

    # Where there is no terminal, a line is a line, however long.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
    return run_demo(settings, options.study, console)


def env(settings: Settings, options: argparse.Namespace) -> int:
    from infra.local.airflow_settings import airflow_settings
    from infra.local.credentials import load_or_create
    from infra.local.environment import service_environment
    from infra.local.instance import Instance

    settings = Instance(settings.home).settings(settings)
    credentials = load_or_create(settings.credentials_file)
    values = {**service_environment(settings, credentials), **airflow_settings(settings, credentials)}
    for name, value in values.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _welcome(stack) -> str:
    settings, credentials = stack.settings, stack.credentials
    return "\n".join(
        [
            f"Airflow    {settings.airflow_url}    login {credentials.airflow_user}, "
            f"password {credentials.airflow_password}",
            f"MLflow     {settings.mlflow_url}",
            f"S3         {settings.s3_url}    bucket {settings.bucket}, keys in {settings.credentials_file}",
            f"Data       {settings.home}    logs in {settings.logs}",
            "All of it answers on this machine only; MLflow asks for no login.",
            'For a shell: eval "$(.venv/bin/python -m infra.local env)". Ctrl-C stops everything and keeps the data.',
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
