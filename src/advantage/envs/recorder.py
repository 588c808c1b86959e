"""Notes what a host environment went through, so that another process can bring a copy to the same place.

An environment cannot be copied into a file. But what it does follows from the state of its random generator
before a reset and from the actions since: a copy that is told the same does the same. An environment may offer
`get_state() -> {name: array or number}` and `set_state(state)` instead, which costs no repetition. Imports no JAX:
worker processes use it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from advantage.envs.single import wrappers

MOST_STEPS = 100_000
"""Steps of an episode up to which it is noted: repeating more would take too long."""


class Snapshot(NamedTuple):
    """Where an environment is: what to tell a copy of it.

    `plain` is made of JSON's types. `arrays` holds `actions [n, ...]` and `rewards [n]`, or what the
    environment's own `get_state` gave.
    """

    plain: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Recorder(gymnasium.Wrapper):
    """Notes resets and actions of an environment; changes nothing."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._begin: dict[str, Any] | None = None  # how the episode began; None: not seen
        self._actions: list[Any] = []
        self._rewards: list[Any] = []
        self._inner_step = env.step  # looked up once: this is called at every step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin an episode, and note from where."""
        generators = None if seed is not None else _found(self.env, "_np_random", lambda x: x.bit_generator.state)
        self._begin = {"seed": seed, "generators": generators} if options is None else None
        self._actions, self._rewards = [], []
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step, and note the action: a copy, since environments may change what they are given."""
        self._actions.append(action.copy() if isinstance(action, np.ndarray) else action)
        answer = self._inner_step(action)
        self._rewards.append(answer[1])
        if len(self._rewards) > MOST_STEPS:
            self._begin, self._actions, self._rewards = None, [], []
        return answer

    def snapshot(self) -> Snapshot | str:
        """Where the environment is, or why nobody can say."""
        if self.env.has_wrapper_attr("get_state") and self.env.has_wrapper_attr("set_state"):
            state = self.env.get_wrapper_attr("get_state")()
            arrays = {name: np.asarray(value) for name, value in state.items()}
            generators = _found(self.env, "_np_random", lambda x: x.bit_generator.state)
            return Snapshot({"elapsed": _found(self.env, "_elapsed_steps", int), "generators": generators}, arrays)
        if self._begin is None:
            return f"its episode has more than {MOST_STEPS:,} steps, or began with options"
        rewards = np.array(self._rewards, np.float64)
        return Snapshot(self._begin, {"actions": np.array(self._actions), "rewards": rewards})

    def restore(self, snapshot: Snapshot) -> tuple[Any, str | None]:
        """Bring the environment to a snapshot's place: `(observation or None, why it could not be done)`."""
        try:
            return self._repeated(*snapshot)
        except Exception as error:  # whatever an environment raises: the run goes on with a new episode
            return None, f"it raised {type(error).__name__}: {error}"

    def _repeated(self, plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[Any, str | None]:
        if "elapsed" in plain:
            _give(self.env, "_np_random", plain["generators"], _generator)
            self.env.get_wrapper_attr("set_state")(dict(arrays))
            _give(self.env, "_elapsed_steps", plain["elapsed"], int)
            return None, None
        if plain["seed"] is None:
            _give(self.env, "_np_random", plain["generators"], _generator)
        obs, _ = self.reset(seed=plain["seed"])
        self._begin = plain
        for t, (action, expected) in enumerate(zip(arrays["actions"], arrays["rewards"], strict=True), 1):
            obs, reward, terminated, truncated, _ = self.step(action)
            if float(reward) != expected and not (np.isnan(expected) and np.isnan(reward)):
                return None, f"step {t} of its episode gave the reward {reward}, and {expected} when it was recorded"
            if terminated or truncated:
                return None, f"its episode ended after {t} steps, and had gone on when it was recorded"
        return obs, None


def recorded(env: Any) -> Any:
    """An environment with a recorder around it, where it is one of Gymnasium's."""
    return Recorder(env) if isinstance(env, gymnasium.Env) else env


def is_plain(env: Any) -> bool:
    """Whether an id alone makes this environment again: no wrappers or arguments of the user's."""
    env = env.env if isinstance(env, Recorder) else env
    spec = getattr(env, "spec", None)
    if not hasattr(spec, "additional_wrappers"):
        return False
    # What `gymnasium.make` puts around an environment itself, each once.
    usual = ["TimeLimit", "OrderEnforcing", "PassiveEnvChecker"]
    for layer in reversed(_layers(env)[1:]):
        if type(layer).__name__ not in usual:
            return False
        usual.remove(type(layer).__name__)
    registered = gymnasium.registry.get(spec.id)
    limit = None if registered is None else registered.max_episode_steps
    return not spec.additional_wrappers and spec.kwargs.keys() <= {"render_mode"} and spec.max_episode_steps == limit


def _layers(env: Any) -> list[Any]:
    """The environment inside and its wrappers, innermost first."""
    return [env.unwrapped, *reversed([*wrappers(env)])]


def _found(env: gymnasium.Env, name: str, read: Callable[[Any], Any]) -> list[list[Any]]:
    """`[class, value]` of every layer that has an attribute of its own."""
    own = [(layer, layer.__dict__.get(name)) for layer in _layers(env)]
    return [[type(layer).__name__, read(value)] for layer, value in own if value is not None]


def _give(env: gymnasium.Env, name: str, values: list[list[Any]], made: Callable[[Any], Any]) -> None:
    """Set what was `_found`. Layers without it may differ: a checker, say."""
    layers = iter(_layers(env))
    for kind, value in values:
        layer = next((one for one in layers if type(one).__name__ == kind), None)
        if layer is None:
            raise ValueError(f"its {kind} is missing")
        layer.__dict__[name] = made(value)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)
