"""A study's report as a table, and where to look next."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.front_view import axes
from infra.local.settings import Settings


def print_report(report: dict, settings: Settings, console: Console) -> None:
    """Print a report.json, what of it earlier runs had done, and where to look."""
    console.print(_table(report))
    for name, reason in report["not_made"].items():
        console.print(escape(f"not made: {name}: {reason}"), highlight=False, soft_wrap=True)
    reused = {step: count for step, count in report["reused"].items() if count}
    if reused:
        counts = ", ".join(f"{step} {count}" for step, count in reused.items())
        console.print(f"Taken over from earlier runs: {counts}", highlight=False)
    else:
        console.print("Nothing was there from earlier runs: everything was computed.")
    console.print("Where to look: `make up`, then", highlight=False)
    console.print(f"  the run      {settings.airflow_url}/dags/{report['study']}/runs/{report['run']}", soft_wrap=True)
    console.print(f"  the scores   {report.get('mlflow_url') or settings.mlflow_url}", soft_wrap=True)
    console.print(f"  the files    {settings.home}; logs in {settings.logs}", highlight=False, soft_wrap=True)


def summary(report: dict) -> str:
    """`study tiny: 24 candidates, 5 on the front, champion ties(d=0.5) math+code (version 3)`"""
    candidates = [row for row in report["rows"] if row["kind"] == "candidate"]
    front = sum(row["on_front"] for row in candidates)
    champion = report.get("champion")
    chosen = f"champion {champion['name']} (version {champion['version']})" if champion else "no champion"
    return f"study {report['study']}: {len(candidates)} candidates, {front} on the front, {chosen}"


def _table(report: dict) -> Table:
    every = axes(report["objectives"])
    reference = report["length_reference"]
    caption = "front: on the Pareto front. gain: hypervolume gained over base and experts. ↓: less is better."
    if reference:
        caption += f" length: of the responses, against {reference}'s."
    table = Table(
        title=f"Study {report['study']}: scores ± standard error, %",
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold")
    for axis in every:
        name = f"{axis.benchmark} tokens" if axis.is_length else axis.name
        table.add_column(name + ("" if axis.maximise else " ↓"), justify="right", no_wrap=True)
    if reference:
        table.add_column("length", justify="right", no_wrap=True)
    for heading in ("front", "gain", "registry", ""):
        table.add_column(heading, justify="right" if heading == "gain" else "left")
    for row in sorted(report["rows"], key=_rank):
        table.add_row(
            escape(row["name"]),
            *(axis.text(row) for axis in every),
            *([f"{100 * row['length_change']:+.1f} %"] if reference else []),
            "yes" if row["on_front"] else "",
            "" if row["hypervolume_gain"] is None else f"{row['hypervolume_gain']:.4f}",
            _registry(row, report),
            "reused" if row["reused"] else "",
            style="bold" if row["on_front"] else None,
        )
    return table


def _rank(row: dict) -> tuple:
    """Candidates before the models they were made of; the front first, by gain."""
    return row["kind"] != "candidate", not row["on_front"], -(row["hypervolume_gain"] or 0.0), row["name"]


def _registry(row: dict, report: dict) -> str:
    if row.get("version") is None:
        return ""
    aliases = [
        alias for alias in ("champion", "challenger") if report.get(alias) and report[alias]["name"] == row["name"]
    ]
    return f"version {row['version']}" + (f" ({', '.join(aliases)})" if aliases else "")
