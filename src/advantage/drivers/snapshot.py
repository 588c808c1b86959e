"""All that a driver needs to go on in another process, besides the agents: what a checkpoint keeps of it.

Memories, random keys, the policy's carry, running episodes, environments, and a chunk that was begun. A driver
that is made alike, is given the same agents and then this goes on with the same bits as the one it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from advantage.drivers.common import environment_seeds
from advantage.drivers.fused import FusedDriver
from advantage.drivers.host import HostDriver, Rows
from advantage.envs.recorder import Snapshot
from advantage.envs.vector import HostEnvs, to_rows
from advantage.types import Observed

Driver = HostDriver | FusedDriver


class Kept(NamedTuple):
    """A driver's state: arrays by name, and values of JSON's types."""

    arrays: dict[str, np.ndarray]
    plain: dict[str, Any]


def keep(driver: Driver) -> Kept:
    """The driver's state, between two reports or after a run; what is large may not be copied."""
    arrays, plain = _keep_fused(driver) if isinstance(driver, FusedDriver) else _keep_host(driver)
    return Kept(arrays, {**_shape(driver), **plain})


def restore(driver: Driver, config: Any, kept: Kept) -> list[str]:
    """Put a state into a fresh driver that holds the agents already.

    Returns what environments could not be restored, and why: then new episodes begin everywhere.

    Raises:
        ValueError: it belongs to another driver, another number of seeds or environments, or other arrays.
    """
    for name, ours in _shape(driver).items():
        if kept.plain[name] != ours:
            raise ValueError(f"{name} was {kept.plain[name]!r} when it was written, and is {ours!r} here")
    if isinstance(driver, FusedDriver):
        _restore_fused(driver, *kept)
        return []
    return _restore_host(driver, config, *kept)


def memory(driver: Driver) -> dict[str, np.ndarray]:
    """The memories `[S, ...]` by name."""
    return named("memory", driver.memory)


def put_memory(driver: Driver, arrays: Mapping[str, np.ndarray]) -> None:
    """Give a driver memories that `memory` took from one alike.

    Raises:
        ValueError: an array is missing, or has another shape or dtype.
    """
    kept = tree(jax.eval_shape(lambda: driver.memory), arrays, "memory")
    if isinstance(driver, FusedDriver):
        groups = zip(driver._groups, driver._split(kept), strict=True)
        driver._groups = [run._replace(memory=part) for run, part in groups]
        return
    packed = driver._layout.pack((driver.state, kept), np)
    driver._arrays = tuple(x if isinstance(x, jax.Array) else jnp.array(x) for x in packed)


def _shape(driver: Driver) -> dict[str, Any]:
    kind = "JAX environments" if isinstance(driver, FusedDriver) else "host environments"
    return {"driver": kind, "seeds": driver.num_seeds, "n_envs": driver.num_envs}


