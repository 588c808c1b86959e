"""Check an environment before training: each fault raises one line: what is wrong, the value, the remedy.

`check_env` calls `reset` and takes at most three steps; it leaves the environment freshly reset.
`first_nonfinite` finds the first NaN or infinity in collected experience.
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import jax
import numpy as np
from jaxtyping import Bool, PyTree, Shaped

from advantage.envs.single import mask_row, silence_passive_checker
from advantage.types import Chunk, Space

_STEPS = 3


class InvalidEnvironment(ValueError):
    """The environment breaks the Gymnasium interface; the message is one line with the remedy."""

    def __init__(self, *parts: str):
        # Representations of arrays and other people's messages contain line breaks.
        super().__init__(" ".join(" ".join(parts).split()))


def check_env(env: Any) -> None:
    """Check a Gymnasium environment, or a `gymnasium.vector.VectorEnv`, by using it for a moment.

    Its random generator is reseeded with a number that nobody chose: seed it by `reset(seed=...)`
    afterwards. Gymnasium's own passive checker, where present, counts as done.

    Raises:
        InvalidEnvironment: the first fault found, in one line.
    """
    _check_object(env)
    silence_passive_checker(env)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(env, gymnasium.vector.VectorEnv):
            _check_vector(env)
        else:
            _check_single(env)


def first_nonfinite(
    obs: PyTree[Shaped[np.ndarray, "T N ..."]],
    reward: Shaped[np.ndarray, "T N"],
    valid: Bool[np.ndarray, "T N"],
) -> tuple[int, int, str] | None:
    """`(t, n, name)` of the first NaN or infinity among valid rows in time order, or None.

    `name` is `reward`, `obs`, or the path of a leaf such as `obs['position']`. Integer arrays are
    not read.
    """
    found = []
    leaves = [("obs" + jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(obs)]
    for name, x in [*leaves, ("reward", reward)]:
        if x.dtype.kind not in "fc" or np.isfinite(x).all():
            continue
        bad = ~np.isfinite(x).reshape(*valid.shape, -1).all(axis=-1) & valid
        if bad.any():
            t, n = np.unravel_index(np.argmax(bad), bad.shape)
            found.append((int(t), int(n), name))
    # On a tie the observation is named: the reward usually follows from it.
    return min(found, key=lambda place: place[:2], default=None)


def first_bad_row(chunk: Chunk) -> tuple[int, int, str] | None:
    """`(the chunk's steps taken by then, environment, name)` of the first number that is not finite."""
    valid, none = chunk.valid, np.zeros_like(chunk.valid[:1])
    # What the policy saw, and the successor of every row that counts: also past the last of them.
    wanted = np.concatenate([valid, none]) | np.concatenate([none, valid])
    rows = jax.tree.map(lambda x, last: np.concatenate([x, last[None]]), chunk.obs, chunk.last_obs)
    ended = valid & (chunk.terminated | chunk.truncated)
    found = (
        (0, first_nonfinite(rows, np.zeros(wanted.shape, np.float32), wanted)),
        (1, first_nonfinite(chunk.final_obs, np.zeros_like(chunk.reward), ended)),
        (1, first_nonfinite({}, chunk.reward, valid)),
    )
    places = [(int(valid[: bad[0] + later].sum()), *bad[1:]) for later, bad in found if bad is not None]
    return min(places, key=lambda place: place[0], default=None)


def _check_object(env: Any) -> None:
    """What can be told without calling anything."""
    name = f"{type(env).__module__}.{type(env).__qualname__}"
    if isinstance(env, type):
        raise InvalidEnvironment(
            f"env is the class {env.__qualname__}: pass an instance, {env.__qualname__}()"
        )
    if _of_package(env, "gym"):
        raise InvalidEnvironment(
            f"env is a {name} of `gym`, which is no longer maintained: use gymnasium.make(...), or wrap it"
            " with shimmy.GymV21CompatibilityV0(env=env) (pip install shimmy)"
        )
    if _of_package(env, "stable_baselines3"):
        raise InvalidEnvironment(
            f"env is a {name}: pass its id, or the Gymnasium environments it was made of"
        )
    for method in ("reset", "step"):
        if not callable(getattr(env, method, None)):
            raise InvalidEnvironment(
                f"env is a {name} without {method}(): pass a gymnasium.Env, for example gymnasium.make(id)"
            )


def _check_single(env: Any) -> None:
    observation = _check_space(env, "observation_space")
    action = _check_space(env, "action_space")
    _check_reset(env, observation, seed=_entropy())
    for i in range(_STEPS):
        choice = _action(env, action, i)
        answer = _call("step", lambda choice=choice: env.step(choice), 5)
        obs, reward, terminated, truncated, info = _check_five(answer)
        _check_obs(observation, obs, "observation of step()")
        _check_reward(reward)
        _check_flag("terminated", terminated)
        _check_flag("truncated", truncated)
        _check_info("step", info)
        if terminated or truncated:
            break
    _check_reset(env, observation)


def _check_vector(env: gymnasium.vector.VectorEnv) -> None:
    count = getattr(env, "num_envs", None)
    if not isinstance(count, int) or count < 1:
        raise InvalidEnvironment(f"num_envs is {count!r}: set it to the number of environments, 1 or more")
    observation = _check_space(env, "single_observation_space")
    action = _check_space(env, "single_action_space")
    _check_reset(env, observation, count, seed=_entropy())
    single = action.to_gymnasium()
    for i in range(_STEPS):
        choices = np.stack([np.asarray(_action(None, action, i), single.dtype)] * count)
        answer = _call("step", lambda choices=choices: env.step(choices), 5)
        obs, reward, terminated, truncated, info = _check_five(answer)
        _check_batch(observation, obs, count, "observation of step()")
        _check_column("reward", reward, count, "biuf")
        _check_column("terminated", terminated, count, "b")
        _check_column("truncated", truncated, count, "b")
        _check_info("step", info)
        if np.any(terminated) or np.any(truncated):
            break
    _check_reset(env, observation, count)


def _check_space(env: Any, name: str) -> Space:
    space = getattr(env, name, None)
    if space is None:
        raise InvalidEnvironment(
            f"{name} is missing or None: set self.{name} = gymnasium.spaces... in __init__"
        )
    if _of_package(space, "gym"):
        raise InvalidEnvironment(
            f"{name} is a space of `gym`, {_short(space)}: build it from gymnasium.spaces"
        )
    if not isinstance(space, gymnasium.Space):
        raise InvalidEnvironment(f"{name} is {_short(space)}, not a space: use one of gymnasium.spaces")
    try:
        described = Space.from_gymnasium(space)
    except TypeError as error:
        raise InvalidEnvironment(f"{name}: {error}") from error
    if "action" in name and described.kind in ("dict", "tuple"):
        raise InvalidEnvironment(
            f"{name} is {_short(space)}: Dict and Tuple actions are not supported, use one Box or"
            " MultiDiscrete and take it apart in step()"
        )
    return described


def _check_reset(env: Any, observation: Space, count: int | None = None, seed: int | None = None) -> None:
    arguments = {} if seed is None else {"seed": seed}
    try:
        answer = _call("reset", lambda: env.reset(**arguments), 2)
    except InvalidEnvironment as error:
        cause = error.__cause__
        if isinstance(cause, TypeError) and "seed" in str(cause):
            raise InvalidEnvironment(
                f"reset(seed={seed}) raised {_short(str(cause))}: declare reset(self, *, seed=None,"
                " options=None) and call super().reset(seed=seed)"
            ) from cause
        raise
    pair = isinstance(answer, tuple) and len(answer) == 2
    if not pair or not isinstance(answer[1], Mapping):
        raise InvalidEnvironment(
            f"reset() returned {_short(answer)} instead of (obs, info): return obs, {{}} (or wrap an old"
            " environment with shimmy)"
        )
    if count is None:
        _check_obs(observation, answer[0], "observation of reset()")
    else:
        _check_batch(observation, answer[0], count, "observation of reset()")


def _check_five(answer: Any) -> tuple:
    if isinstance(answer, tuple) and len(answer) == 4:
        raise InvalidEnvironment(
            "step() returned 4 values, as old `gym` did: return (obs, reward, terminated, truncated,"
            " info), or wrap the environment with shimmy"
        )
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise InvalidEnvironment(
            f"step() returned {_short(answer)}: return 5 values (obs, reward, terminated, truncated, info)"
        )
    return answer


def _check_obs(space: Space, obs: Any, name: str) -> None:
    """One observation against its space, member by member."""
    if space.kind == "dict":
        keys = [key for key, _ in space.parts]
        if not isinstance(obs, Mapping) or sorted(obs) != keys:
            given = f"has the keys {sorted(obs)}" if isinstance(obs, Mapping) else f"is {_short(obs)}"
            raise InvalidEnvironment(f"{name} {given}: return a dict with the space's keys {keys}")
        for key, part in space.parts:
            _check_obs(part, obs[key], f"{name}[{key!r}]")
    elif space.kind == "tuple":
        if not isinstance(obs, tuple) or len(obs) != len(space.parts):
            raise InvalidEnvironment(f"{name} is {_short(obs)}: return a tuple of {len(space.parts)} members")
        for i, (_, part) in enumerate(space.parts):
            _check_obs(part, obs[i], f"{name}[{i}]")
    else:
        _check_array(space, obs, name, space.shape)


def _check_batch(space: Space, obs: Any, count: int, name: str) -> None:
    """`count` observations, batched as `gymnasium.vector` does: leaf by leaf."""
    if space.kind in ("dict", "tuple"):
        for key, part in space.parts:
            index = key if space.kind == "dict" else int(key)
            try:
                member = obs[index]
            except (KeyError, IndexError, TypeError) as error:
                raise InvalidEnvironment(f"{name} has no member {index!r}: return every member") from error
            _check_batch(part, member, count, f"{name}[{index!r}]")
    else:
        _check_array(space, obs, name, (count, *space.shape))


def _check_array(space: Space, obs: Any, name: str, shape: tuple[int, ...]) -> None:
    try:
        array = np.asarray(obs)
    except Exception as error:
        raise InvalidEnvironment(f"{name} is {_short(obs)}: return an array of shape {shape}") from error
    wanted = "biuf" if space.dtype.startswith("float") else "biu"
    if array.dtype.kind not in wanted:
        raise InvalidEnvironment(
            f"{name} is {_short(obs)} of dtype {array.dtype} where the space has {space.dtype}:"
            f" return obs.astype({space.dtype!r}), or change the space"
        )
    if array.shape != shape:
        raise InvalidEnvironment(
            f"{name} has shape {array.shape} where the space has {shape}: return that or change the space"
        )
    _refuse(~np.isfinite(array), array, name, "not finite", "return finite numbers (look for divisions by 0)")
    low, high = _limits(space)
    remedy = f"clip it or widen the space, {_short(space.to_gymnasium())}"
    # Compared as float32 where the space is: 0.1 in float64 is below 0.1 in float32.
    array = array.astype(space.dtype) if array.dtype.kind == "f" else array
    _refuse(array < low, array, name, "below the space's low", remedy, low)
    _refuse(array > high, array, name, "above the space's high", remedy, high)


def _refuse(
    bad: np.ndarray | np.bool_,
    array: np.ndarray,
    name: str,
    what: str,
    remedy: str,
    limit: np.ndarray | None = None,
) -> None:
    """Raise for the first element where `bad`."""
    if not np.any(bad):
        return
    # Comparing arrays of rank 0 gives NumPy scalars.
    bad = np.asarray(bad)
    index = np.unravel_index(np.argmax(bad), bad.shape)
    place = f"[{', '.join(str(i) for i in index)}]" if index else ""
    edge = "" if limit is None else f" {np.broadcast_to(limit, bad.shape)[index]}"
    raise InvalidEnvironment(f"{name}: element{place} is {array[index]}, {what}{edge}: {remedy}")


def _limits(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest value of each element."""
    if space.kind == "box":
        return space.bounds()
    if space.kind == "multi_binary":
        return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)
    low, high = np.asarray(space.start), np.asarray(space.start) + np.asarray(space.n) - 1
    return low.reshape(space.shape), high.reshape(space.shape)


