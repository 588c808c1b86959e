"""Training logs with Stable-Baselines3's words and keys: a console table, CSV, JSON lines, TensorBoard.

Interface: https://stable-baselines3.readthedocs.io/en/master/common/logger.html
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import IO, Any, SupportsFloat

import numpy as np

from advantage.disk import replace_file

DEBUG, INFO, WARN, ERROR, DISABLED = 10, 20, 30, 40, 50

FORMATS = ("stdout", "log", "csv", "json", "tensorboard", "wandb", "mlflow", "trackio")

STEPS = "time/total_timesteps"
"""The key that says at which step a row was written."""

Excluded = Mapping[str, tuple[str, ...]]


class KVWriter(ABC):
    """One place where logged values go. Subclass it and pass an instance to `Logger` for another."""

    @abstractmethod
    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        """Write one row.

        Args:
            key_values: key (`train/loss`) to value.
            key_excluded: key to names of the formats it must not appear in.
            step: environment steps so far.
        """

    name = ""
    """Of its format among `FORMATS`; a writer without one cannot be made anew when a run is resumed."""

    def write_text(self, text: str) -> None:
        """Write a message, where the format has a place for one."""

    def settings(self, values: Mapping[str, Any]) -> None:
        """Keep a run's hyper-parameters, where the format has a place for them."""

    def identity(self) -> str | None:
        """By what a resumed run finds its record again, where a folder does not tell."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Flush and release files. No `write` may follow."""


