"""Trackers without a network: what is logged is read back from their own stores, where they are installed."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from advantage.training import loggers, trackers
from advantage.training.loggers import configure
from advantage.training.trackers import TRACKERS

# Each in a process of its own, as a user has it: trackers read their environment when they are imported.
TRAINING = """
import sys
from advantage import PPO
from advantage.training.loggers import configure

name, folder = sys.argv[1:]
model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, seed=0, learning_rate=lambda left: 1e-3 * left)
model.set_logger(configure(folder, [name, "json"]))
model.learn(256, log_interval=1)
model.learn(128, log_interval=1, reset_num_timesteps=False)
model.logger.close()
"""


def train(name, folder, **environment):
    """Train with a tracker; the rows that the JSON format wrote of the same values."""
    pytest.importorskip(name)
    command = [sys.executable, "-c", TRAINING, name, str(folder)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]


def answer(code, *arguments, **environment):
    """What a program prints last, as JSON: the trackers' own libraries do not bear our checks of every call."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def records(path):
    """The records of a `.wandb` file: a log of blocks of 32 KB, each record behind a header of 7 bytes."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield whole
            whole = b""


def test_weights_and_biases_offline(tmp_path):
    """Every row by its steps, and the settings; functions by name."""
    rows = train("wandb", tmp_path / "run", WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(tmp_path))
    from wandb.proto import wandb_internal_pb2

    (path,) = (tmp_path / "run").rglob("run-*.wandb")
    history, settings = [], {}
    for text in records(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(text)
        if record.HasField("history"):
            history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
        for item in record.config.update:
            settings["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        for item in record.run.config.update:
            settings["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert [row["_step"] for row in history] == [row["time/total_timesteps"] for row in rows] == [64, 128, 192, 256, 320, 384]
    for logged, row in zip(history, rows, strict=True):
        assert logged["train/value_loss"] == pytest.approx(row["train/value_loss"])
        assert "time/total_timesteps" not in logged  # the x-axis
    assert settings["n_steps"] == 64 and settings["algorithm"] == "PPO" and settings["learning_rate"] == "function"


@pytest.mark.parametrize("where", ["folder", "environment"])
def test_mlflow_in_a_local_store(tmp_path, where):
    """In a database of the run's folder, or where the environment says."""
    uri = f"sqlite:///{tmp_path}/{'run' if where == 'folder' else 'store'}/mlflow.db"
    (tmp_path / "store").mkdir()
    environment = {} if where == "folder" else {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "mine"}
    rows = train("mlflow", tmp_path / "run", **environment)
    code = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.get_experiment_by_name(sys.argv[2])
(run,) = client.search_runs([experiment.experiment_id])
history = client.get_metric_history(run.info.run_id, "train/value_loss")
values = [[m.step for m in history], [m.value for m in history]]
print(json.dumps([run.info.run_name, run.info.status, run.data.params, *values]))
"""
    name, status, parameters, steps, values = answer(code, uri, environment.get("MLFLOW_EXPERIMENT_NAME", "advantage"))
    assert (name, status) == ("run", "FINISHED")
    assert parameters["n_steps"] == "64" and parameters["learning_rate"] == "function"
    assert steps == [row["time/total_timesteps"] for row in rows] and len(steps) == 6
    assert values == pytest.approx([row["train/value_loss"] for row in rows])


def test_trackio_in_a_local_store(tmp_path):
    """In the folder that its own variable names."""
    rows = train("trackio", tmp_path / "run", TRACKIO_DIR=str(tmp_path / "store"))
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("advantage", "run")))
"""
    logged = answer(code, TRACKIO_DIR=str(tmp_path / "store"))
    assert [row["step"] for row in logged] == [row["time/total_timesteps"] for row in rows]
    assert [row["train/value_loss"] for row in logged] == pytest.approx([row["train/value_loss"] for row in rows])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_is_named_before_training(name, tmp_path, monkeypatch):
    """With what to install."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'log format "{name}" needs its package: pip install "advantage\[{name}\]"'):
        configure(tmp_path, [name])


class Noted(trackers.Tracker):
    """A tracker that remembers."""

    name = "noted"

    def __init__(self, folder):
        super().__init__(folder)
        self.rows, self.kept = [], {}

    def log(self, numbers, step):
        self.rows.append((numbers, step))

    def settings(self, values):
        self.kept |= values

    def close(self):
        """Nothing to release."""


def test_numbers_alone_are_logged(tmp_path):
    """Neither text nor arrays nor what is excluded; a row without numbers is none."""
    tracker = Noted(str(tmp_path / "run"))
    logger = loggers.Logger(None, [tracker])
    logger.settings({"gamma": 0.9})
    for key, value, exclude in (("a", 1, None), ("b", "text", None), ("c", 2.0, "noted"), ("d", 3.0, "tensorboard"), ("e", True, "csv")):
        logger.record(key, value, exclude)
    logger.dump(10)
    logger.record("b", "text")
    logger.dump(20)
    assert tracker.rows == [({"a": 1.0, "e": 1.0}, 10)] and tracker.kept == {"gamma": 0.9}
    assert tracker.title == Path(tmp_path, "run").name
