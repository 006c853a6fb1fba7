"""A study's plan on the demo family, its models in a real bucket."""

import uuid
from pathlib import Path

import pytest

from evaluation.planning import plan_study
from evaluation.study import Study
from merging.digest import model_digest, model_files
from operators.hooks.object_store import ObjectStore

FAMILY = Path(__file__).parents[2] / "infra" / "demo" / "family"


@pytest.fixture
def store(object_store, tmp_path):
    return ObjectStore(object_store.client(), object_store.bucket, cache=tmp_path / "cache")


@pytest.fixture
def make_plan(store):
    """`make_plan(methods, run="run-1", **plan)` plans a study of base, math and code; nothing of it is made yet.

    The bucket is the whole session's: the benchmarks' seeds make the scores this test's own.
    """
    seed = uuid.uuid4().int % 2**31
    benchmarks = {name: {"task": f"tiny_{name}", "seed": seed} for name in ("math", "code")}

    def make(methods, run="run-1", **changes):
        study = Study.parse(
            {
                "name": "small",
                "base": str(FAMILY / "base"),
                "experts": {"math": str(FAMILY / "math"), "code": str(FAMILY / "code")},
                "methods": methods,
                "benchmarks": benchmarks,
                "objectives": dict.fromkeys(benchmarks, "maximise"),
            },
            folder=Path("."),
        )
        resolved = {}
        for name in study.sources:
            digest = model_digest(model_files(FAMILY / name))
            if store.manifest("models", digest) is None:
                store.publish("models", digest, FAMILY / name, {})
            resolved[name] = {"digest": digest, "reference": f"the/{name}"}
        plan = plan_study(study, run, resolved)
        missing = {one.digest for one in plan.candidates}
        return plan.model_copy(update={"missing": frozenset(missing), **changes})

    return make