def _check_reward(reward: Any) -> None:
    shape = np.shape(reward)
    if shape != ():
        raise InvalidEnvironment(
            f"reward is {_short(reward)} of shape {shape}, not a number: return float(reward) of one element"
        )
    if not isinstance(reward, numbers.Real) and np.asarray(reward).dtype.kind not in "biuf":
        raise InvalidEnvironment(
            f"reward is {_short(reward)} ({type(reward).__name__}), not a number: return a float"
        )
    if not np.isfinite(float(reward)):
        raise InvalidEnvironment(
            f"reward is {reward}, not a finite number: look for divisions by 0 and logarithms in the reward"
        )


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidEnvironment(
            f"{name} is {_short(value)} ({type(value).__name__}), not a bool: return bool({name})"
        )


def _check_info(method: str, info: Any) -> None:
    if not isinstance(info, Mapping):
        raise InvalidEnvironment(f"info of {method}() is {_short(info)}, not a dict: return {{}}")


def _check_column(name: str, value: Any, count: int, kinds: str) -> None:
    array = np.asarray(value)
    if array.shape != (count,):
        raise InvalidEnvironment(
            f"{name} of the vector env has shape {array.shape}: return one of each of {count} environments"
        )
    if array.dtype.kind not in kinds:
        wanted = "bool" if kinds == "b" else "a number"
        raise InvalidEnvironment(f"{name} of the vector env is {array.dtype}: return an array of {wanted}")
    _refuse(~np.isfinite(array), array, name, "not finite", "look for divisions by 0 in the reward")