class ConsoleTable(KVWriter):
    """SB3's boxed table, its keys grouped by the part before the slash.

    Args:
        path: a text file to (over)write; None prints to stdout.
        append: go on with an existing file.
        max_length: longest key and value; what is longer is cut. No table is wider than
            `2 * max_length + 7`.
    """

    def __init__(self, path: str | None = None, max_length: int = 36, append: bool = False):
        self.max_length, self.name = max_length, "stdout" if path is None else "log"
        mode = "a" if append else "w"
        self._file: IO[str] | None = None if path is None else open(path, mode, encoding="utf-8")

    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        rows = self._rows(included(key_values, key_excluded, "stdout", "log"))
        if not rows:
            return
        key_width = max(len(key) for key, _ in rows)
        value_width = max(len(value) for _, value in rows)
        border = "-" * (key_width + value_width + 7)
        lines = [f"| {key:<{key_width}} | {value:<{value_width}} |" for key, value in rows]
        # In one write: a live progress line is redrawn after each.
        self.write_text("\n".join([border, *lines, border]))

    def write_text(self, text: str) -> None:
        # `sys.stdout` is looked up now: notebooks, tests and a live progress line replace it.
        file = sys.stdout if self._file is None else self._file
        file.write(text + "\n")
        file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _rows(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        rows = []
        heading = ""
        # Keys without a group come first, so that none ends up under a stranger's heading.
        for key in sorted(values, key=lambda key: ("/" in key, key)):
            group, slash, name = key.rpartition("/") if key.count("/") == 1 else key.partition("/")
            if slash and group != heading:
                heading = group
                rows.append((self._cut(f"{group}/"), ""))
            rows.append((self._cut(f"   {name}" if slash else key), self._cut(_text(values[key]))))
        return rows

    def _cut(self, text: str) -> str:
        return text if len(text) <= self.max_length else text[: self.max_length - 3] + "..."


class CSVWriter(KVWriter):
    """A CSV file with one column per key.

    A key that appears later becomes a new last column: the file is rewritten beside itself and swapped in,
    so that a crash leaves either the old or the new one.

    Args:
        path: the file.
        append: go on with an existing file (a resumed run) instead of overwriting it. A last line that a
            crash cut short is dropped.
        until: of an existing file's rows those up to this step stay; what was written after it is done again.
    """

    name = "csv"

    def __init__(self, path: str, append: bool = False, until: int | None = None):
        self.path = path
        self.columns: list[str] = []
        if append and os.path.exists(path):
            rows = self._read()
            if STEPS in (rows[0] if rows else ()):
                column = rows[0].index(STEPS)
                late = [len(row) > column and _is_after(row[column], until) for row in rows]
                rows = [row for i, row in enumerate(rows) if i == 0 or not late[i]]
            self.columns = rows[0] if rows else []
            self._rewrite(rows)
        else:
            open(path, "w", encoding="utf-8").close()
        self._file = open(path, "a", newline="", encoding="utf-8")

    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        values = included(key_values, key_excluded, "csv")
        new = sorted(values.keys() - set(self.columns))
        if new:
            self._file.close()
            rows = self._read()[1:]
            self.columns += new
            self._rewrite([self.columns, *rows])
            self._file = open(self.path, "a", newline="", encoding="utf-8")
        cells = [plain(values.get(key)) for key in self.columns]
        if cells:
            csv.writer(self._file, lineterminator="\n").writerow(cells)
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _read(self) -> list[list[str]]:
        with open(self.path, newline="", encoding="utf-8") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        return list(csv.reader(whole.splitlines(keepends=True)))

    def _rewrite(self, rows: Sequence[Sequence[str]]) -> None:
        temporary = f"{self.path}.new"
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            # A file's first rows have fewer cells than its last header.
            width = len(rows[0]) if rows else 0
            padded = [[*row, *[""] * (width - len(row))] for row in rows]
            csv.writer(file, lineterminator="\n").writerows(padded)
        os.replace(temporary, self.path)


class JSONWriter(KVWriter):
    """A file with one JSON object per line at `path`; `append` and `until` as for `CSVWriter`."""

    name = "json"

    def __init__(self, path: str, append: bool = False, until: int | None = None):
        lines = []
        if append and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                lines = [line for line in file if line.endswith("\n")]
            lines = [line for line in lines if not _is_after(json.loads(line).get(STEPS), until)]
            replace_file(pathlib.Path(path), "".join(lines).encode())
        self._file = open(path, "a" if append else "w", encoding="utf-8")

    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        values = included(key_values, key_excluded, "json")
        row = {key: plain(value) for key, value in values.items()}
        self._file.write(json.dumps(row, default=_jsonable) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(KVWriter):
    """TensorBoard event files in `folder`: keys are tags, the x-axis is environment steps.

    Numbers become scalars, strings text, arrays histograms; None is skipped. Each `write` is flushed.
    `until` says from which step on TensorBoard forgets what the folder's earlier files hold.

    Raises:
        ImportError: neither `tensorboard` nor `tensorboardX` is installed.
    """

    name = "tensorboard"

    def __init__(self, folder: str, until: int | None = None):
        _require_tensorboard()
        backend = _TensorBoard if _installed("tensorboard") else _TensorBoardX
        self._backend = backend(folder, until)

    def write(self, key_values: Mapping[str, Any], key_excluded: Excluded, step: int = 0) -> None:
        for key, value in included(key_values, key_excluded, "tensorboard").items():
            value = plain(value)
            if isinstance(value, bool | int | float):
                self._backend.scalar(key, float(value), step)
            elif isinstance(value, str):
                # The suffix is what SB3 (torch's SummaryWriter) writes.
                self._backend.text(f"{key}/text_summary", value, step)
            elif isinstance(value, np.ndarray):
                self._backend.histogram(key, value, step)
            elif value is not None:
                raise TypeError(
                    f"cannot write {key} to TensorBoard: a {type(value).__name__} is neither a number, "
                    'a string nor an array; leave it out with logger.record(..., exclude="tensorboard")'
                )
        self._backend.flush()

    def close(self) -> None:
        self._backend.close()


class _TensorBoard:
    """Event files written by the `tensorboard` package alone, without TensorFlow or torch."""

    def __init__(self, folder: str, until: int | None):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(folder)
        if until is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(session_log=start, step=until + 1, wall_time=time.time()))

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._add(self._summary(value=[self._summary.Value(tag=tag, simple_value=value)]), step)

    def text(self, tag: str, value: str, step: int) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, value), step)

    def histogram(self, tag: str, value: np.ndarray, step: int) -> None:
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        self._add(histogram_pb(tag, value), step)

    def _add(self, summary: Any, step: int) -> None:
        self._writer.add_event(self._event(summary=summary, step=int(step), wall_time=time.time()))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _TensorBoardX:
    """Event files written by the `tensorboardX` package."""

    def __init__(self, folder: str, until: int | None):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=None if until is None else until + 1)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, value, int(step))

    def text(self, tag: str, value: str, step: int) -> None:
        # This package adds the suffix itself.
        self._writer.add_text(tag.removesuffix("/text_summary"), value, int(step))

    def histogram(self, tag: str, value: np.ndarray, step: int) -> None:
        self._writer.add_histogram(tag, value, int(step))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Values(dict):
    """Reads a missing key as 0.0, as SB3's `name_to_value` does, but without inserting it into the log."""

    def __missing__(self, key: str) -> float:
        return 0.0


