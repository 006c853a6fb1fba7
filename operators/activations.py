"""What the activations said, as files for MLflow: lambda by module of a candidate, importance by module of the base."""

from __future__ import annotations

from pathlib import Path

from evaluation.plan import PlannedCandidate, PlannedModel, StudyPlan
from operators.calibrate import STATISTICS
from operators.hooks.object_store import ObjectStore


def lambda_files(store: ObjectStore, member: PlannedModel | PlannedCandidate, folder: Path) -> dict[str, Path]:
    """A picture and a table of a candidate's lambdas, by their paths in MLflow; none where ACM did not make it."""
    if not isinstance(member, PlannedCandidate) or member.t is None:
        return {}
    from evaluation.activation_figures import lambda_png, lambda_table

    made = store.manifest("models", member.digest)
    files = {name: folder / name for name in ("lambda.png", "lambda.md")}
    lambda_png(made["lambdas"], files["lambda.png"])
    files["lambda.md"].write_text(lambda_table(made["lambdas"], made["lengths"]))
    return files


def importance_files(store: ObjectStore, plan: StudyPlan, folder: Path) -> dict[str, Path]:
    """A picture and a table of the base's activations, by their paths in MLflow; none for a study without AIM."""
    if not plan.calibration:
        return {}
    from evaluation.activation_figures import importance_png, importance_table
    from merging.aim import importance, read_statistics

    statistics = read_statistics(store.local("calibrations", plan.calibration.digest) / STATISTICS)
    found = {module: importance(vector).tolist() for module, vector in statistics.vectors.items()}
    files = {name: folder / name for name in ("importance.png", "importance.md")}
    importance_png(found, files["importance.png"])
    files["importance.md"].write_text(importance_table(found))
    return files
