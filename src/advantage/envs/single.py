"""What is done with single Gymnasium environments; imports no JAX, so that worker processes start quickly."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from advantage.envs import goals  # noqa: F401  (registers its ids, in worker processes too)


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


def make_wrapped(
    env_id: str | Callable[..., gymnasium.Env],
    env_kwargs: Mapping[str, Any],
    wrapper_class: Callable[..., gymnasium.Env] | None,
    wrapper_kwargs: Mapping[str, Any],
) -> gymnasium.Env:
    """One environment of `make_vec_env`."""
    env = gymnasium.make(env_id, **env_kwargs) if isinstance(env_id, str) else env_id(**env_kwargs)
    return env if wrapper_class is None else wrapper_class(env, **wrapper_kwargs)


def has_masks(env: Any) -> bool:
    """Whether the environment names its legal actions."""
    return isinstance(env, gymnasium.Env) and env.has_wrapper_attr("action_masks")


def refuse_vector_masks(env: Any) -> None:
    """Raise `ValueError` for a `gymnasium.vector` environment whose members have masks: it has no way to hand them on."""
    if any(map(has_masks, getattr(env, "envs", ()))):
        raise ValueError(
            f"env is a {type(env).__name__} of environments with action_masks(), which it does not hand on: give"
            " make_vec_env(function, n_envs=...), with vec_env='async' for processes"
        )


def mask_row(answer: Any, choices: int) -> np.ndarray:
    """Legal actions of one environment as a row `[choices]`; those of components may be side by side, or a tuple.

    Raises:
        ValueError: there are more or fewer of them.
    """
    parts = answer if isinstance(answer, tuple | list) else (answer,)
    row = np.concatenate([np.asarray(part).reshape(-1) for part in parts])
    if row.size != choices:
        raise ValueError(f"it returned {row.size} entries: return {choices}, one for each choice")
    if row.dtype.kind not in "bui" and not np.isin(row, (0, 1)).all():
        raise ValueError(f"it returned {row}: return True where an action is legal, else False")
    return row.astype(bool)


def final_mask_row(ask: Callable[[], Any], choices: int) -> np.ndarray:
    """What is legal where an episode was cut, as a row `[choices]`; everything where the environment cannot say.

    Nobody acts there, and an environment may not expect the question once its episode is over.
    """
    try:
        return mask_row(ask(), choices)
    except Exception:
        return np.ones(choices, bool)


def silence_passive_checker(env: Any) -> None:
    """Mark Gymnasium's passive checker, which `gymnasium.make` adds, as done: it would speak before ours."""
    for wrapper in wrappers(env):
        if isinstance(wrapper, gymnasium.wrappers.PassiveEnvChecker):
            # The last of these came with Gymnasium 1.4.
            for check in ("checked_reset", "checked_step", "checked_data_reuse"):
                setattr(wrapper, check, True)


def wrappers(env: Any) -> Iterator[gymnasium.Wrapper]:
    """The wrappers around an environment, the outermost first."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env


class WrapperFacts(NamedTuple):
    """What evaluation has to know of a wrapper."""

    name: str
    changes_rewards: bool
    keeps_statistics: bool


def wrapper_facts(env: gymnasium.Env) -> list[WrapperFacts]:
    """The facts of every wrapper of an environment."""
    changing = (gymnasium.RewardWrapper, gymnasium.wrappers.NormalizeReward)
    statistics = gymnasium.wrappers.RecordEpisodeStatistics
    return [
        WrapperFacts(name := type(w).__name__, isinstance(w, changing), isinstance(w, statistics) or name == "Monitor")
        for w in wrappers(env)
    ]


def is_wrapped(env: gymnasium.Env, wrapper_class: type) -> bool:
    """Whether the environment is of this class or has a wrapper of it."""
    return any(isinstance(layer, wrapper_class) for layer in (*wrappers(env), env.unwrapped))


def get_attribute(env: gymnasium.Env, name: str) -> Any:
    """An attribute, looked up through the wrappers."""
    return env.get_wrapper_attr(name)


def set_attribute(env: gymnasium.Env, name: str, value: Any) -> None:
    """Set an attribute where it is, or else on the outermost wrapper."""
    env.set_wrapper_attr(name, value)


def call_method(env: gymnasium.Env, method: str, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Call a method, looked up through the wrappers."""
    return env.get_wrapper_attr(method)(*args, **kwargs)


def reset_env(env: gymnasium.Env, seed: int | None, options: Mapping[str, Any] | None) -> Any:
    """`env.reset`, without options where there are none: some environments take none."""
    return env.reset(seed=seed) if options is None else env.reset(seed=seed, options=options)


def step_env(env: gymnasium.Env, action: Any) -> Any:
    """`env.step`."""
    return env.step(action)


def has_attribute(env: gymnasium.Env, name: str) -> bool:
    """Whether an attribute is found through the wrappers."""
    return env.has_wrapper_attr(name)


def render_env(env: gymnasium.Env) -> Any:
    """`env.render`."""
    return env.render()
