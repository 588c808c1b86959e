"""Environments written in JAX: their protocol, the vmapped reset and step both drivers use, and `make_jax`.

A JAX environment is a pair of pure functions of one, unbatched environment. It does not reset itself:
`step_envs` steps N of them and resets, within the same step, those whose episode ended.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped, UInt32

from advantage import platform
from advantage.types import Observed, Space, Spec, TimeStep

EnvState = PyTree
"""Everything an environment remembers, a pytree of arrays with the same shapes and dtypes at every step."""


class Transition(NamedTuple):
    """What one environment answers to one action. `obs` is the true successor, also at an episode's end."""

    obs: PyTree
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


@runtime_checkable
class JaxEnv(Protocol):
    """One unbatched, pure environment without autoreset.

    Time limits live inside (a step counter in the state) and are reported as `truncated`. Optional:
    `action_mask(env_state) -> Bool[Array, "actions"]`, and `render(env_state)`, which runs on the host
    and returns an RGB picture `uint8 [height, width, 3]`.
    """

    id: str
    spec: Spec

    def reset(self, key: PRNGKeyArray) -> tuple[EnvState, PyTree]:
        """Begin an episode: `(env_state, obs)`."""
        ...

    def step(self, env_state: EnvState, action: Array, key: PRNGKeyArray) -> tuple[EnvState, Transition]:
        """Take the environment's own action (what `types.to_env` returns)."""
        ...


def is_jax_env(obj: Any) -> bool:
    """Whether `obj` is a JAX environment (a Gymnasium one has a `spec` too, but not one of ours)."""
    return (
        not isinstance(obj, type)
        and isinstance(getattr(obj, "spec", None), Spec)
        and callable(getattr(obj, "reset", None))
        and callable(getattr(obj, "step", None))
    )


# What XLA's CPU client may split over its threads, and wait for.
LINEAR_ALGEBRA = {"cholesky", "lu", "geqrf", "geqp3", "qr", "householder_product", "eig", "eigh", "svd", "schur",
                  "triangular_solve", "tridiagonal", "tridiagonal_solve", "ormqr", "hessenberg"}  # fmt: skip


def is_ours(env: JaxEnv) -> bool:
    """Whether an environment is this library's own, and computes no linear algebra."""
    # A wrapper knows of itself and of what is inside it.
    return getattr(env, "is_ours", type(env).__module__ in ("advantage.envs.classic", "advantage.envs.probes"))


def check_threads(env: JaxEnv) -> None:
    """Refuse an environment whose linear algebra could wait for ever (see `platform.spare_threads`).

    Raises:
        ValueError: XLA's threads are too few, and JAX was used too early to add any.
    """
    if is_ours(env) or platform.spare_threads():
        return
    key = np.zeros(2, np.uint32)
    action = jax.tree.map(jnp.asarray, env.spec.action.zeros())
    found = linear_algebra(lambda key, action: env.step(env.reset(key)[0], action, key), key, action)
    if found:
        raise ValueError(
            f"env {env.id!r} uses linear algebra ({', '.join(sorted(found))}), for which XLA has too few threads"
            f" here: set the environment variable NPROC={2 * jax.local_device_count()} before Python starts, or"
            " make its model before JAX is used"
        )


def linear_algebra(function: Callable, *arguments: PyTree) -> set[str]:
    """The names of the decompositions a function computes; it is traced, not run."""
    traced = jax.make_jaxpr(function)(*arguments)
    return LINEAR_ALGEBRA & {equation.primitive.name for equation in _equations(traced.jaxpr)}


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a traced program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def reset_envs(env: JaxEnv, keys: UInt32[Array, "N 2"]) -> tuple[EnvState, Observed]:
    """Begin an episode in each of N environments, one key each."""
    env_state, obs = jax.vmap(env.reset)(keys)
    env_state = jax.tree.map(_strong, env_state)
    obs = as_space(env.spec.observation, obs)
    return env_state, _observed(env, env_state, obs, jnp.ones(keys.shape[:1], bool))