def _action(env: Any, space: Space, i: int) -> Any:
    """A legal action, another at each `i`, drawn without any random generator."""
    if space.kind == "box":
        return np.zeros(space.shape, space.dtype).clip(*space.bounds())
    if space.kind == "multi_binary":
        return np.full(space.shape, i % 2, space.dtype)
    legal = _masks(env, space)
    chosen = [np.flatnonzero(mask)[i % mask.sum()] for mask in legal]
    action = np.reshape(np.asarray(chosen) + np.asarray(space.start), space.shape).astype(np.int64)
    return int(action) if space.kind == "discrete" else action


def _masks(env: Any, space: Space) -> list[np.ndarray]:
    """Which choices are legal now, for each component; all without an `action_masks` method."""
    total = sum(space.n)
    if not (isinstance(env, gymnasium.Env) and env.has_wrapper_attr("action_masks")):
        mask = np.ones(total, bool)
    else:
        answer = _call("action_masks", env.get_wrapper_attr("action_masks"))
        try:
            mask = mask_row(answer, total)
        except ValueError as error:
            raise InvalidEnvironment(f"action_masks(): {error}") from None
    parts = np.split(mask, np.cumsum(space.n)[:-1])
    if not all(part.any() for part in parts):
        raise InvalidEnvironment("action_masks() allows no action: leave at least one, or end the episode")
    return parts


