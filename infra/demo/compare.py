"""Write the report on what activations add to a merge: `python -m infra.demo.compare STUDY... --out docs/informed.md`.

It reads the last finished run of each study from the local object store, which it starts if it is not running. Two
pictures of each study go beside the report.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.comparison import LIMIT, comparisons
from evaluation.comparison_page import study_page
from evaluation.comparison_png import differences_png, scores_png
from evaluation.plan import StudyPlan
from infra.local.credentials import load_or_create
from infra.local.instance import Instance
from infra.local.object_store import ObjectStore as Server
from infra.local.settings import Settings
from infra.local.signals import ending_raises_keyboard_interrupt
from merging.errors import InputError, MergeflowError
from operators.hooks.object_store import ObjectStore

INTRODUCTION = f"""# Does it help to inform a merge by activations?

Made by `make report` from the last runs of {{studies}}. Nothing here is written by hand. To make it all again:

{{commands}}

**The models are toys** of about a million parameters, trained for this demo. What helps or harms them says nothing
about others: the report shows how to find out, and that the controls matter.

Each merge is made plainly, with AIM (each weight's change shrinks where its input is active) and with ACM (each
layer's change is scaled by a lambda from the mutual information of two models' activations). ACM has two controls:
*uniform* has the mean of the lambdas everywhere, *shuffled* has the lambdas in another order. If ACM beats the plain
merge but not uniform, its scale helped and not its choice of layers. With task arithmetic, lambda takes the place of
the weight and the experts are averaged, so the whole change is much smaller than the plain merge's. AIM has no such
control here: its gain may be one of scale, too.

± is one standard error over the questions. Two merges are compared question by question: the error of a difference is
sqrt(variance of the questions' differences / questions). *Better* and *worse* count comparisons, over methods and
benchmarks, that differ by more than {LIMIT} standard errors; *by chance* is how many would of equal models. The
comparisons share questions and candidates, so they are not independent. *On average* is over all of them, and its error
knows that the methods answered the same questions. No error covers another family of models, or another seed.
"""


@dataclass(frozen=True)
class Run:
    """A finished run: its report, every model's answers by benchmark, and of each ACM candidate lambdas and lengths."""

    report: dict[str, Any]
    samples: dict[str, dict[str, list[dict[str, Any]]]]
    acm: dict[str, dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, 1 for a failure, 2 for what the user must change first."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo.compare", description=__doc__.split(": `")[0])
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="the name of a file in dags/studies")
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    options = parser.parse_args(arguments)
    try:
        with ending_raises_keyboard_interrupt(), running_store(Settings.from_environment()) as store:
            runs = [last_run(store, name) for name in dict.fromkeys(options.studies)]
        for path in write_report(runs, options.out):
            print(f"wrote {path}")
        return 0
    except MergeflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextmanager
def running_store(settings: Settings) -> Iterator[ObjectStore]:
    """The object store of this home: the one that runs there, else one of our own for as long as it is needed.

    Raises:
        InputError: nothing ever ran in this home.
    """
    instance = Instance(settings.home)
    if not settings.home.exists():
        raise InputError(f"{settings.home}: there is nothing to report on; run a study first: make demo STUDY=NAME")
    claimed = instance.is_claimed()
    settings = instance.settings(settings) if claimed else settings
    server = Server(settings, load_or_create(settings.credentials_file))
    if claimed:
        yield ObjectStore(server.client(), settings.bucket, settings.cache)
        return
    instance.claim()
    try:
        server.start()
        instance.write_record({"s3_port": settings.s3_port}, server.processes)
        server.wait()
        yield ObjectStore(server.client(), settings.bucket, settings.cache)
    finally:
        server.stop()
        instance.release()


def last_run(store: ObjectStore, study: str) -> Run:
    """The newest run of a study that has a report; InputError if it has none, or compares nothing."""
    key = _newest_report(store, study)
    report = store.read_json(key)
    plan = StudyPlan.model_validate(store.read_json(key.replace("/report.json", "/plan.json")))
    if not any(row["kind"] == "candidate" and row["informed"] == "plain" for row in report["rows"]):
        raise InputError(f"study {study}: it has no plain merge to compare others with; add `plain` to `informed`")
    samples, acm = {}, {}
    names = {model.reference: model.name for model in plan.models}
    for row in report["rows"]:
        member = plan.member(row["name"])
        samples[row["name"]] = {name: _answers(store, digest) for name, digest in member.scores.items()}
        if row["kind"] == "candidate" and row["informed"] == "acm":  # the controls rest on the same lambdas
            made = store.manifest("models", row["digest"])
            lambdas = {names.get(measured, measured): found for measured, found in made["lambdas"].items()}
            acm[row["name"]] = {"lambdas": lambdas, "lengths": made["lengths"]}
    return Run(report, samples, acm)


def write_report(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the report and the studies' pictures beside it; the files written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    names = [run.report["study"] for run in runs]
    commands = [*(f"make demo STUDY={name}" for name in names), f'make report STUDIES="{" ".join(names)}"']
    told = {
        "studies": " and ".join(f"`{name}`" for name in names),
        "commands": "\n".join(f"    {line}" for line in commands),
    }
    parts, written = [INTRODUCTION.format(**told)], [out]
    for run, name in zip(runs, names, strict=True):
        files = [out.with_name(f"{out.stem}-{name}-{what}.png") for what in ("scores", "differences")]
        scores_png(run.report, run.samples, files[0])
        differences_png(comparisons(run.report, run.samples), files[1])
        captions = (f"Scores of {name}, by method", f"Differences in {name}, question by question")
        pictures = {caption: file.name for caption, file in zip(captions, files, strict=True)}
        parts.append(study_page(run.report, run.samples, run.acm, pictures))
        written += files
    out.write_text("\n".join(parts))
    return written


def _newest_report(store: ObjectStore, study: str) -> str:
    with store.errors("list runs"):
        pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=f"studies/{study}/")
        found = [item for page in pages for item in page.get("Contents", [])]
    reports = [item for item in found if item["Key"].endswith("/report.json")]
    if not reports:
        raise InputError(f"study {study}: no run of it has finished; run it first: make demo STUDY={study}")
    return max(reports, key=lambda item: item["LastModified"])["Key"]


def _answers(store: ObjectStore, digest: str) -> list[dict[str, Any]]:
    [name] = store.manifest("scores", digest)["files"]
    return [json.loads(line) for line in store.read_bytes(f"scores/{digest}/{name}").decode().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
