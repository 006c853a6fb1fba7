"""Merge: make the checkpoints of all candidates of one combination of experts, reading their shared inputs once."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from evaluation.plan import PlannedCandidate, StudyPlan
from merging.digest import json_digest
from merging.errors import InputError, TransientError
from operators.calibrate import STATISTICS
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep

log = logging.getLogger(__name__)

SHARD_SIZE = 5_000_000_000  # bytes, the hub's usual; a killed task loses at most the shards it was writing
MODEL, ABOUT = "model", "about.json"  # in a candidate's workplace: the checkpoint, and its manifest's facts


class MergeOperator(StudyStep):
    """`member` is the combination ("math+code"). Returns the names of its candidates that lack a score.

    `scaled` takes those that ACM scales after their plain merge was measured, otherwise all others are made, and plain
    merges that are there to be measured alone. A candidate that cannot be made (its weights overflow) is left out;
    `not_made` tells which and why.
    """

    def __init__(self, *, scaled: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.scaled = scaled

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> list[str]:
        def lacking(names: Sequence[str]) -> list[PlannedCandidate]:
            found = [plan.member(name) for name in names]
            return [one for one in found if plan.force or store.manifest("models", one.digest) is None]

        before = not_made(store, plan) if self.scaled else {}
        todo = [name for name in plan.to_make(self.member) if (plan.member(name).plain is not None) == self.scaled]
        refused = {
            name: f"its plain merge could not be made: {before[plain]}"
            for name in todo
            if (plain := plan.member(name).plain) in before
        }
        stages = [name for name in plan.to_merge(self.member, scaled=self.scaled) if not plan.member(name).scores]
        names = [name for name in [*todo, *stages] if name not in refused]
        with held([workplace(store, plan, one) for one in lacking(names)]):
            # what another run was making until its folder was ours is there now
            if wanted := lacking(names):
                refused |= Merging(store, plan, wanted).run()
        store.write_json(_not_made_key(plan, self.member, scaled=self.scaled), refused)
        return [name for name in todo if name not in refused]


def not_made(store: ObjectStore, plan: StudyPlan) -> dict[str, str]:
    """The merges of a run that could not be made, each with the reason in one line."""
    combinations = dict.fromkeys("+".join(one.combination) for one in plan.candidates)
    return {
        name: reason
        for combination in combinations
        for scaled in (False, True)
        for name, reason in (store.read_json(_not_made_key(plan, combination, scaled=scaled)) or {}).items()
    }


def _not_made_key(plan: StudyPlan, combination: str, *, scaled: bool) -> str:
    return f"studies/{plan.study.name}/{plan.run}/not_made/{combination}{'.acm' if scaled else ''}.json"


def workplace(store: ObjectStore, plan: StudyPlan, candidate: PlannedCandidate) -> Path:
    """Where this worker makes a candidate: the same folder for every try, so that a killed one is gone on with.

    A forced run goes on with nothing but its own.
    """
    name = json_digest([candidate.digest, plan.run]) if plan.force else candidate.digest
    return store.cache / "merging" / name


@contextmanager
def held(folders: Sequence[Path]) -> Iterator[None]:
    """The folders, each held for this process; another that has one is waited for. In one order, so that none waits
    for one who waits for it."""
    from merging.output import lock

    with ExitStack() as stack:
        for folder in sorted(folders):
            try:
                descriptor = lock(folder)
            except TransientError:
                log.info("%s: another task is making this candidate; waiting for it", folder)
                descriptor = lock(folder, wait=True)
            stack.callback(_leave, folder, descriptor)
        yield


def _leave(folder: Path, descriptor: int) -> None:
    from merging.output import is_at

    if is_at(descriptor, folder):  # else it was removed, and what is there now is another task's
        with suppress(OSError):
            folder.rmdir()  # a folder that holds something is for the next try
    os.close(descriptor)


class Merging:
    """The making of candidates that lack a checkpoint; each is published as soon as it is whole."""

    def __init__(self, store: ObjectStore, plan: StudyPlan, wanted: Sequence[PlannedCandidate]):
        self.store, self.plan, self.wanted = store, plan, wanted
        self.digests = {model.reference: model.digest for model in plan.models}
        self.refused: dict[str, str] = {}

    def run(self) -> dict[str, str]:
        """Make and publish all. The names of those that cannot be made, each with the reason in one line."""
        left = [one for one in self.wanted if not self._finished_before(one)]
        if left:
            self._merge(left)
        return self.refused

    def _finished_before(self, candidate: PlannedCandidate) -> bool:
        """Publish what a task had whole when it was killed."""
        folder = workplace(self.store, self.plan, candidate)
        if not (folder / MODEL).exists():
            return False
        try:
            about = json.loads((folder / ABOUT).read_text())
        except (OSError, ValueError):  # killed before it was noted what this is
            shutil.rmtree(folder / MODEL)
            return False
        self._publish(candidate, about)
        return True

    def _merge(self, wanted: Sequence[PlannedCandidate]) -> None:
        from merging.engine import merge_many
        from merging.recipe import Recipe
        from operators.consensus import consensus_files

        store, plan = self.store, self.plan
        recipes = [Recipe.parse(one.recipe) for one in wanted]
        statistics = None
        if any(recipe.aim for recipe in recipes):
            statistics = store.local("calibrations", plan.calibration.digest) / STATISTICS
        names = {name for recipe in recipes for name in recipe.inputs}
        models = {name: store.local("models", self.digests[name]) for name in names}

        def done(index: int, result: dict | InputError) -> None:
            if isinstance(result, InputError):
                self._refuse(wanted[index], result)
            else:
                self._take(wanted[index], recipes[index].inputs, result)

        with named_models(models):
            merge_many(
                recipes,
                [workplace(store, plan, one) / MODEL for one in wanted],
                models=models,
                digests=self.digests,
                statistics=statistics,
                consensus=[consensus_files(store, one) for one in wanted],
                progress=log_lines(),
                metadata=[self._shown(one) for one in wanted],
                shard_size=SHARD_SIZE,
                done=done,
            )

    def _shown(self, candidate: PlannedCandidate) -> dict[str, str]:
        """What a candidate's model card says of it beyond the recipe."""
        shown = {"name": candidate.name, "study": self.plan.study.name, "recipe digest": candidate.digest}
        if "aim" in candidate.recipe:
            made = self.plan.calibration
            shown["calibration"] = f"{made.samples} samples, blocks of {made.block} tokens; digest {made.digest}"
        return shown

    def _take(self, candidate: PlannedCandidate, inputs: Sequence[str], result: Mapping[str, Any]) -> None:
        for note in result["notes"]:
            log.info("%s: %s", candidate.name, note)
        about = {
            "recipe": candidate.recipe,
            "inputs": {name: self.digests[name] for name in inputs},
            "calibration": self.plan.calibration.digest if "aim" in candidate.recipe else None,
            "consensus": candidate.consensus,
            **{key: result[key] for key in ("delta_norms", "lambdas", "lengths", "notes") if key in result},
        }
        (workplace(self.store, self.plan, candidate) / ABOUT).write_text(json.dumps(about))
        self._publish(candidate, about)

    def _publish(self, candidate: PlannedCandidate, about: Mapping[str, Any]) -> None:
        folder = workplace(self.store, self.plan, candidate)
        manifest = self.store.publish("models", candidate.digest, folder / MODEL, about, force=self.plan.force)
        self.store.keep("models", candidate.digest, folder / MODEL, manifest)
        shutil.rmtree(folder)

    def _refuse(self, candidate: PlannedCandidate, error: InputError) -> None:
        folder = workplace(self.store, self.plan, candidate)
        reason = in_one_line(error, folder / f"{MODEL}.partial")
        log.warning("not made: %s: %s", candidate.name, reason)
        self.refused[candidate.name] = reason
        shutil.rmtree(folder)


def in_one_line(error: InputError, folder: Path) -> str:
    """The first of an error's problems, without the folder it names, and how many more there are."""
    first = " ".join(error.problems[0].removeprefix(f"{folder}: ").split())
    more = len(error.problems) - 1
    return first[:500] + (f" (and {more} more)" if more else "")


@contextmanager
def named_models(models: Mapping[str, Path]) -> Iterator[None]:
    """Let errors within speak of models by the study's names for them, not by folders of the worker's cache."""
    try:
        yield
    except InputError as error:
        problems = error.problems
        for name, folder in models.items():
            problems = [problem.replace(str(folder), name) for problem in problems]
        raise InputError(problems) from None
