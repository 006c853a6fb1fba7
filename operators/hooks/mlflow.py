"""MLflow: an experiment per study, a run per DAG run with nested runs, and versions in the model registry."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from merging.errors import InputError, TransientError

DAG_RUN, MEMBER, DIGEST = "mergeflow.dag_run", "mergeflow.member", "mergeflow.digest"
PARENT, DESCRIPTION, KIND = "mlflow.parentRunId", "mlflow.note.content", "mlflow.experimentKind"

# What a person must put right; any other error code is MLflow's own trouble.
TERMINAL = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}


class Version(NamedTuple):
    """A version in the registry."""

    number: int
    digest: str
    source: str


class Tracking:
    """One MLflow server. Every call can be repeated: what is there already is found again.

    MLflow reads a user and password from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    Errors: a server that cannot be reached or fails is TransientError; what it refuses is InputError.
    """

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        self.shown = without_credentials(self.uri)
        check_reachable(self.uri, self.shown)
        # MLflow's client reports its use to its makers unless told not to, before its import.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self._families: dict[str, tuple[str, dict]] = {}

    def experiment(self, study: str) -> str:
        """The id of a study's experiment, made if it is not there."""
        with self._errors(f"open the experiment {study!r}"):
            found = self.client.get_experiment_by_name(study)
            if found is None:
                # Without its kind MLflow shows an experiment as a collection of traces.
                tags = {KIND: "custom_model_development"}
                return self._unless_there(
                    lambda: self.client.create_experiment(study, tags=tags),
                    lambda: self.client.get_experiment_by_name(study).experiment_id,
                )
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return found.experiment_id

    def parent_run(self, experiment: str, dag_run: str, tags: Mapping[str, str]) -> str:
        """The id of the MLflow run of a DAG run, made if it is not there; running, with `tags` added."""
        with self._errors(f"open the run of {dag_run!r}"):
            found = self.client.search_runs([experiment], f"tags.`{DAG_RUN}` = '{dag_run}'", max_results=1)
            if not found:
                run = self.client.create_run(experiment, tags={DAG_RUN: dag_run, **tags}, run_name=dag_run)
                return run.info.run_id
            run = found[0].info.run_id
            if found[0].info.status != "RUNNING":
                self.client.update_run(run, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run, key, value)
            return run

    def fail(self, study: str, dag_run: str) -> None:
        """End the run of a DAG run as FAILED, if there is one."""
        with self._errors(f"end the run of {dag_run!r}"):
            experiment = self.client.get_experiment_by_name(study)
            if experiment is None:
                return
            query = f"tags.`{DAG_RUN}` = '{dag_run}'"
            for run in self.client.search_runs([experiment.experiment_id], query, max_results=1):
                self._end(run.info.run_id, "FAILED")

    def log_member(
        self,
        parent: str,
        name: str,
        metrics: Mapping[str, float],
        params: Mapping[str, str],
        tags: Mapping[str, str],
        artifacts: Mapping[str, Path],
        status: str = "FINISHED",
    ) -> str:
        """Record a candidate or input model as a run nested in `parent`, ended as FINISHED or FAILED; returns its id.

        `artifacts`: local files by the path they get in MLflow. Parameters cannot change in a run: if they did, since
        the same name was recorded (the study was edited, the DAG run started again), a new run takes its place.
        """
        from mlflow.entities import Metric, Param, RunTag

        params = {key: str(value) for key, value in params.items()}
        with self._errors(f"record {name!r}"):
            experiment, members = self._family(parent)
            run, recorded = members.get(name, (None, params))
            if recorded != params:
                self.client.delete_run(run)
                run = None
            if run is None:
                made = self.client.create_run(experiment, tags={PARENT: parent, MEMBER: name}, run_name=name)
                run = made.info.run_id
            members[name] = run, params
            now = int(time.time() * 1000)
            self.client.log_batch(
                run,
                metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
                params=[Param(key, value) for key, value in params.items()],
                tags=[RunTag(key, str(value)) for key, value in tags.items()],
            )
            self.log_files(run, artifacts)
            self._end(run, status)
            return run

    def log_files(self, run: str, files: Mapping[str, Path]) -> None:
        """Store local files as artifacts, each at its path; what lay there is replaced."""
        self.log_bytes(run, {name: path.read_bytes() for name, path in files.items()})

    def log_texts(self, run: str, texts: Mapping[str, str]) -> None:
        """Store texts as artifacts, each at its path."""
        self.log_bytes(run, {name: text.encode() for name, text in texts.items()})

    def log_bytes(self, run: str, contents: Mapping[str, bytes]) -> None:
        """Store bytes as artifacts, each at its path."""
        with tempfile.TemporaryDirectory(prefix="mergeflow-") as folder, self._errors("store artifacts"):

            def upload(name: str) -> None:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents[name])
                self.client.log_artifact(run, path, PurePosixPath(name).parent.as_posix().removeprefix("."))

            with ThreadPoolExecutor(max_workers=4) as pool:
                list(pool.map(upload, contents))

    def describe(self, run: str, markdown: str) -> None:
        """Set the description that heads a run's page."""
        with self._errors("describe a run"):
            self.client.set_tag(run, DESCRIPTION, markdown)

    def finish(self, run: str, status: str) -> None:
        """End a run as FINISHED or FAILED."""
        with self._errors("end a run"):
            self._end(run, status)

    def register(
        self, model: str, digest: str, source: str, run: str, tags: Mapping[str, str], description: str | None = None
    ) -> int:
        """The number of the version of `model` that has this digest, made if there is none.

        `source` (s3://bucket/models/DIGEST) is registered by reference: nothing is copied, nor checked to be there.
        """
        with self._errors(f"register a version of {model!r}"):
            self._unless_there(lambda: self.client.create_registered_model(model), lambda: None)
            tags = {DIGEST: digest, **{key: str(value) for key, value in tags.items()}}
            if found := self._versions(model, digest):
                standing = self.client.get_model_version(model, str(found[0])).tags
                for key, value in tags.items():
                    if standing.get(key) != value:
                        self.client.set_model_version_tag(model, str(found[0]), key, value)
                return found[0]
            about = {"run_id": run, "tags": tags, "description": description, "await_creation_for": 0}
            mine = int(self.client.create_model_version(model, source, **about).version)
            first = self._versions(model, digest)[0]
            if first < mine:  # another task registered the same checkpoint meanwhile
                self.client.delete_model_version(model, str(mine))
            return first

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Let `models:/MODEL@ALIAS` be this version."""
        with self._errors(f"set the alias {alias!r} of {model!r}"):
            self.client.set_registered_model_alias(model, alias, str(version))

    def remove_alias(self, model: str, alias: str) -> None:
        """Let `models:/MODEL@ALIAS` be nothing."""
        with self._errors(f"remove the alias {alias!r} of {model!r}"):
            self.client.delete_registered_model_alias(model, alias)

    def champion(self, model: str) -> Version | None:
        """The version that has the alias `champion`, or None."""
        from mlflow.exceptions import MlflowException

        with self._errors(f"look up the champion of {model!r}"):
            try:
                found = self.client.get_model_version_by_alias(model, "champion")
            except MlflowException as error:
                # MLflow says INVALID_PARAMETER_VALUE where a model has no such alias.
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
            return Version(int(found.version), found.tags.get(DIGEST, ""), found.source)

    def run_url(self, experiment: str, run: str) -> str:
        """The page of one run."""
        return f"{self.shown}/#/experiments/{experiment}/runs/{run}"

    def runs_url(self, experiment: str) -> str:
        """The page that lists an experiment's runs."""
        return f"{self.shown}/#/experiments/{experiment}/runs"

    def compare_url(self, experiment: str, runs: list[str]) -> str:
        """The page that sets these runs side by side, with parallel coordinates over parameters and metrics."""
        chosen, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (runs, [experiment]))
        return f"{self.shown}/#/compare-runs?runs={chosen}&experiments={experiments}"

    def _family(self, parent: str) -> tuple[str, dict[str, tuple[str, dict[str, str]]]]:
        """The parent's experiment, and by name the nested runs it has: their ids and parameters."""
        if parent not in self._families:
            experiment = self.client.get_run(parent).info.experiment_id
            runs = self.client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=10_000)
            members = {run.data.tags[MEMBER]: (run.info.run_id, run.data.params) for run in runs}
            self._families[parent] = experiment, members
        return self._families[parent]

    def _versions(self, model: str, digest: str) -> list[int]:
        found = self.client.search_model_versions(f"name = '{model}' and tags.`{DIGEST}` = '{digest}'")
        return sorted(int(version.version) for version in found)

    def _end(self, run: str, status: str) -> None:
        from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT as SILENT

        SILENT.set(True)
        self.client.set_terminated(run, status)

    def _unless_there(self, make: Callable[[], Any], find: Callable[[], Any]) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return make()
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return find()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        try:
            yield
        except MlflowException as error:
            reason = f"MLflow at {self.shown} cannot {what}: {str(error).splitlines()[0]}".replace(self.uri, self.shown)
            raise (InputError if error.error_code in TERMINAL else TransientError)(reason) from None
        except RequestException as error:  # artifacts travel past MLflow's own error handling
            raise TransientError(f"MLflow at {self.shown} cannot {what} ({type(error).__name__})") from None


def tracking(conn_id: str = "mlflow_default") -> Tracking:
    """The server an Airflow connection names."""
    from operators.hooks.connections import address

    url, _ = address(conn_id)
    if url is None:
        raise InputError(f"the Airflow connection {conn_id} has no host: set it to MLflow's address")
    return Tracking(url)


def check_reachable(uri: str, shown: str) -> None:
    """TransientError at once if nothing answers: MLflow's own client keeps trying for minutes."""
    import requests

    try:
        requests.get(f"{uri}/health", timeout=10)
    except requests.RequestException as error:
        raise TransientError(
            f"MLflow does not answer at {shown} ({type(error).__name__}): is it running, and is this the address?"
        ) from None


def without_credentials(uri: str) -> str:
    """The address as it may be shown."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
