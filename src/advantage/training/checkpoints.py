"""Checkpoints: folders with all that a run needs to go on, so that it ends as if it had never stopped.

    DIR/step_000000050000/model.zip            the agents, as `model.save` writes them
                          run.json             plan, logs, callbacks, environments, counters
                          arrays.safetensors   memory, keys, running episodes, a chunk begun

Each is written under another name, fsynced and renamed: whatever has its final name is complete. No pickle, no code.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import uuid
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

import advantage
from advantage.disk import sync
from advantage.drivers.snapshot import Kept, keep
from advantage.training.callbacks import state_of
from advantage.training.files import NotAModel, save_arrays
from advantage.training.loggers import describe_logger

FORMAT = 1
NAME = re.compile(r"step_(\d{12})")
Folder = str | os.PathLike[str]


class NotACheckpoint(NotAModel):
    """There is no checkpoint, it is damaged, or it belongs to something else."""


class Checkpoints:
    """Where a run's checkpoints go, how often, and how many of them stay.

    Attributes:
        folder: holds one folder for each checkpoint.
        every: environment steps between them; None: only when training ends or is stopped.
        most: the newest that stay; None: all.
        run_id: tells the checkpoints of one run from another's.
    """

    def __init__(self, folder: Folder, every: int | None, most: int | None, run_id: str):
        self.folder, self.every, self.most = pathlib.Path(folder), every, most
        self.run_id = run_id
        self.written: int | None = None  # at which step the last one was

    def prepare(self) -> None:
        """Make the folder, and refuse another run's.

        Raises:
            OSError: it cannot be written to.
            ValueError: it holds another run's checkpoints.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".tmp-{uuid.uuid4().hex}"
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise _cannot_write(self.folder, error, "choose another checkpoint_dir") from error
        if _run_id(self.folder) not in (None, self.run_id):
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds the checkpoints of another run: go on with that one by"
                " resume(checkpoint_dir), or choose another folder"
            )
        for left in self.folder.glob(".tmp-*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def next(self, steps: int) -> int | None:
        """The step at which the next one is due."""
        return None if self.every is None else (steps // self.every + 1) * self.every

    def write(self, run: Any) -> pathlib.Path:
        """Write a checkpoint of a run as it is now.

        Raises:
            OSError: it cannot be written; training's state is as before.
        """
        steps = run.model.num_timesteps
        kept = keep(run.driver)
        header = {"format": FORMAT, "run_id": self.run_id, "steps": steps, **described(run), "driver": kept.plain}
        path = self.folder / f"step_{steps:012d}"
        temporary = self.folder / f".tmp-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
            run.model.save(temporary / "model.zip")
            (temporary / "run.json").write_text(json.dumps(header, default=_encoded, indent=1))
            sync(temporary / "run.json")
            save_arrays(temporary / "arrays.safetensors", kept.arrays)
            _put_in_place(temporary, path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            rest = "the agents are still in memory: free some room, or model.save(...) and model.save_checkpoint(...) elsewhere"
            raise _cannot_write(path, error, rest) from error
        self.written = steps
        self._drop_old(path)
        return path

    def _drop_old(self, newest: pathlib.Path) -> None:
        found = complete(self.folder)
        if self.most is not None:
            # By steps up to this one: of a run that was resumed at an earlier one the later ones stay.
            past = sorted(step for step in found if found[step] <= newest)
            for step in past[: -self.most]:
                shutil.rmtree(found[step], ignore_errors=True)


def _run_id(folder: pathlib.Path) -> str | None:
    """Whose checkpoints a folder holds, by the newest that can be read."""
    found = complete(folder)
    for steps in sorted(found, reverse=True):
        try:
            return _header(found[steps])["run_id"]
        except NotACheckpoint:
            continue
    return None


def check_callback(callback: Any) -> None:
    """Refuse callbacks whose state no file can keep, before anything is trained.

    Raises:
        TypeError: an attribute named in `RESUMED` is neither number, text, array, list nor dict with text as keys.
    """
    kept = state_of(callback)
    json.dumps(kept, default=_encoded)
    _check_keys(kept)


def _check_keys(value: Any) -> None:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _check_keys(inner)
    wrong = [key for key in value if not isinstance(key, str)] if isinstance(value, dict) else []
    if wrong:
        raise TypeError(f"a checkpoint cannot keep a dict with the key {wrong[0]!r}: callbacks' dicts need text as keys")


def described(run: Any) -> dict[str, Any]:
    """What a run is, besides its agents and its driver, in JSON's types and arrays."""
    return {
        "versions": versions(),
        "plan": run.plan(),
        "log": run.log.state(),
        "callbacks": state_of(run.callback),
        "logger": describe_logger(run.logger),
        "predictions": run.model._predictions,
    }


def versions() -> dict[str, str]:
    """On which the last bit of a result may depend."""
    return {"advantage": advantage.__version__, "jax": jax.__version__, "backend": jax.default_backend()}


def complete(folder: Folder) -> dict[int, pathlib.Path]:
    """The checkpoints of a folder by their steps."""
    root = pathlib.Path(folder)
    found = {path: NAME.fullmatch(path.name) for path in (root.iterdir() if root.is_dir() else ())}
    return {int(match[1]): path for path, match in found.items() if match}


def find(folder: Folder, at: int | None) -> pathlib.Path:
    """The newest checkpoint of a folder, or the one at a step; a run's folder stands for its `checkpoints`.

    Raises:
        NotACheckpoint: there is none.
    """
    if NAME.fullmatch(pathlib.Path(folder).name) and at is None:
        return pathlib.Path(folder)
    found = complete(folder) or complete(pathlib.Path(folder) / "checkpoints")
    if not found:
        raise NotACheckpoint(f"there is no checkpoint in {folder}: give the checkpoint_dir of learn(...)")
    if at is None:
        return found[max(found)]
    if at not in found:
        raise NotACheckpoint(f"at={at}: {folder} has checkpoints at {', '.join(map(str, sorted(found)))}")
    return found[at]


def read(path: pathlib.Path) -> tuple[dict[str, Any], Kept]:
    """`(header, the driver's state)` of a checkpoint. Nothing in it is executed.

    Raises:
        NotACheckpoint: it is damaged, or comes from a newer release.
    """
    header = _header(path)
    try:
        arrays = safetensors.numpy.load_file(path / "arrays.safetensors")
        return header, Kept(arrays, header["driver"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(path, error) from None


def _header(path: pathlib.Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "run.json").read_bytes(), object_hook=_decoded)
        if header["format"] > FORMAT:
            raise NotACheckpoint(
                f"{path} was written by a newer release (format {header['format']}, this one reads up to {FORMAT}):"
                " pip install --upgrade advantage"
            )
        return header
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: pathlib.Path, error: Exception) -> NotACheckpoint:
    return NotACheckpoint(
        f"{path} is no checkpoint or is damaged ({type(error).__name__}: {error}); resume(..., at=STEPS) takes an"
        " earlier one"
    )


def _cannot_write(path: pathlib.Path, error: OSError, rest: str) -> OSError:
    said = os.strerror(error.errno) if error.errno else str(error)
    return type(error)(error.errno, f"cannot write the checkpoint {path}: {said}; {rest}")


def _put_in_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Rename a folder whose files are on the disk; one of this name is replaced."""
    sync(temporary)
    if path.exists():
        replaced = temporary.with_name(f".tmp-{uuid.uuid4().hex}")
        path.rename(replaced)
        temporary.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        temporary.rename(path)
    sync(path.parent)


def _encoded(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(
        f"a checkpoint cannot keep a {type(value).__name__} ({value!r}): callbacks' state has to be numbers, text,"
        " lists, dicts and NumPy arrays"
    )


def _decoded(value: dict[str, Any]) -> Any:
    return np.array(value["array"], value["dtype"]) if value.keys() == {"array", "dtype"} else value
