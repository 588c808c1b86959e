"""Experiment trackers as log formats: Weights & Biases, MLflow and trackio.

Each keeps a run's numbers by environment steps, and its hyper-parameters. They obey the tracker's own
environment variables (`WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, `TRACKIO_DIR`, ...).
"""

from __future__ import annotations

import importlib
import os
import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from advantage.training.loggers import Excluded, KVWriter, included, plain

PROJECT = "advantage"
"""Project or experiment of runs whose tracker names none by its environment variable."""


class Tracker(KVWriter):
    """A run of a tracker, begun with the first row or settings, so that a start that fails leaves none.

    What is excluded from TensorBoard is left out here too: the x-axis holds the steps already.
    """

    name: str

    def __init__(self, folder: str, resumed: str | None = None):
        self.resumed = resumed  # the `identity` of the run to go on with
        self.folder, self.title = folder, os.path.basename(os.path.normpath(folder))

    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        """Log the numbers of a row at `step`; text and arrays have no curve and are left out."""
        values = {key: plain(x) for key, x in included(key_values, key_excluded, self.name, "tensorboard").items()}
        numbers = {key: float(x) for key, x in values.items() if isinstance(x, bool | int | float)}
        if numbers:
            self.log(numbers, step)

    @abstractmethod
    def log(self, numbers: dict[str, float], step: int) -> None:
        """Log numbers at a step."""


class WandbWriter(Tracker):
    """Weights & Biases: the run that is active (`wandb.init` before training), else one of its own in `folder`.

    Raises:
        ImportError: `wandb` is not installed.
        RuntimeError: a run cannot begin: nobody is logged in, no network.
    """

    name = "wandb"

    def __init__(self, folder: str, resumed: str | None = None):
        super().__init__(folder, resumed)
        self._wandb = require("wandb")
        self._run: Any = None
        self._own = False

    def run(self) -> Any:
        """The tracker's run."""
        if self._run is None:
            self._own = self._wandb.run is None
            self._run = self._wandb.run or self._begin()
        return self._run

    def _begin(self) -> Any:
        project = os.getenv("WANDB_PROJECT", PROJECT)
        again = {} if self.resumed is None else {"id": self.resumed, "resume": "allow"}
        try:
            return self._wandb.init(project=project, name=self.title, dir=self.folder, reinit="create_new", **again)
        except (self._wandb.Error, OSError) as error:
            raise RuntimeError(
                f"Weights & Biases cannot begin a run ({' '.join(str(error).split())}): log in with `wandb login`,"
                " or set WANDB_MODE=offline"
            ) from error

    def identity(self) -> str | None:
        return self.resumed if self._run is None else self._run.id

    def settings(self, values: Mapping[str, Any]) -> None:
        self.run().config.update(dict(values), allow_val_change=True)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run().log(numbers, step=step)

    def close(self) -> None:
        if self._run is not None and self._own:
            self._run.finish()
        self._run = None


class MLflowWriter(Tracker):
    """MLflow: a run in the experiment of `MLFLOW_EXPERIMENT_NAME` at `MLFLOW_TRACKING_URI`.

    Without the latter the store is `folder/mlflow.db`; `mlflow ui --backend-store-uri sqlite:///...` shows it.

    Raises:
        ImportError: `mlflow` is not installed.
    """

    name = "mlflow"

    def __init__(self, folder: str, resumed: str | None = None):
        super().__init__(folder, resumed)
        self._mlflow = require("mlflow")
        self._client: Any = None
        self.run_id: str | None = None
        self._known: set[str] = set()  # parameters cannot be changed once they are logged

    def client(self) -> Any:
        """The connection to the store, with a run begun."""
        if self.run_id is None:
            uri = os.getenv("MLFLOW_TRACKING_URI") or f"sqlite:///{os.path.abspath(self.folder)}/mlflow.db"
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
            name = os.getenv("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self._client.get_experiment_by_name(name)
            number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
            again = self.resumed is not None
            self.run_id = self.resumed if again else self._client.create_run(number, run_name=self.title).info.run_id
        return self._client

    def identity(self) -> str | None:
        return self.run_id or self.resumed

    def settings(self, values: Mapping[str, Any]) -> None:
        client = self.client()
        if self.resumed is not None:
            self._known |= client.get_run(self.resumed).data.params.keys()
        for key, value in values.items():
            if key not in self._known:
                self._known.add(key)
                client.log_param(self.run_id, _allowed(key), value)

    def log(self, numbers: dict[str, float], step: int) -> None:
        metric, now = self._mlflow.entities.Metric, int(time.time() * 1000)
        rows = [metric(_allowed(key), value, now, step) for key, value in numbers.items()]
        self.client().log_batch(self.run_id, metrics=rows)

    def close(self) -> None:
        if self.run_id is not None:
            self._client.set_terminated(self.run_id)
        self.run_id = None


class TrackioWriter(Tracker):
    """trackio: a run in its local store, which `trackio show --project advantage` shows.

    Raises:
        ImportError: `trackio` is not installed.
    """

    name = "trackio"

    def __init__(self, folder: str, resumed: str | None = None):
        super().__init__(folder, resumed)
        self._trackio = require("trackio")
        self._run: Any = None
        self._settings: dict[str, Any] = {}

    def identity(self) -> str | None:
        return self.title  # a run's name is its place in the store

    def settings(self, values: Mapping[str, Any]) -> None:
        self._settings |= values  # a run takes them when it begins

    def log(self, numbers: dict[str, float], step: int) -> None:
        if self._run is None:
            project = os.getenv("TRACKIO_PROJECT", PROJECT)
            again = {} if self.resumed is None else {"resume": "allow"}
            self._run = self._trackio.init(project=project, name=self.title, config=self._settings, **again)
        self._run.log(numbers, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()
        self._run = None


TRACKERS = {writer.name: writer for writer in (WandbWriter, MLflowWriter, TrackioWriter)}


def require(package: str) -> Any:
    """Import a tracker's package.

    Raises:
        ImportError: it is not installed; the message says what to run.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ImportError(f'log format "{package}" needs its package: pip install "advantage[{package}]"') from None


def _allowed(key: str) -> str:
    """A key in the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", key)