def named(prefix: str, tree: PyTree) -> dict[str, np.ndarray]:
    """A tree's arrays by their path behind a prefix, such as `memory.obs`; random keys as numbers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): np.asarray(_numbers(x)) for path, x in leaves}


def tree(like: PyTree, arrays: Mapping[str, np.ndarray], prefix: str) -> PyTree:
    """The tree of `like`'s structure that `named` took apart.

    Raises:
        ValueError: an array is missing, or has another shape or dtype than `like` expects.
    """

    def find(path: tuple, expected: Any) -> Any:
        name = prefix + jax.tree_util.keystr(path)
        numbers = jax.eval_shape(_numbers, expected)
        found = arrays.get(name)
        if found is None or (found.shape, found.dtype) != (numbers.shape, numbers.dtype):
            other = "no array" if found is None else f"{found.dtype}{list(found.shape)}"
            raise ValueError(f"{name} is {other}, expected {numbers.dtype}{list(numbers.shape)}")
        return _as_keys(found, expected)

    return jax.tree_util.tree_map_with_path(find, like)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _numbers(x: Any) -> Any:
    return jax.random.key_data(x) if _is_key(x) else x


def _as_keys(numbers: Any, like: Any) -> Any:
    return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like)) if _is_key(like) else numbers


# -- JAX environments ----------------------------------------------------------------------------------


def _keep_fused(driver: FusedDriver) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    # Without the agents, which are the model's.
    run = driver._gather(lambda run: jax.tree.map(_numbers, run._replace(state=())))
    return named("run", run), {"reset_due": driver._reset_due}


def _restore_fused(driver: FusedDriver, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:
    seeds = driver.num_seeds
    fresh = driver._groups[0]._replace(state=())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape[1:]), x.dtype), jax.eval_shape(
        lambda run: jax.tree.map(_numbers, run), fresh))  # fmt: skip
    groups = zip(driver._groups, driver._split(tree(like, arrays, "run")), strict=True)
    driver._groups = [
        jax.tree.map(_as_keys, part, run._replace(state=()))._replace(state=run.state) for run, part in groups
    ]
    driver._reset_due = plain["reset_due"]


# -- host environments ---------------------------------------------------------------------------------


def _keep_host(driver: HostDriver) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    episodes, rows, observed = driver._episodes, driver._rows, driver._observed
    arrays = memory(driver) | named("carry", driver._carry)
    arrays |= {"keys": np.asarray(driver._keys), "ahead": driver._ahead, "returns": episodes.returns}
    arrays["unsummed"] = np.array(episodes.unsummed, np.float32).reshape(-1, *episodes.returns.shape)
    arrays["began"] = episodes.began
    arrays |= {f"finished{s}": np.reshape(list(x), (-1, 2)).astype(float) for s, x in enumerate(episodes.finished)}
    plain: dict[str, Any] = {
        "least": driver._least, "first_reset": driver._first_reset, "uncounted": driver._uncounted,
        "episode_rows": episodes.rows, "episodes": list(episodes.totals), "rows": None, "envs": None,
    }  # fmt: skip
    if driver.further is not None:
        arrays |= named("further", driver.further.kept())
        plain["longest"] = driver.further.longest
    if observed is not None:
        arrays |= named("observed", observed._asdict())
        taken = _snapshots(driver.envs)
        plain["envs"] = [one if isinstance(one, str) else one.plain for one in taken]
        for i, one in enumerate(taken):
            arrays |= {} if isinstance(one, str) else {f"env{i}.{name}": x for name, x in one.arrays.items()}
    if rows is not None:
        plain["rows"] = {name: getattr(rows, name) for name in ("count", "length", "episodes")}
        arrays |= named("rows", rows.packed.arrays) | named("rows_carry", rows.carry) | {"rows_began": rows.began}
    return arrays, plain


def _restore_host(
    driver: HostDriver, config: Any, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]
) -> list[str]:
    put_memory(driver, arrays)
    driver._carry = jax.tree.map(jnp.array, tree(driver._carry, arrays, "carry"))
    driver._keys = jnp.array(arrays["keys"])
    driver._least, driver._ahead = plain["least"], arrays["ahead"]
    driver._together = not driver._ahead.any()
    driver._first_reset, driver._uncounted = plain["first_reset"], plain["uncounted"]
    driver.version += 1
    _restore_episodes(driver, arrays, plain)
    if driver.further is not None:
        driver.further.put(tree(driver.further.like(plain["longest"]), arrays, "further"))
    if plain["rows"] is not None:
        driver._rows = _rows(driver, config, arrays, plain["rows"])
    return _restore_envs(driver, arrays, plain)


def _restore_episodes(driver: HostDriver, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> None:
    episodes = driver._episodes
    episodes.returns, episodes.began = arrays["returns"], arrays["began"]
    episodes.unsummed, episodes.rows = list(arrays["unsummed"]), plain["episode_rows"]
    episodes.totals = list(plain["episodes"])
    for s, queue in enumerate(episodes.finished):
        queue.extend((total, int(length)) for total, length in arrays[f"finished{s}"].tolist())


def _rows(driver: HostDriver, config: Any, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> Rows:
    """The chunk that was begun."""
    rows = Rows(driver.spec, config, driver.num_seeds, driver.num_envs)
    if rows.length != plain["length"]:
        rows._allocate(plain["length"])
    for mine, kept in zip(rows.packed.arrays, tree(rows.packed.arrays, arrays, "rows"), strict=True):
        mine[:] = kept  # in place: `rows.arrays` are views
    rows.count, rows.episodes, rows.began = plain["count"], plain["episodes"], arrays["rows_began"]
    rows.carry = jax.tree.map(jnp.array, tree(driver._carry, arrays, "rows_carry"))
    return rows


def _restore_envs(driver: HostDriver, arrays: Mapping[str, np.ndarray], plain: Mapping[str, Any]) -> list[str]:
    if plain["envs"] is None:
        return []
    seeds, envs = (driver.num_seeds, driver.num_envs), driver.envs
    masked = [name for name in arrays if name.startswith("observed['action_mask']")]
    like = Observed(
        driver.spec.observation.zeros(seeds), np.zeros(seeds, bool), arrays[masked[0]] if masked else None
    )
    driver._observed = Observed(**tree(like._asdict(), arrays, "observed"))
    taken: list[Snapshot | str] = []
    for i, one in enumerate(plain["envs"]):
        prefix = f"env{i}."
        own = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
        taken.append(one if isinstance(one, str) else Snapshot(one, own))
    wrong = _restored(envs, taken, driver._observed)
    if wrong:
        # Random streams of their own: those of the start would bring the first episodes once more.
        fresh = [environment_seeds(hash((s, driver._least)) & 0x7FFFFFFF, driver.num_envs) for s in driver.seeds]
        envs.reset(np.stack(fresh))
        driver._uncounted, driver._first_reset = True, False
    return wrong


def _snapshots(envs: HostEnvs) -> list[Snapshot | str]:
    """Where each environment is, in the order of seeds and environments, or why nobody can say."""
    if not hasattr(envs, "call_each"):
        return ["natively vectorised environments show no state of theirs"]
    try:
        return envs.call_each("snapshot")
    except AttributeError:
        return ["nothing has recorded it"]


def _restored(envs: HostEnvs, taken: Sequence[Snapshot | str], observed: Observed) -> list[str]:
    """Bring environments to where snapshots were taken and `observed [S, N]` was seen.

    Answers what could not be done, an empty list where all are in place. Where it is not empty some are and
    some are not: begin new episodes everywhere.
    """
    unknown = [reason for reason in taken if isinstance(reason, str)]
    if unknown or not hasattr(envs, "call_each"):
        return unknown or ["natively vectorised environments cannot be set to a place"]
    wrong = []
    for i, (obs, reason) in enumerate(envs.call_each("restore", [(one,) for one in taken])):
        if reason is None and obs is not None:
            rows = jax.tree.leaves(to_rows(envs.spec.observation, obs))
            place = divmod(i, envs.num_envs)
            if not all(np.array_equal(x[place], y, equal_nan=x.dtype.kind == "f")
                       for x, y in zip(jax.tree.leaves(observed.obs), rows, strict=True)):  # fmt: skip
                reason = "it shows another observation than the recorded one"
        if reason is not None:
            wrong.append(f"env {i % envs.num_envs}: {reason}")
    if not wrong and hasattr(envs, "placed"):
        envs.placed(observed)
    return wrong