def step_envs(
    env: JaxEnv,
    env_state: EnvState,
    observed: Observed,
    action: Shaped[Array, "N ..."],
    key: PRNGKeyArray,
) -> tuple[EnvState, TimeStep]:
    """Step N environments and reset, in the same step, those whose episode ended.

    Where an episode ended, `final_obs` is its true successor and `observed` already the first
    observation of the next episode, with `is_first` set.

    Raises:
        TypeError: `env.step` returns a state of other shapes or dtypes than `env.reset` (while tracing).
    """
    keys = jax.random.split(key, (2, observed.is_first.shape[0]))
    stepped, transition = jax.vmap(env.step)(env_state, action, keys[0])
    fresh, first_obs = jax.vmap(env.reset)(keys[1])
    _same_types(env, fresh, stepped)
    terminated, truncated = jnp.asarray(transition.terminated, bool), jnp.asarray(transition.truncated, bool)
    done = terminated | truncated
    final_obs = as_space(env.spec.observation, transition.obs)
    # A select, not a cond: resets are cheap beside steps, and under vmap over seeds a cond is a select.
    env_state = _select(done, fresh, stepped)
    obs = _select(done, as_space(env.spec.observation, first_obs), final_obs)
    return env_state, TimeStep(
        _observed(env, env_state, obs, done),
        jnp.asarray(transition.reward, jnp.float32),
        terminated,
        truncated,
        final_obs,
        final_mask=_mask(env, stepped),
    )


_CLASSES = {
    "advantage/CartPole-v1": ("advantage.envs.classic", "CartPole", {}),
    "advantage/CartPoleNoVel-v1": ("advantage.envs.classic", "CartPole", {"velocities": False}),
    "advantage/Pendulum-v1": ("advantage.envs.classic", "Pendulum", {}),
} | {
    f"advantage/Probe{name}{'Continuous' if options else ''}-v0": ("advantage.envs.probes", name, options)
    for name, variants in {
        "ConstantReward": ({}, {"continuous": True}),
        "ObservationReward": ({}, {"continuous": True}),
        "DelayedReward": ({}, {"continuous": True}),
        "ActionReward": ({},),
        "Match": ({},),
        "TimeLimitLoop": ({}, {"continuous": True}),
        "Endings": ({}, {"continuous": True}),
        "ContinuousTarget": ({},),
        "Recall": ({},),
        "Picture": ({}, {"continuous": True}),
    }.items()
    for options in variants
} | {"advantage/ProbeRecallDiscrete-v0": ("advantage.envs.probes", "Recall", {"discrete": True})}
"""Our own environments: id -> module, class, arguments. Modules are imported when first asked for."""

_ADAPTERS = {"gymnax": "advantage.envs.gymnax", "brax": "advantage.envs.brax"}
"""Families of other libraries: prefix -> module with `make(name)` and `names()`."""


def make_jax(id: str) -> JaxEnv:
    """The JAX environment called `id`: `advantage/...`, `gymnax/<name>` or `brax/<name>`.

    Raises:
        ImportError: the library behind a `gymnax/` or `brax/` id is not installed.
        ValueError: there is no such environment; the message names the nearest.
    """
    if id in _CLASSES:
        module, name, options = _CLASSES[id]
        return getattr(importlib.import_module(module), name)(**options)
    family, _, name = id.partition("/")
    if family not in _ADAPTERS:
        raise ValueError(_unknown(id, list(_CLASSES)))
    adapter = importlib.import_module(_ADAPTERS[family])
    if name not in adapter.names():
        raise ValueError(_unknown(id, [f"{family}/{known}" for known in adapter.names()]))
    return adapter.make(name)


def _unknown(id: str, known: list[str]) -> str:
    """One line that names the nearest ids; an id without its prefix is near to the one with it."""
    lowered = {name.lower(): name for name in known} | {
        name.lower().partition("/")[2]: name for name in known
    }
    near = difflib.get_close_matches(id.lower(), lowered, n=4, cutoff=0.5)
    near = list(dict.fromkeys(lowered[name] for name in near))[:3] or sorted(known)
    return f"there is no JAX environment {id!r}; nearest: {', '.join(near)}"