class Logger:
    """Collects values by key and writes one row of them at every `dump`.

    Args:
        folder: where the log files are, None if there are none.
        formats: the writers.

    Attributes:
        name_to_value: what was recorded since the last `dump`.
        dir: `folder`.
        output_formats: `formats`, under SB3's name.
    """

    def __init__(self, folder: str | None, formats: Sequence[KVWriter]):
        self.dir = folder
        self.output_formats = list(formats)
        self.name_to_value: dict[str, Any] = _Values()
        self.name_to_count: dict[str, int] = {}
        self.name_to_excluded: dict[str, tuple[str, ...]] = {}
        self.level = INFO

    def record(self, key: str, value: Any, exclude: str | tuple[str, ...] | None = None) -> None:
        """Set a value for the next row; the last one counts.

        Args:
            key: such as `train/loss`; the part before the slash is its group.
            value: a number, string or array.
            exclude: format or formats it is left out of, by their names in `configure`.
        """
        self.name_to_value[key] = value
        self.name_to_excluded[key] = _as_tuple(exclude)

    def record_mean(
        self, key: str, value: SupportsFloat | None, exclude: str | tuple[str, ...] | None = None
    ) -> None:
        """As `record`, but the row holds the mean of all values since the last `dump`. None is ignored."""
        if value is None:
            return
        count = self.name_to_count.get(key, 0)
        mean = self.name_to_value[key] if count else 0.0
        self.name_to_value[key] = mean + (float(value) - mean) / (count + 1)
        self.name_to_count[key] = count + 1
        self.name_to_excluded[key] = _as_tuple(exclude)

    def dump(self, step: int = 0) -> None:
        """Write the row to every format and forget it. `step` is the number of environment steps so far."""
        if self.level == DISABLED:
            return
        for writer in self.output_formats:
            writer.write(self.name_to_value, self.name_to_excluded, step)
        self.name_to_value.clear()
        self.name_to_count.clear()
        self.name_to_excluded.clear()

    def settings(self, values: Mapping[str, Any]) -> None:
        """Hand a run's hyper-parameters to the formats that keep them."""
        if self.level == DISABLED:
            return
        for writer in self.output_formats:
            if hasattr(writer, "settings"):  # a writer of the user's may know SB3's methods only
                writer.settings(values)

    def log(self, *args: Any, level: int = INFO) -> None:
        """Write a message to the console and `log.txt`, if the logger's level is at most `level`."""
        if self.level <= level:
            for writer in self.output_formats:
                if hasattr(writer, "write_text"):
                    writer.write_text(" ".join(map(str, args)))

    def debug(self, *args: Any) -> None:
        """`log` at level DEBUG."""
        self.log(*args, level=DEBUG)

    def info(self, *args: Any) -> None:
        """`log` at level INFO."""
        self.log(*args, level=INFO)

    def warn(self, *args: Any) -> None:
        """`log` at level WARN."""
        self.log(*args, level=WARN)

    def error(self, *args: Any) -> None:
        """`log` at level ERROR."""
        self.log(*args, level=ERROR)

    def set_level(self, level: int) -> None:
        """Messages below this level are dropped; DISABLED also stops `dump`."""
        self.level = level

    def get_dir(self) -> str | None:
        """The folder of the log files, None if there are none."""
        return self.dir

    def close(self) -> None:
        """Close every writer."""
        for writer in self.output_formats:
            writer.close()


