"""From what a user gives as `env` to what a driver takes."""

from __future__ import annotations

import difflib
import functools
from typing import Any

import gymnasium

from advantage import platform
from advantage.envs.check import check_env
from advantage.envs.jax import is_jax_env, is_ours, make_jax
from advantage.envs.recorder import recorded
from advantage.envs.vec_env import DummyVecEnv
from advantage.envs.vector import HostEnvs, SyncEnvs, VectorEnvs

JAX_PREFIXES = ("advantage/", "gymnax/", "brax/")


def resolve_env(env: Any, n_envs: int) -> Any:
    """An id becomes a JAX environment or a `DummyVecEnv`; a Gymnasium env a `DummyVecEnv` of one; others stay.

    Raises:
        ValueError: an unknown id, or `n_envs` beside an environment that already has its number.
        InvalidEnvironment: the environment cannot be trained on; the message says what to mend.
    """
    if isinstance(env, str) and env.startswith(JAX_PREFIXES):
        return make_jax(env)
    if is_jax_env(env):
        return env
    if n_envs != 1 and not isinstance(env, str):
        raise ValueError(
            f"n_envs={n_envs} needs env as an id such as 'CartPole-v1'; this env is a {type(env).__name__}:"
            " use make_vec_env(..., n_envs=...)"
        )
    if isinstance(env, str):
        env = DummyVecEnv([functools.partial(make_gymnasium, env)] * n_envs)
    elif isinstance(env, gymnasium.Env):
        env = _wrap(env)
    check_env(env.envs[0] if isinstance(env, DummyVecEnv) else env)
    return env


def reserve_threads(env: Any) -> None:
    """Ask for what a JAX environment that is not ours may need, before JAX is used (see `platform`)."""
    adapted = isinstance(env, str) and env.startswith(JAX_PREFIXES[1:])
    if adapted or (is_jax_env(env) and not is_ours(env)):
        platform.spare_threads()


def make_gymnasium(env_id: str, **kwargs: Any) -> gymnasium.Env:
    """`gymnasium.make` whose errors name what to do; its per-step checker is left out, ours runs once.

    Raises:
        ValueError: no such id.
        ImportError: the environment needs a package that is not installed.
    """
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ImportError(f"env {env_id!r} needs a package that is not installed: {error}") from None
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(env_id, gymnasium.registry, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see gymnasium.pprint_registry()"
        said = str(error).replace("\n", " ")
        raise ValueError(f"env {env_id!r} cannot be made: {hint} ({said})") from None


def host_envs(env: Any, num_seeds: int) -> HostEnvs:
    """Host environments for `num_seeds` seeds; the copies for further seeds are built anew.

    Raises:
        ValueError: the environment cannot be built anew, and why.
    """
    if isinstance(env, gymnasium.vector.VectorEnv):
        copies = [_vector_copy(env) for _ in range(num_seeds - 1)]
        return VectorEnvs([env, *copies])
    copies = [[make() for make in env.env_fns] for _ in range(num_seeds - 1)]
    return SyncEnvs([[recorded(one) for one in group] for group in (env.envs, *copies)])


def _wrap(env: gymnasium.Env) -> DummyVecEnv:
    """An instance as a vector of one; its factory rebuilds it from its spec when further seeds need copies."""
    first = [env]

    def make() -> gymnasium.Env:
        return first.pop() if first else _copy(env)

    return DummyVecEnv([make])


def _copy(env: gymnasium.Env) -> gymnasium.Env:
    if env.spec is None:
        raise ValueError(
            f"seeds > 1 needs copies of env, and {type(env.unwrapped).__name__} was not made by gymnasium.make:"
            " register it and give its id, or give make_vec_env(lambda: YourEnv())"
        )
    try:
        return gymnasium.make(env.spec, disable_env_checker=True)
    except Exception as error:
        raise ValueError(f"seeds > 1 needs copies of env, and its spec cannot be built anew: {error}") from error


def _vector_copy(env: gymnasium.vector.VectorEnv) -> gymnasium.vector.VectorEnv:
    if env.spec is None:
        raise ValueError(
            f"seeds > 1 needs copies of env, and this {type(env).__name__} was not made by gymnasium.make_vec:"
            " make it so, or train the seeds one after the other"
        )
    try:
        return gymnasium.make_vec(env.spec)
    except Exception as error:
        raise ValueError(f"seeds > 1 needs copies of env, and its spec cannot be built anew: {error}") from error

