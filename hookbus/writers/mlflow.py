"""MLflow, behind the extra `mlflow`."""

from __future__ import annotations

__all__ = ("MLflowWriter",)

import importlib.util
import re
import time
from numbers import Real
from typing import Any

from hookbus.errors import ConfigError
from hookbus.events import ImagesDrawn
from hookbus.types import Mode
from hookbus.writers.base import Record, RunPlace, Writer

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_./ -]")


class MLflowWriter(Writer):
    """Logs the scalars of each record to a run of MLflow, `train/loss`, `val/loss` and the like, at the completed iterations.

    The run begins with the first record. Values that are not one number are left to other writers.

    Args:
        tracking_uri: where runs are kept; what MLflow says itself where left out.
        experiment: the experiment; that of the run where left out.
        run_name: the name of the run; MLflow finds one where left out.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str | None = None, run_name: str | None = None) -> None:
        if importlib.util.find_spec("mlflow") is None:
            msg = "MLflowWriter needs mlflow: pip install 'hookbus[mlflow]'"
            raise ConfigError(msg)
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._run_name = run_name
        self._place: RunPlace | None = None
        self._client: Any = None
        self._run_id: str | None = None
        self._parameters: dict[str, Any] = {}
        """The hyper-parameters, until a request took them along."""

    def open(self, place: RunPlace) -> None:
        """Learn what the run is called; it begins with the first record."""
        self.close()
        self._place = place
        self._parameters = dict(place.hyperparameters)

    def write(self, record: Record) -> None:
        """Log the numbers of a record in one request."""
        run_id = self._started()
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        numbers = {key: value for key, value in record.values.items() if isinstance(value, Real)}
        metrics = [Metric(_named(record.mode, key), float(value), now, record.iter) for key, value in numbers.items()]
        self._client.log_batch(run_id, metrics, [Param(key, str(value)) for key, value in self._parameters.items()])
        self._parameters = {}

    def write_images(self, images: ImagesDrawn) -> None:
        """Keep the images as artifacts."""
        run_id = self._started()
        for path in images.paths:
            self._client.log_artifact(run_id, path, artifact_path=f"images/{images.mode}")

    def close(self) -> None:
        """Say that the run is over."""
        if self._run_id is not None:
            run_id, self._run_id = self._run_id, None
            self._client.set_terminated(run_id)

    def _started(self) -> str:
        """Begin a run of its own; no other code of the process finds it as the active one."""
        if self._run_id is None:
            from mlflow import MlflowClient

            place = self._place
            assert place is not None
            self._client = client = MlflowClient(self._tracking_uri)
            name = self._experiment or place.experiment_name
            found = client.get_experiment_by_name(name)
            experiment_id = found.experiment_id if found is not None else client.create_experiment(name)
            run_id: str = client.create_run(experiment_id, run_name=self._run_name).info.run_id
            self._run_id = run_id
        return self._run_id


def _named(mode: Mode, key: str) -> str:
    """Return `<mode>/<key>`, with `_` for what MLflow takes in no name; one such name would cost the whole record."""
    return _NOT_IN_NAMES.sub("_", key if key.startswith(f"{mode}/") else f"{mode}/{key}")
