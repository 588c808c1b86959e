"""From a checkpoint to a run that goes on: what has to agree, and what is said where it does not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from advantage.drivers.filed import BUDGET
from advantage.drivers.snapshot import Kept, put_memory, restore
from advantage.envs.atari import Atari
from advantage.envs.jax import is_jax_env
from advantage.envs.recorder import is_plain
from advantage.envs.subproc import SubprocVecEnv
from advantage.training.checkpoints import Checkpoints, NotACheckpoint, versions
from advantage.training.files import NotAModel
from advantage.training.hyperparameters import whole

KEPT = 3
"""How many checkpoints stay where nobody says."""


def planned_checkpoints(
    folder: Any, every: Any, most: Any, resumed: Mapping[str, Any] | None, run_id: str
) -> Checkpoints | None:
    """Where a call of `learn` writes checkpoints, ready to be written to; a resumed run goes on as it was.

    Raises:
        ValueError: an argument is no whole number, or there is no folder for what is asked.
        OSError: the folder cannot be written to.
    """
    kept = {} if resumed is None else resumed["plan"]["checkpoints"]
    if kept:
        folder = resumed["folder"] if folder is None else folder
        every = kept["every"] if every is None else every
        most = kept["most"] if most == KEPT else most
    if folder is None:
        if every is not None:
            raise ValueError(f"checkpoint_every={every} needs checkpoint_dir, the folder that checkpoints go to")
        return None
    every = None if every is None else whole("checkpoint_every", every)
    most = None if most is None else whole("checkpoint_keep", most)
    checkpoints = Checkpoints(folder, every, most, run_id)
    checkpoints.prepare()
    if resumed is not None and checkpoints.folder.resolve() == resumed["folder"].resolve():
        checkpoints.written = resumed["steps"]  # nothing is to be written again if nothing is left to do
    return checkpoints


def check_normalised(ours: Any, theirs: Any) -> None:
    """Refuse to go on with other normalisation than the run's.

    Raises:
        ValueError: the environments' `VecNormalize` says otherwise, and where.
    """
    if ours is None or theirs is None:
        if ours != theirs:
            raise ValueError("env is in a VecNormalize, and the checkpoint's run normalises nothing: give env without it")
        return
    different = [f"{name} was {ours[name]!r} and is {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if different:
        raise ValueError(f"env's VecNormalize is not the run's: {', '.join(different)}; leave it out, or make it so")


def check_versions(header: Mapping[str, Any], schedules: Mapping[str, Any], given: Collection[str]) -> None:
    """Warn of what keeps a resumed run from ending with the same bits."""
    notes = [
        f"{name} was {header['versions'].get(name)} and is {now}"
        for name, now in versions().items()
        if header["versions"].get(name) != now
    ]
    notes += [
        f"{name} was a function, of which a file keeps {len(kept['values'])} points: give it again to resume"
        for name, kept in schedules.items()
        if kept["kind"] == "table" and name not in given
    ]
    if notes:
        warnings.warn(f"the run goes on, but not with the same bits: {'; '.join(notes)}", UserWarning, stacklevel=4)


def env_to_resume(env: Any, stored: Mapping[str, Any]) -> Any:
    """The environment given, or the id of the one that the run was on.

    Raises:
        ValueError: neither is there.
    """
    if env is not None:
        return env
    if stored["env_id"] is None or not stored.get("env_plain", True):
        said = "was not made by an id" if stored["env_id"] is None else f"is {stored['env_id']} with wrappers or arguments"
        raise ValueError(f"the run's environment {said}: give it again, resume(folder, env=...)")
    return stored["env_id"]


def check_env_id(ours: str | None, stored: Mapping[str, Any]) -> None:
    """Refuse to go on in another environment.

    Raises:
        ValueError: both have ids, and these differ.
    """
    if ours is not None and stored["env_id"] is not None and ours != stored["env_id"]:
        raise ValueError(
            f"env is {ours}, and the checkpoint's run is on {stored['env_id']}: resume that one, or train on from its"
            " model file, load(.../model.zip, env=...)"
        )


def restore_driver(driver: Any, config: Any, kept: Kept, name: str) -> None:
    """Put a checkpoint's state into a driver; what environments cannot go on begins anew, with a warning.

    Raises:
        NotACheckpoint: it holds other seeds, environments or arrays.
    """
    try:
        wrong = restore(driver, config, kept)
    except (KeyError, ValueError) as error:
        raise NotACheckpoint(f"{name} does not fit this model and environment: {error}") from None
    if wrong:
        reasons = "; ".join(list(dict.fromkeys(wrong))[:3])
        warnings.warn(
            f"environments cannot go on where they were, so new episodes begin ({reasons})", UserWarning, stacklevel=3
        )


def take_memory(driver: Any, path: str | os.PathLike[str]) -> None:
    """Give a driver the replay memories of a file.

    Raises:
        FileNotFoundError: there is no such file.
        NotAModel: it is damaged, of other sizes, or holds a number that is NaN or infinite.
    """
    try:
        arrays = safetensors.numpy.load_file(path)
        bad = next((name for name, x in arrays.items() if x.dtype.kind == "f" and not np.isfinite(x).all()), None)
        if bad is not None:
            raise ValueError(f"{bad} holds a NaN or an infinity, from which nothing can be learned")
        put_memory(driver, arrays)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise NotAModel(f"{path} is no replay memory of this model: {error}") from None


def require_in_memory(filed: bool, what: str) -> None:
    """Raises a ValueError if a replay's observations are in a file: what is asked for would need all in memory."""
    if filed:
        raise ValueError(
            f"{what} the whole replay in memory, and its observations are in a file, since they are more than that:"
            f" lower buffer_size, raise {BUDGET}, or save the model alone with save()"
        )


def env_is_plain(env: Any) -> bool:
    """Whether an id alone makes these environments again."""
    if isinstance(env, SubprocVecEnv):
        return all(env.host.each(is_plain))
    plain = isinstance(env, Atari) and env.is_plain()
    return plain or is_jax_env(env) or all(map(is_plain, getattr(env, "envs", [env])))
