"""Loggers: SB3's keys and table, CSV with late columns, event files read back, folders numbered."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from advantage.training import loggers
from advantage.training.loggers import ConsoleTable, CSVWriter, Logger, configure, configure_run, run_folder


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_table_looks_like_sb3s(capsys):
    logger = Logger(None, [ConsoleTable()])
    logger.record("time/fps", 1234)
    logger.record("rollout/ep_rew_mean", 21.456789)
    logger.record("time/total_timesteps", 2048, exclude="tensorboard")
    logger.record("train/loss", np.float32(0.0123456))
    logger.dump(2048)
    assert capsys.readouterr().out == (
        "---------------------------------\n"
        "| rollout/           |          |\n"
        "|    ep_rew_mean     | 21.5     |\n"
        "| time/              |          |\n"
        "|    fps             | 1234     |\n"
        "|    total_timesteps | 2048     |\n"
        "| train/             |          |\n"
        "|    loss            | 0.0123   |\n"
        "---------------------------------\n"
    )


def test_table_cuts_long_names_without_failing(tmp_path):
    table = ConsoleTable(str(tmp_path / "log.txt"))
    table.write({"eval/" + "x" * 50 + "1": 1, "eval/" + "x" * 50 + "2": 2, "plain": "a\nb"}, {})
    table.write({}, {})
    table.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 6 and len({len(line) for line in lines}) == 1 and len(lines[0]) <= 79
    assert lines[1].startswith("| plain") and "a b" in lines[1]
    assert sum("xxx..." in line for line in lines) == 2


def test_record_takes_the_last_value_and_record_mean_the_mean():
    logger = Logger("a folder", [])
    assert logger.dir == logger.get_dir() == "a folder"
    logger.record("train/loss", 1.0)
    logger.record("train/loss", 3.0)
    for value in (1.0, None, 2.0, 6.0):
        logger.record_mean("train/kl", value)
    assert logger.name_to_value == {"train/loss": 3.0, "train/kl": 3.0}
    assert logger.name_to_value["absent"] == 0.0 and "absent" not in logger.name_to_value
    logger.dump()
    assert logger.name_to_value == {}
    logger.record_mean("train/kl", 7.0)
    assert logger.name_to_value["train/kl"] == 7.0


def test_excluded_keys_and_levels(tmp_path, capsys):
    logger = configure(str(tmp_path), ["stdout", "csv", "json"])
    assert capsys.readouterr().out == f"Logging to {tmp_path}\n"
    logger.record("a", 1, exclude=("stdout", "json"))
    logger.record("b", np.array([2, 3]), exclude="csv")
    logger.dump()
    logger.debug("not shown")
    logger.warn("shown", 1)
    logger.set_level(loggers.DISABLED)
    logger.record("b", 3)
    logger.dump()
    logger.close()
    out = capsys.readouterr().out
    assert "| b |" in out and "| a |" not in out and "not shown" not in out and "shown 1\n" in out
    assert rows_of(tmp_path / "progress.csv") == [["a"], ["1"]]
    assert json.loads((tmp_path / "progress.json").read_text()) == {"b": [2, 3]}


def test_csv_keeps_its_rows_when_columns_appear_later(tmp_path):
    path = tmp_path / "progress.csv"
    writer = CSVWriter(str(path))
    writer.write({"b": 1.5, "a": np.int64(2)}, {})
    writer.write({"a": 3, "note": 'says "a, b"\nand more'}, {})
    writer.write({"c": np.zeros(3), "b": None}, {})
    assert rows_of(path) == [
        ["a", "b", "note", "c"],
        ["2", "1.5", "", ""],
        ["3", "", 'says "a, b"\nand more', ""],
        ["", "", "", "[0. 0. 0.]"],
    ]
    writer.close()
    assert os.listdir(tmp_path) == ["progress.csv"]


def test_csv_overwrites_or_goes_on_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("a,b\n1,2\n3,")
    writer = CSVWriter(str(path), append=True)
    writer.write({"b": 4, "c": 5}, {})
    writer.close()
    assert rows_of(path) == [["a", "b", "c"], ["1", "2", ""], ["", "4", "5"]]
    CSVWriter(str(path)).close()
    assert path.read_text() == ""
    writer = CSVWriter(str(path), append=True)
    writer.write({"a": 1}, {})
    writer.close()
    assert rows_of(path) == [["a"], ["1"]]


def events_of(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_event_files_hold_sb3s_tags_over_environment_steps(tmp_path):
    pytest.importorskip("tensorboard")
    logger = configure(str(tmp_path), ["tensorboard"])
    for step in (2048, 4096):
        logger.record("rollout/ep_rew_mean", step / 100)
        logger.record("train/n_updates", np.int64(step))
        logger.record("time/total_timesteps", step, exclude="tensorboard")
        logger.record("note", "hello")
        logger.record("train/weights", np.arange(10.0))
        logger.record("nothing", None)
        logger.dump(step)
    # Read before `close`: each dump is on disk when it returns.
    events = events_of(tmp_path)
    assert set(events.Tags()["scalars"]) == {"rollout/ep_rew_mean", "train/n_updates"}
    scalars = events.Scalars("rollout/ep_rew_mean")
    assert [(event.step, event.value) for event in scalars] == [
        (2048, pytest.approx(20.48)),
        (4096, pytest.approx(40.96)),
    ]
    assert set(events.Tags()["tensors"]) == {"note/text_summary", "train/weights"}
    assert events.Tensors("note/text_summary")[0].tensor_proto.string_val == [b"hello"]
    logger.close()


def test_event_files_by_tensorboardx(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(loggers, "_installed", lambda package: package == "tensorboardX")
    logger = configure(str(tmp_path), ["tensorboard"])
    logger.record("train/loss", 0.5)
    logger.record("note", "hello")
    logger.record("train/weights", np.arange(10.0))
    logger.dump(7)
    logger.close()
    events = events_of(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 0.5)]
    assert "note/text_summary" in events.Tags()["tensors"]


def test_unwritable_values_name_the_way_out(tmp_path):
    pytest.importorskip("tensorboard")
    logger = configure(str(tmp_path), ["tensorboard"])
    logger.record("figure", object())
    with pytest.raises(TypeError, match="cannot write figure to TensorBoard.*exclude"):
        logger.dump()
    logger.close()


def test_missing_tensorboard_says_what_to_install_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "_installed", lambda package: False)
    with pytest.raises(ImportError, match=r'pip install "advantage\[track\]"') as error:
        configure_run(1, str(tmp_path / "runs"), "PPO")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_unwritable_folders_fail_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot write logs to .*choose a folder") as error:
            configure(str(folder), ["csv"])
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown log format 'cvs'"):
        configure(str(tmp_path), ["cvs"])


def test_run_folders_are_numbered_as_sb3_does(tmp_path):
    root = str(tmp_path / "runs")
    assert Path(run_folder(root, "PPO", reset_num_timesteps=False)).name == "PPO_0"
    assert Path(run_folder(root, "PPO")).name == "PPO_1"
    assert Path(run_folder(root, "PPO")).name == "PPO_2"
    assert Path(run_folder(root, "PPO", reset_num_timesteps=False)).name == "PPO_2"
    assert Path(run_folder(root, "PPO_extra")).name == "PPO_extra_1"
    for name in ("PPO_9", "PPO_notanumber", "PPO_10_old", "A+PPO_40"):
        os.mkdir(os.path.join(root, name))
    assert Path(run_folder(root, "PPO")).name == "PPO_10"
    assert Path(run_folder(root, "A+PPO")).name == "A+PPO_41"


def test_configure_run_follows_verbose_and_tensorboard_log(tmp_path):
    pytest.importorskip("tensorboard")
    assert configure_run(0).output_formats == [] and configure_run(0).dir is None
    assert [type(writer).__name__ for writer in configure_run(1).output_formats] == ["ConsoleTable"]
    for reset, name in ((True, "PPO_1"), (True, "PPO_2"), (False, "PPO_2")):
        logger = configure_run(0, str(tmp_path), "PPO", reset)
        assert Path(logger.dir).name == name
        logger.record("train/loss", 1.0)
        logger.dump(10)
        logger.close()
    assert len(list((tmp_path / "PPO_2").iterdir())) == 2
    assert len(events_of(tmp_path / "PPO_2").Scalars("train/loss")) == 2


def test_configure_without_folder(tmp_path, monkeypatch):
    assert configure(None, ["stdout"]).dir is None
    monkeypatch.setenv("ADVANTAGE_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setenv("ADVANTAGE_LOG_FORMAT", "csv")
    logger = configure()
    logger.close()
    assert os.listdir(tmp_path / "logs") == ["progress.csv"]
    monkeypatch.delenv("ADVANTAGE_LOGDIR")
    monkeypatch.setattr(loggers.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    logger = configure()
    logger.close()
    assert Path(logger.dir).parent == tmp_path / "tmp" and os.listdir(logger.dir) == ["progress.csv"]


def test_these_modules_do_not_import_jax():
    script = (
        "import sys, importlib\n"
        "names = ['training.loggers', 'training.progress', 'training.interrupt', 'training.callbacks',\n"
        "         'experiments.statistics', 'experiments.plots']\n"
        "for name in names: importlib.import_module('advantage.' + name)\n"
        "assert not {'jax', 'torch', 'tensorflow', 'matplotlib', 'tensorboard'} & set(sys.modules)\n"
    )
    source = str(Path(loggers.__file__).parents[2])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": source})