def _call(method: str, call: Callable[[], Any], values: int = 0) -> Any:
    """Call the environment; what it raises becomes one line with the original as its cause."""
    try:
        return call()
    except Exception as error:
        # A wrapper above a faulty environment fails to unpack what that returns.
        if isinstance(error, ValueError) and f"to unpack (expected {values}" in str(error):
            _check_unpacked(method, str(error), values, error)
        raise InvalidEnvironment(
            f"{method}() raised {type(error).__name__}: {_short(str(error))}: correct the environment (its"
            " traceback is above)"
        ) from error


def _check_unpacked(method: str, said: str, values: int, error: ValueError) -> None:
    if method == "step" and "got 4" in said:
        try:
            _check_five((None,) * 4)
        except InvalidEnvironment as fault:
            raise fault from error
    names = "(obs, info)" if method == "reset" else "(obs, reward, terminated, truncated, info)"
    raise InvalidEnvironment(f"{method}() did not return {values} values ({said}): return {names}") from error


def _of_package(obj: Any, package: str) -> bool:
    return any(cls.__module__.split(".")[0] == package for cls in type(obj).__mro__)


def _entropy() -> int:
    """A seed from the operating system: a fixed one would make every unseeded run the same."""
    return int(np.random.SeedSequence().generate_state(1)[0] % 2**31)


def _short(value: Any) -> str:
    """At most 80 characters of a value's representation, on one line."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= 80 else text[:77] + "..."