def configure(
    folder: str | os.PathLike[str] | None = None,
    format_strings: Sequence[str] | None = None,
    *,
    append: bool = False,
) -> Logger:
    """Make a logger, as `stable_baselines3.common.logger.configure` does.

    Args:
        folder: where the files go; None takes `$ADVANTAGE_LOGDIR`, else a new folder in the system's
            temporary one if a format needs it.
        format_strings: among "stdout", "log", "csv", "json", "tensorboard", "wandb", "mlflow", "trackio"; None
            takes `$ADVANTAGE_LOG_FORMAT` (comma-separated), else stdout, log and csv.
        append: go on with an existing `progress.csv` instead of overwriting it.

    Raises:
        ValueError: an unknown format.
        OSError: `folder` cannot be written to.
        ImportError: "tensorboard" or a tracker without its package.
    """
    if format_strings is None:
        format_strings = os.getenv("ADVANTAGE_LOG_FORMAT", "stdout,log,csv").split(",")
    names = [name for name in format_strings if name]
    unknown = sorted(set(names) - set(FORMATS))
    if unknown:
        raise ValueError(f"unknown log format {unknown[0]!r}: expected one of {', '.join(FORMATS)}")
    needs_files = any(name != "stdout" for name in names)
    folder = folder or os.getenv("ADVANTAGE_LOGDIR")
    if folder is None and needs_files:
        now = datetime.datetime.now()
        folder = os.path.join(tempfile.gettempdir(), f"advantage-{now:%Y-%m-%d-%H-%M-%S-%f}")
    if folder is not None:
        folder = os.fspath(folder)
        _check_writable(folder)
    logger = Logger(folder, [_make_writer(name, folder or "", append) for name in names])
    if needs_files:
        logger.log(f"Logging to {folder}")
    return logger


def configure_run(
    verbose: int = 0,
    tensorboard_log: str | os.PathLike[str] | None = None,
    tb_log_name: str = "",
    reset_num_timesteps: bool = True,
) -> Logger:
    """The logger of one `model.learn`, as SB3 sets it up.

    Args:
        verbose: 1 or more prints the table.
        tensorboard_log: folder of all runs, None for no event files.
        tb_log_name: name of the run; see `run_folder`.
        reset_num_timesteps: False goes on in the folder of the latest run.

    Raises:
        OSError: `tensorboard_log` cannot be written to.
        ImportError: `tensorboard_log` without the package.
    """
    formats = ["stdout"] if verbose >= 1 else []
    if tensorboard_log is None:
        return Logger(None, [_make_writer(name, "", False) for name in formats])
    # Before the run's folder exists: a failed start should leave no empty run.
    _require_tensorboard()
    _check_writable(os.fspath(tensorboard_log))
    folder = run_folder(tensorboard_log, tb_log_name, reset_num_timesteps)
    return configure(folder, [*formats, "tensorboard"])


def run_folder(
    tensorboard_log: str | os.PathLike[str], tb_log_name: str, reset_num_timesteps: bool = True
) -> str:
    """Make and name the folder of a run, `<tb_log_name>_<n>` in `tensorboard_log`.

    n is one more than the highest that exists, so it starts at 1. With `reset_num_timesteps=False` it is the
    highest itself, or 0 if there is none (SB3's numbers). Runs started at the same time get different ones.
    """
    root = os.fspath(tensorboard_log)
    os.makedirs(root, exist_ok=True)
    pattern = re.compile(re.escape(tb_log_name) + r"_([0-9]+)")
    matches = [pattern.fullmatch(name) for name in os.listdir(root)]
    number = max((int(match[1]) for match in matches if match), default=0)
    if not reset_num_timesteps:
        folder = os.path.join(root, f"{tb_log_name}_{number}")
        os.makedirs(folder, exist_ok=True)
        return folder
    while True:
        number += 1
        folder = os.path.join(root, f"{tb_log_name}_{number}")
        try:
            os.makedirs(folder)
        except FileExistsError:
            continue
        return folder


