"""MLflow's tracking and model registry, spoken to in one place; imported only when a run is tracked."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from schemas.bundle import BUNDLE
from schemas.release import RELEASE
from schemas.storage import filesystem, sha256_of
from schemas.store_urls import sqlite_file

_CONNECT_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql+psycopg2": 5432}
_PARAMS_A_BATCH = 100  # MLflow takes no more at once
_LONGEST_VALUE = 6000
_BUNDLE_TAG, _RELEASE_TAG = "headrace.bundle_sha256", "headrace.release_sha256"
CHAMPION, CHALLENGER = "champion", "challenger"
# MLflow and what it starts send nothing home, and a server that does not answer is given up soon.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "PGCONNECT_TIMEOUT": "5",
}


class MlflowStore:
    """MLflow at an address without a password. Raises OSError where nobody listens there, else what MLflow raises."""

    def __init__(self, uri: str) -> None:
        _check_reachable(uri)
        os.environ.update(_SETTINGS)
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for noisy in ("mlflow", "alembic"):  # after the import, which sets levels of its own
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self.uri = uri
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def run_of(self, run_id: str | None, *, experiment: str, name: str, artifacts: Path, began_ms: int) -> str:
        """The run that goes on, or a new one where it is not known here; give its id.

        `artifacts` is where files go of an experiment that is new and in a database; a server has a place of its own.
        """
        from mlflow.exceptions import MlflowException

        if run_id is not None:
            try:
                self._client.get_run(run_id)
                return run_id
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._client.get_experiment_by_name(experiment)
        if found is not None:
            experiment_id = found.experiment_id
        else:
            file = sqlite_file(self.uri)
            folder = file.parent / "mlartifacts" if file is not None else artifacts
            place = None if self.uri.startswith("http") else folder.absolute().as_uri()
            experiment_id = self._client.create_experiment(experiment, artifact_location=place)
        return str(self._client.create_run(experiment_id, start_time=began_ms, run_name=name).info.run_id)

    def describe(self, run_id: str, params: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        listed = [Param(name_of(name), value[:_LONGEST_VALUE]) for name, value in params.items()]
        for start in range(0, len(listed), _PARAMS_A_BATCH):
            self._client.log_batch(run_id, params=listed[start : start + _PARAMS_A_BATCH])
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def epochs(self, run_id: str) -> set[int]:
        """Epochs whose metrics are there; an epoch's are written all at once, so its loss stands for all of them."""
        return {metric.step for metric in self._client.get_metric_history(run_id, "loss")}

    def log_epoch(self, run_id: str, epoch: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name_of(name), float(value), now, epoch) for name, value in values.items()]
        self._client.log_batch(run_id, metrics=metrics)

    def save_file(self, run_id: str, path: Path) -> None:
        self._client.log_artifact(run_id, str(path))

    def set_status(self, run_id: str, status: str) -> None:
        """RUNNING, or how it ended; a run that is so already keeps the time at which it ended."""
        if self._client.get_run(run_id).info.status == status:
            return
        if status == "RUNNING":
            self._client.update_run(run_id, status)
        else:
            self._client.set_terminated(run_id, status)

    def register(self, run_id: str, bundle: Path, *, model: str, alias: str | None) -> tuple[str, bool]:
        """Make the bundle a version of a model, unless it is one, and give it the alias.

        Gives the version and whether it is new. Its files are those of the bundle and nothing else.
        """
        tags = {_BUNDLE_TAG: sha256_of(*filesystem(str(bundle / BUNDLE)))}
        version = self._version(model, _BUNDLE_TAG, tags[_BUNDLE_TAG])
        is_new = version is None
        if version is None:
            version = self._new_version(run_id, bundle, model, tags)
        if alias is not None:
            self._client.set_registered_model_alias(model, alias, version)
        return version, is_new

    def register_release(
        self, release: Path, *, name: str, experiment: str, model: str, tags: dict[str, str], alias: str | None
    ) -> tuple[str, bool]:
        """Make the release a version of a model, unless it is one, with these tags; give it the alias.

        Gives the version and whether it is new. A new one gets a run of its own, which holds the release's files. Who
        becomes the champion is no challenger any longer.
        """
        digest = sha256_of(*filesystem(str(release / RELEASE)))
        version = self._version(model, _RELEASE_TAG, digest)
        is_new = version is None
        if version is None:
            place, now_ms = release.parent / "mlartifacts", int(time.time() * 1000)
            run_id = self.run_of(None, experiment=experiment, name=name, artifacts=place, began_ms=now_ms)
            version = self._new_version(run_id, release, model, {_RELEASE_TAG: digest, **tags})
            self.set_status(run_id, "FINISHED")
        else:
            for key, value in tags.items():
                self._client.set_model_version_tag(model, version, key, value)
        if alias is not None:
            self._client.set_registered_model_alias(model, alias, version)
        challenger = self._client.get_registered_model(model).aliases.get(CHALLENGER)
        if alias == CHAMPION and str(challenger) == version:  # a number in some stores
            self._client.delete_registered_model_alias(model, CHALLENGER)
        return version, is_new

    def _version(self, model: str, tag: str, digest: str) -> str | None:
        """The version of the model, which is made where it is not known, that has the tag."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name='{model}'")
        return next((str(one.version) for one in known if one.tags.get(tag) == digest), None)

    def _new_version(self, run_id: str, folder: Path, model: str, tags: dict[str, str]) -> str:
        self._client.log_artifacts(run_id, str(folder), folder.name)
        source = f"{self._client.get_run(run_id).info.artifact_uri}/{folder.name}"
        return str(self._client.create_model_version(model, source, run_id=run_id, tags=tags).version)


def name_of(key: str) -> str:
    """A name as MLflow takes it: ndcg@10 is ndcg_at_10."""
    return re.sub(r"[^\w\-. /:]", "_", key.replace("@", "_at_"))


def _check_reachable(uri: str) -> None:
    """Raise OSError where nobody listens: MLflow itself would try for minutes."""
    parts = urlsplit(uri)
    if parts.hostname is not None:
        socket.create_connection((parts.hostname, parts.port or _PORTS[parts.scheme]), _CONNECT_S).close()
