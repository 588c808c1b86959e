"""From what a user gives as `env` to what a driver takes."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium

from advantage import platform
from advantage.envs.async_envs import RemoteEnv
from advantage.envs.atari import Atari, is_atari_id, make_atari
from advantage.envs.check import check_env
from advantage.envs.jax import check_mask, is_jax_env, is_ours, make_jax
from advantage.envs.native import EnvPool
from advantage.envs.recorder import recorded
from advantage.envs.single import make_gymnasium, refuse_vector_masks
from advantage.envs.subproc import SubprocVecEnv
from advantage.envs.vec_env import DummyVecEnv, make_at_once
from advantage.envs.vector import HostEnvs, SyncEnvs, VectorEnvs

JAX_PREFIXES = ("advantage/", "gymnax/", "brax/")


def resolve_env(env: Any, n_envs: int, vec_env: str = "sync") -> Any:
    """An id becomes a JAX environment or one of `vec_env`'s kind; a Gymnasium env a `DummyVecEnv` of one; others stay.

    Raises:
        ValueError: an unknown id, or `n_envs` or `vec_env` beside an environment that already has its own.
        InvalidEnvironment: the environment cannot be trained on; the message says what to mend.
    """
    if is_jax_env(env) or (isinstance(env, str) and env.startswith(JAX_PREFIXES)):
        if vec_env != "sync":
            raise ValueError(f"vec_env={vec_env!r} is for Gymnasium's ids; JAX environments are compiled: leave it out")
        env = make_jax(env) if isinstance(env, str) else env
        check_mask(env)
        return env
    if not isinstance(env, str) and (n_envs != 1 or vec_env != "sync"):
        given = f"n_envs={n_envs}" if n_envs != 1 else f"vec_env={vec_env!r}"
        raise ValueError(
            f"{given} needs env as an id such as 'CartPole-v1'; this env is a {type(env).__name__}:"
            f" use make_vec_env(..., n_envs={n_envs}, vec_env={vec_env!r}), which also takes functions"
        )
    if isinstance(env, str):
        make = functools.partial(make_gymnasium, env)
        if is_atari_id(env) and vec_env != "envpool":
            if vec_env == "async":
                raise ValueError("vec_env='async' runs environments in processes, and ALE has its own threads: leave vec_env out")
            env = make_atari(env, n_envs)
        elif vec_env in ("native", "envpool"):
            env = make_at_once(vec_env, env, n_envs)
        else:
            env = (SubprocVecEnv if vec_env == "async" else DummyVecEnv)([make] * n_envs)
    elif isinstance(env, gymnasium.Env):
        env = _wrap(env)
    if isinstance(env, gymnasium.vector.VectorEnv):
        refuse_vector_masks(env)
    if isinstance(env, SubprocVecEnv):
        check_env(RemoteEnv(env.host))
    else:
        check_env(env.envs[0] if isinstance(env, DummyVecEnv) else env)
    return env


def is_gymnasium_id(env: Any) -> bool:
    """Whether `env` is an id of Gymnasium's, or of what steps its kind of environments."""
    return isinstance(env, str) and not env.startswith(JAX_PREFIXES)


def reserve_threads(env: Any) -> None:
    """Ask for what a JAX environment that is not ours may need, before JAX is used (see `platform`)."""
    adapted = isinstance(env, str) and env.startswith(JAX_PREFIXES[1:])
    if adapted or (is_jax_env(env) and not is_ours(env)):
        platform.spare_threads()


def host_envs(env: Any, num_seeds: int) -> HostEnvs:
    """Host environments for `num_seeds` seeds; the copies for further seeds are built anew.

    Raises:
        ValueError: the environment cannot be built anew, and why.
    """
    if isinstance(env, gymnasium.vector.VectorEnv):
        copies = [_vector_copy(env) for _ in range(num_seeds - 1)]
        return VectorEnvs([env, *copies])
    if isinstance(env, SubprocVecEnv):
        return env.for_seeds(num_seeds)
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
    if isinstance(env, EnvPool | Atari):
        return env.copy()
    if env.spec is None:
        raise ValueError(
            f"seeds > 1 needs copies of env, and this {type(env).__name__} was not made by gymnasium.make_vec:"
            " make it so, or train the seeds one after the other"
        )
    try:
        return gymnasium.make_vec(env.spec)
    except Exception as error:
        raise ValueError(f"seeds > 1 needs copies of env, and its spec cannot be built anew: {error}") from error