def describe_logger(logger: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a logger: its writers, and values recorded and not yet written."""
    if not isinstance(logger, Logger):
        return {"folder": None, "formats": {}, "foreign": [type(logger).__name__], "pending": []}
    known = {writer.name: writer.identity() for writer in logger.output_formats if getattr(writer, "name", "")}
    foreign = [type(writer).__name__ for writer in logger.output_formats if not getattr(writer, "name", "")]
    excluded, counts = logger.name_to_excluded, logger.name_to_count
    values = {key: plain(value) for key, value in logger.name_to_value.items()}
    pending = [
        [key, value, list(excluded.get(key, ())), counts.get(key)]
        for key, value in values.items()
        if isinstance(value, bool | int | float | str | np.ndarray)
    ]
    return {"folder": logger.dir, "formats": known, "foreign": foreign, "pending": pending}


def resumed_logger(kept: Mapping[str, Any], steps: int) -> Logger:
    """A logger that goes on where a checkpoint found one, without the rows written after step `steps`.

    Raises:
        OSError: its folder cannot be written to.
        ImportError: a format without its package.
    """
    folder, formats = kept["folder"], kept["formats"]
    if folder is not None:
        _check_writable(folder)
    return Logger(folder, [_make_writer(name, folder or "", True, steps, formats[name]) for name in formats])


def give_pending(logger: Logger, kept: Mapping[str, Any]) -> None:
    """Record again what a checkpoint found recorded and not yet written."""
    for key, value, excluded, count in kept["pending"]:
        logger.record(key, value, tuple(excluded))
        if count is not None:
            logger.name_to_count[key] = count


def _make_writer(
    name: str, folder: str, append: bool, until: int | None = None, identity: str | None = None
) -> KVWriter:
    if name == "stdout":
        return ConsoleTable()
    if name == "log":
        return ConsoleTable(os.path.join(folder, "log.txt"), append=append and until is not None)
    if name == "csv":
        return CSVWriter(os.path.join(folder, "progress.csv"), append, until)
    if name == "json":
        return JSONWriter(os.path.join(folder, "progress.json"), append and until is not None, until)
    if name == "tensorboard":
        return TensorBoardWriter(folder, until)
    from advantage.training.trackers import TRACKERS  # which is built on this module

    return TRACKERS[name](folder, identity)


def _is_after(steps: Any, until: int | None) -> bool:
    try:
        return until is not None and float(steps) > until
    except (TypeError, ValueError):  # a row without a step, or another file's
        return False


def _check_writable(folder: str) -> None:
    """Make the folder and a file in it: permission bits don't tell (root, read-only mounts, full disks)."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"cannot write logs to {folder!r} ({reason}): choose a folder you may write to"
        raise OSError(message) from None


def _require_tensorboard() -> None:
    if not (_installed("tensorboard") or _installed("tensorboardX")):
        raise ImportError('TensorBoard logs need the tensorboard package: pip install "advantage[track]"')


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def included(values: Mapping[str, Any], excluded: Excluded, *formats: str) -> dict[str, Any]:
    """The values that none of these formats leaves out."""
    return {key: value for key, value in values.items() if not set(excluded.get(key, ())) & set(formats)}


def _as_tuple(exclude: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if exclude is None:
        return ()
    return (exclude,) if isinstance(exclude, str) else tuple(exclude)


def plain(value: Any) -> Any:
    """NumPy and JAX scalars and one-element arrays as Python numbers, other arrays as NumPy arrays."""
    if hasattr(value, "dtype") and hasattr(value, "__array__"):
        array = np.asarray(value)
        return array.item() if array.size == 1 else array
    return value


def _jsonable(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _text(value: Any) -> str:
    value = plain(value)
    return f"{value:<8.3g}" if isinstance(value, float) else " ".join(str(value).split("\n"))
