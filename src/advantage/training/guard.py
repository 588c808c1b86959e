"""The guard against NaN and infinity: names the first bad quantity and writes a file that repeats it.

The file is a model file of the one agent, as it was just before, with what it was to learn from. So
`advantage replay FILE` needs neither the environment nor the run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree

from advantage.drivers.common import Report
from advantage.drivers.guard import Failing, NotFinite, failing_on_device, failing_on_host
from advantage.drivers.snapshot import named
from advantage.training.files import named_arrays, write_model
from advantage.types import NONFINITE

if TYPE_CHECKING:
    from advantage.training.loop import Run

GIVEN, MEMORY = "given", "memory"
"""How the names of the arrays begin that an agent was to learn from, and of an on-policy agent's memory."""


class TrainingFailure(RuntimeError):
    """Training cannot go on; the model is as after its last good update."""


def check_report(run: Run, report: Report) -> None:
    """Stop training where a gradient step had to be left out.

    Raises:
        TrainingFailure: what was not finite, and where it can be seen once more.
    """
    skipped = np.atleast_1d(np.asarray(report.metrics.get(NONFINITE, 0.0)))
    if not np.count_nonzero(skipped):
        return
    s = int(np.flatnonzero(skipped)[0])
    done = getattr(run.driver, "_done", None)  # where a segment ended early
    per_update = run.config.steps_per_update * run.driver.num_envs
    steps = report.steps if done is None else report.steps - (report.updates - int(done[s])) * per_update
    run.model.num_timesteps = steps
    failing = _failing(run, s, learned=True)
    metrics = {name: np.atleast_1d(np.asarray(x))[s] for name, x in report.metrics.items()}
    what = first_bad(run.driver.seed_state(s), metrics)
    said = (
        f"{what} of seed {run.driver.seeds[s]} (seed index {s}) was NaN or infinite in the update at step {steps:,}:"
        " that gradient step was left out and the model is as before it; lower learning_rate, or scale rewards and"
        " observations"
    )
    raise TrainingFailure(said + _kept(run, failing, what, steps, s))


def explained(run: Run, failure: NotFinite) -> NotFinite:
    """An environment's failure with the file that shows what it gave."""
    s, steps = failure.seed_index, failure.step
    if hasattr(run.driver, "mesh") and run.driver.agent.drawn is not None:
        return failure  # what was left out of the memory on the device is nowhere
    failing = _failing(run, s, learned=False)
    return NotFinite(str(failure) + _kept(run, failing, failure.what, steps, s))


def first_bad(state: PyTree, metrics: Mapping[str, Any]) -> str:
    """The first quantity that was not finite in an update, in the order in which they follow from each other.

    Args:
        state: after the update. Steps that went wrong were left out: what is wrong in it came before them.
        metrics: of the update.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if np.asarray(x).dtype.kind == "f" and not np.isfinite(np.asarray(x)).all():
            return f"the parameter {jax.tree_util.keystr(path)}"
    terms = [name for name, x in metrics.items() if "loss" in name and not np.isfinite(x)]
    # The whole follows from its parts.
    terms.sort(key=lambda name: (name == "train/loss", name))
    return f"the loss term {terms[0]}" if terms else "a gradient"


def _failing(run: Run, seed_index: int, learned: bool) -> Failing:
    names = tuple(sorted(run.schedules))
    if hasattr(run.driver, "mesh"):
        return failing_on_device(run.driver, run.config, names, seed_index)
    return failing_on_host(run.driver, run.model._resolved()[0], seed_index, learned)


def _kept(run: Run, failing: Failing, what: str, steps: int, seed_index: int) -> str:
    """Write the file, and say where it is."""
    folder = getattr(run.checkpoints, "folder", None) or getattr(run.logger, "dir", None) or tempfile.gettempdir()
    path = Path(folder) / f"not_finite_{os.getpid()}_step_{steps}_seed_{run.driver.seeds[seed_index]}.zip"
    header = run.model._header(run.model._resolved()[0], {})
    header["counters"]["seeds"] = 1
    state, given, memory = jax.tree.map(lambda x: np.asarray(x)[None], failing)
    shape = list(np.shape(failing.given.reward))
    header["failure"] = {"what": what, "step": steps, "seed": run.driver.seeds[seed_index], "shape": shape}
    try:
        write_model(path, header, named_arrays(state) | named(GIVEN, given) | named(MEMORY, memory))
    except OSError as error:
        return f" (what it failed on could not be written: {error})"
    return f"; to see it once more: advantage replay {path}"