def missing(package: str, error: ImportError) -> ImportError:
    """The one-line error for an adapter whose library cannot be imported."""
    return ImportError(
        f'{package} environments need {error.name or package}: pip install "advantage[jax-envs]"',
        name=error.name,
    )


def lenient(fn: Callable) -> Callable:
    """Trace someone else's code under JAX's default promotion rules, whatever the caller has set.

    Its warnings are dropped: Brax announces its successor and uses deprecated MuJoCo names at every
    trace, and whoever trains can do nothing about it.
    """

    @functools.wraps(fn)
    def wrapped(*args, **kwargs):
        with (
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            return fn(*args, **kwargs)

    return wrapped


def like(tree: PyTree, template: PyTree) -> PyTree:
    """`tree` with the dtypes of `template`, Python numbers made arrays."""
    return jax.tree.map(lambda x, t: jnp.asarray(x, t.dtype), tree, template)


def spec_of(env: JaxEnv) -> Spec:
    """The environment's spec, with whether it has masks of legal actions."""
    return dataclasses.replace(env.spec, masked=hasattr(env, "action_mask"))


def _observed(env: JaxEnv, env_state: EnvState, obs: PyTree, is_first: Bool[Array, " N"]) -> Observed:
    return Observed(obs, is_first, _mask(env, env_state))


def _mask(env: JaxEnv, env_state: EnvState) -> Bool[Array, "N A"] | None:
    return jnp.asarray(jax.vmap(env.action_mask)(env_state), bool) if hasattr(env, "action_mask") else None


def check_mask(env: JaxEnv) -> None:
    """Raise `ValueError` where `action_mask` gives more or fewer entries than there are choices; nothing is run."""
    if not hasattr(env, "action_mask"):
        return
    shape = jax.eval_shape(lambda key: env.action_mask(env.reset(key)[0]), jax.random.PRNGKey(0)).shape
    if shape != (sum(env.spec.action.n),) or not env.spec.action.n:
        raise ValueError(
            f"action_mask of {env!r} has shape {shape}: {env.spec.action.to_gymnasium()} has"
            f" {sum(env.spec.action.n)} choices, one entry for each"
        )


def as_space(space: Space, obs: PyTree) -> PyTree:
    """An observation in the structure and dtypes of its space."""
    if space.kind == "dict":
        return {name: as_space(part, obs[name]) for name, part in space.parts}
    if space.kind == "tuple":
        return tuple(as_space(part, x) for (_, part), x in zip(space.parts, obs, strict=True))
    return jnp.asarray(obs, space.dtype)


def _select(done: Bool[Array, " N"], fresh: PyTree, stepped: PyTree) -> PyTree:
    def pick(new: Array, old: Array) -> Array:
        return jnp.where(done.reshape(done.shape + (1,) * (old.ndim - 1)), _strong(new), _strong(old))

    return jax.tree.map(pick, fresh, stepped)


def _strong(x: Array) -> Array:
    """Without JAX's weak type: a state that is weak at reset and strong after a step compiles twice."""
    return jax.lax.convert_element_type(x, x.dtype)


def _same_types(env: JaxEnv, fresh: EnvState, stepped: EnvState) -> None:
    if jax.tree.structure(fresh) != jax.tree.structure(stepped):
        raise TypeError(
            f"{env.id}: step() must return a state of reset()'s structure {jax.tree.structure(fresh)},"
            f" not {jax.tree.structure(stepped)}"
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(fresh), jax.tree.leaves(stepped), strict=True)
    for (path, new), old in leaves:
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise TypeError(
                f"{env.id}: state{jax.tree_util.keystr(path)} is {new.dtype}{list(new.shape[1:])} after"
                f" reset() and {old.dtype}{list(old.shape[1:])} after step(): they must agree"
            )
