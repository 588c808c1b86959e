"""Once more what training failed on: read the guard's file and do the update that was left out."""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from advantage.drivers.snapshot import tree
from advantage.envs.check import first_bad_row
from advantage.models import ALGORITHMS, agent_of
from advantage.training.files import NotAModel, read_model
from advantage.training.guard import GIVEN, MEMORY, first_bad
from advantage.types import NONFINITE, Chunk, Spec


class Replayed(NamedTuple):
    """What came of it."""

    what: str | None  # the first quantity that is not finite; None: nothing went wrong this time
    expected: str  # the one for which training stopped
    step: int
    seed: int
    metrics: dict[str, float]  # of the update, empty where the environment gave what is not finite


def replay(path: str | os.PathLike[str], **overrides: Any) -> Replayed:
    """Do again, without environment, what a run stopped for.

    Args:
        path: the file that the error named.
        overrides: functions that a file only names (a network or loss of yours), given again.

    Raises:
        FileNotFoundError, NotAModel: there is no such file, or it is not one of a failure.
    """
    header, arrays = read_model(path)
    if "failure" not in header:
        raise NotAModel(f"{path} is a model file, not one of a run that stopped for NaN or infinity")
    failure = header["failure"]
    model = ALGORITHMS[header["algorithm"]].load(path, **overrides)
    config, state = model._config, model._seed_state(0)
    own = {name: x[0] for name, x in arrays.items() if name.startswith((GIVEN, MEMORY))}
    given = tree(_like(model, failure["shape"], own), own, GIVEN)
    bad = _bad_row(given)
    if bad is not None:
        return Replayed(bad, failure["what"], failure["step"], failure["seed"], {})
    agent = agent_of(model.algorithm, model._prioritised)
    if agent.drawn is None:
        like = jax.eval_shape(lambda: agent.init_memory(config, model._spec, failure["shape"][1]))
        memory = tree(like, own, MEMORY)
        state, _, metrics = jax.jit(functools.partial(agent.update, config))(state, memory, given)
    else:
        state, metrics, _ = jax.jit(functools.partial(model.algorithm.learn, config))(state, given)
    numbers = {name: float(np.mean(np.asarray(x))) for name, x in metrics.items()}
    what = first_bad(state, numbers) if numbers.pop(NONFINITE) > 0 else None
    return Replayed(what, failure["what"], failure["step"], failure["seed"], numbers)


def _bad_row(given: Any) -> str | None:
    """What an environment gave that is not finite."""
    if not isinstance(given, Chunk):
        return None
    found = first_bad_row(given._replace(valid=np.ones_like(given.valid)))
    return None if found is None else f"{found[2]} of env {found[1]}"


def _like(model: Any, shape: list[int], own: dict[str, np.ndarray]) -> Any:
    """The structure of what an agent learns from: rows `[T, N]`, or a minibatch `[B]`."""
    config, spec, agent = model._config, model._spec, agent_of(model.algorithm, model._prioritised)
    if agent.drawn is None or len(shape) == 2:
        return _chunk(model, spec, tuple(shape))

    def draw() -> Any:
        state = model.algorithm.init(config, spec, jnp.zeros(2, jnp.uint32))
        return agent.drawn(config, state, agent.init_memory(config, spec, 1))[1]

    return jax.eval_shape(draw)


def _chunk(model: Any, spec: Spec, rows: tuple[int, ...]) -> Chunk:
    flags = np.zeros(rows, bool)
    mask = np.zeros((*rows, spec.choices), bool) if spec.masked else None
    return Chunk(
        obs=spec.observation.zeros(rows), is_first=flags, action_mask=mask, action=spec.action.zeros(rows),
        reward=np.zeros(rows, np.float32), terminated=flags, truncated=flags, valid=flags,
        final_obs=spec.observation.zeros(rows), last_obs=spec.observation.zeros(rows[1:]),
        carry=jax.tree.map(np.asarray, model.algorithm.initial_carry(model._config, spec, rows[1])),
        final_mask=mask, last_mask=None if mask is None else mask[0],
    )  # fmt: skip
