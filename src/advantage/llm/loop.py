"""A run of any trainer: its steps, its log, its checkpoints, and going on where it was stopped."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from advantage.llm import sharding, training
from advantage.llm.training import S, TrainingConfig
from advantage.training.interrupt import Interrupt
from advantage.training.loggers import Logger, configure

Report = dict[str, Array | np.ndarray | float]
"""What a step says of itself: `tokens` learned from, whether its gradient was `finite`, and means to log by name."""


class Plan(NamedTuple):
    """What a run is to do."""

    total: int  # steps
    per_epoch: int  # steps
    said: dict[str, Any]  # what has to be the same for a run that goes on


def run(
    args: TrainingConfig,
    plan: Plan,
    state: S,
    advance: Callable[[S, int], tuple[S, Report]],
    save: Callable[[S, pathlib.Path], None],
    finish: Callable[[S], None],
    resume: bool | str | os.PathLike | None,
    history: list[dict[str, float]],
) -> S:
    """The state after all steps, or after those before Ctrl-C.

    Args:
        state: before the first step, a tree of arrays of which `step` says how many were made.
        advance: the next step, and its number.
        save: write the model to a folder.
        finish: called at the end, and before an error leaves, with what was learned until then.
        resume: a checkpoint, or True for the newest.
        history: gets the rows of the log.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        FloatingPointError: a gradient that is not finite; the model is as it was before it, and saved.
        ValueError: a checkpoint of another model or plan.
    """
    folder = pathlib.Path(args.output_dir)
    said = {**plan.said, "total": plan.total}
    state = _placed(args, _resumed(state, folder, resume, said))
    logger = configure(folder, args.formats, append=bool(resume))
    reports: list[Report] = []
    began = time.perf_counter()

    def keep() -> None:
        training.write_checkpoint(folder, state, said, lambda path: save(state, path), args.save_total_limit)

    try:
        with sharding.over(args.mesh), Interrupt() as interrupt:
            for number in range(int(state.step), plan.total):
                try:
                    state, report = advance(state, number)
                except Exception as error:
                    # Such as a reward function's own: what was learned before it must not be lost.
                    if number and not _given_back(state):
                        keep()
                        error.add_note(f"the model after step {number} is in {folder}")
                    raise
                reports.append(report)
                last = number + 1 == plan.total or interrupt.requested
                finite = bool(report["finite"])
                if (number + 1) % args.logging_steps == 0 or last or not finite:
                    row = {"time/total_timesteps": number + 1, "train/epoch": (number + 1) / plan.per_epoch}
                    _log(logger, number + 1, _row(reports, time.perf_counter() - began) | row, history)
                    reports, began = [], time.perf_counter()
                if not finite:
                    keep()
                    raise FloatingPointError(f"the gradient of step {number + 1} is not finite; the model before it is in {folder}")
                if (number + 1) % args.save_steps == 0 or last:
                    keep()
                if last:
                    break
    finally:
        logger.close()
        if not _given_back(state):
            finish(state)
    return state


def _placed(args: TrainingConfig, state: S) -> S:
    """On the devices that share it; what a checkpoint held, straight from the host."""
    return jax.tree.map(jnp.asarray, sharding.placed(args.mesh, state))


def _given_back(state: S) -> bool:
    """Whether a step that failed has taken its memory."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def _row(reports: Sequence[Report], seconds: float) -> dict[str, float]:
    """Means over the steps since the last row; of what a step has no number for, over the others."""
    means = {}
    for name in reports[-1]:
        if name not in ("tokens", "finite"):
            values = np.array([float(report[name]) for report in reports])
            key = name if "/" in name else f"train/{name}"
            means[key] = float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
    return {**means, "time/tokens_per_second": sum(float(report["tokens"]) for report in reports) / seconds}


def _log(logger: Logger, number: int, row: dict[str, float], history: list[dict[str, float]]) -> None:
    for name, value in row.items():
        logger.record(name, value)
    logger.dump(number)
    history.append({name.partition("/")[2]: value for name, value in row.items()})


def _resumed(state: S, folder: pathlib.Path, wanted: bool | str | os.PathLike | None, said: dict[str, Any]) -> S:
    if not wanted:
        return state
    found = training.checkpoints(folder) if wanted is True else [pathlib.Path(wanted)]
    if not found:
        raise FileNotFoundError(f"no checkpoint in {folder}: train without resume_from_checkpoint first")
    return training.read_checkpoint(found[-1], state, said)
