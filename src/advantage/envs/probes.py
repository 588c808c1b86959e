"""Tiny environments whose values are known in closed form: what a correct algorithm must learn.

Each isolates one ability (as in rejax's probe environments, after Andy Jones, "Debugging RL, Without the
Agonizing Pain", 2021): an algorithm that fails `ObservationReward` but not `ConstantReward` has a fault
in how it feeds observations to its value function. `value(obs, gamma)` is the value of an observation
under the best policy; where actions are ignored that is the value under every policy, and `Q(s, a)`.
`continuous=True` gives those environments a Box action, for algorithms that need one.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from advantage.envs.jax import Transition
from advantage.types import Space, Spec

Obs = Float[Array, "1"]
Values = Float[np.ndarray, "..."]

_TWO = Space("discrete", dtype="int32", n=(2,), start=(0,))
_UNIT = Space("box", (1,), low=-1.0, high=1.0)


def _ignored(continuous: bool) -> Space:
    """The space of an action that nothing depends on."""
    return _UNIT if continuous else _TWO


def _name(name: str, continuous: bool = False) -> str:
    return f"advantage/Probe{name}{'Continuous' if continuous else ''}-v0"


def _sign(key: PRNGKeyArray) -> Obs:
    """-1 or 1, evenly."""
    return jnp.where(jax.random.bernoulli(key, shape=(1,)), jnp.float32(1.0), jnp.float32(-1.0))


def _flag(value: bool) -> Array:
    return jnp.asarray(value, bool)


def _end(obs: Obs, reward: Float[Array, ""]) -> Transition:
    """A terminating step. `obs` is a state of value: bootstrapping from it shows at once."""
    return Transition(obs, reward, _flag(True), _flag(False))


def _feature(obs: Shaped[np.ndarray | Array, "... 1"]) -> Values:
    return np.asarray(obs, np.float64)[..., 0]


@dataclasses.dataclass(frozen=True)
class ConstantReward:
    """One step, reward 1: V = 1. Tests the value loss and that termination cuts the bootstrap."""

    continuous: bool = False

    @property
    def id(self) -> str:
        return _name("ConstantReward", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(_UNIT, _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """The only observation is 0."""
        obs = jnp.zeros(1, jnp.float32)
        return obs, obs

    def step(self, env_state: Obs, action: Array, key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """Reward 1, the end."""
        return env_state, _end(env_state, jnp.float32(1.0))

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V = 1."""
        return np.ones_like(_feature(obs))


@dataclasses.dataclass(frozen=True)
class ObservationReward:
    """One step, reward = observation, -1 or 1: V(obs) = obs. Tests that values see observations."""

    continuous: bool = False

    @property
    def id(self) -> str:
        return _name("ObservationReward", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(_UNIT, _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """-1 or 1."""
        obs = _sign(key)
        return obs, obs

    def step(self, env_state: Obs, action: Array, key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """Reward as observed, the end."""
        return env_state, _end(env_state, env_state[0])

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V(obs) = obs."""
        return _feature(obs)


@dataclasses.dataclass(frozen=True)
class DelayedReward:
    """Two steps, reward 0 then 1: V(0) = gamma, V(1) = 1. Tests discounting and bootstrapping."""

    continuous: bool = False

    @property
    def id(self) -> str:
        return _name("DelayedReward", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(Space("box", (1,), low=0.0, high=1.0), _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """The first of two observations, 0."""
        obs = jnp.zeros(1, jnp.float32)
        return obs, obs

    def step(self, env_state: Obs, action: Array, key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """From 0 to 1, from 1 to the end."""
        second = jnp.ones(1, jnp.float32)
        return second, Transition(second, env_state[0], env_state[0] > 0.5, _flag(False))

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V(0) = gamma, V(1) = 1."""
        return np.where(_feature(obs) > 0.5, 1.0, gamma)


@dataclasses.dataclass(frozen=True)
class ActionReward:
    """One step, reward 1 for action 1 and -1 for action 0: V* = 1. Tests the policy loss."""

    id: ClassVar[str] = _name("ActionReward")
    spec: ClassVar[Spec] = Spec(_UNIT, _TWO)

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """The only observation is 0."""
        obs = jnp.zeros(1, jnp.float32)
        return obs, obs

    def step(self, env_state: Obs, action: Int[Array, ""], key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """Reward by action, the end."""
        reward = jnp.where(action == 1, jnp.float32(1.0), jnp.float32(-1.0))
        return env_state, _end(env_state, reward)

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V* = 1: always action 1."""
        return np.ones_like(_feature(obs))


@dataclasses.dataclass(frozen=True)
class Match:
    """One step, reward 1 where the action is 1 exactly if obs = 1, else 0: V* = 1.

    Tests that a policy sees observations, and that actions are paired with the right ones.
    """

    id: ClassVar[str] = _name("Match")
    spec: ClassVar[Spec] = Spec(_UNIT, _TWO)

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """-1 or 1."""
        obs = _sign(key)
        return obs, obs

    def step(self, env_state: Obs, action: Int[Array, ""], key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """Reward by match, the end."""
        matches = (action == 1) == (env_state[0] > 0.0)
        return env_state, _end(env_state, matches.astype(jnp.float32))

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V* = 1: action 1 where obs is 1, action 0 where it is -1."""
        return np.ones_like(_feature(obs))


@dataclasses.dataclass(frozen=True)
class TimeLimitLoop:
    """Reward 1 for ever in one state, cut every `limit` steps: V = 1 / (1 - gamma).

    Taking the cut for a termination gives less: averaged over an episode,
    (1 - gamma (1 - gamma^limit) / (limit (1 - gamma))) / (1 - gamma).
    """

    limit: int = 5
    continuous: bool = False

    @property
    def id(self) -> str:
        return _name("TimeLimitLoop", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(_UNIT, _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], Obs]:
        """The only observation is 0; the state counts steps."""
        return jnp.int32(0), jnp.zeros(1, jnp.float32)

    def step(
        self, env_state: Int[Array, ""], action: Array, key: PRNGKeyArray
    ) -> tuple[Int[Array, ""], Transition]:
        """Reward 1, nothing changes."""
        steps = env_state + jnp.int32(1)
        obs = jnp.zeros(1, jnp.float32)
        return steps, Transition(obs, jnp.float32(1.0), _flag(False), steps >= self.limit)

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V = 1 / (1 - gamma)."""
        return np.full_like(_feature(obs), 1.0 / (1.0 - gamma))


class EndingsState(NamedTuple):
    """`place` is 0, 1, 2 on the road and 3, 4 on the ring."""

    place: Int[Array, ""]
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Endings:
    """The conformance environment: terminations, truncations and both at once, told apart by values.

    An episode begins in one of five places, drawn evenly; actions are ignored; it is cut after 3 steps.

        road   0 -> 1 -> 2 -> terminates, reward 1     V(0), V(1), V(2) = gamma^2, gamma, 1
        ring   3 <-> 4, reward 1 on leaving 3          V(3), V(4) = 1 / (1 - gamma^2), gamma / (1 - gamma^2)

    Ring episodes are truncated. Road episodes terminate; those that began at 0 do so in the third
    step, with `truncated` set as well (termination wins). The terminal observation is that of place 3,
    the most valuable: bootstrapping after a termination shows in V(2). Bootstrapping from the next
    episode's first observation, or not at all, at a truncation shows in V(3) and V(4).
    The observation is the place, one-hot.
    """

    continuous: bool = False
    limit: ClassVar[int] = 3

    @property
    def id(self) -> str:
        return _name("Endings", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(Space("box", (5,), low=0.0, high=1.0), _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[EndingsState, Float[Array, "5"]]:
        """Begin in any place."""
        place = jax.random.randint(key, (), 0, 5, jnp.int32)
        return EndingsState(place, jnp.int32(0)), _one_hot(place)

    def step(
        self, env_state: EndingsState, action: Array, key: PRNGKeyArray
    ) -> tuple[EndingsState, Transition]:
        """Move on along the road or round the ring."""
        following = jnp.array([1, 2, 3, 4, 3], jnp.int32)
        rewards = jnp.array([0, 0, 1, 1, 0], jnp.float32)
        state = EndingsState(following[env_state.place], env_state.steps + jnp.int32(1))
        transition = Transition(
            _one_hot(state.place), rewards[env_state.place], env_state.place == 2, state.steps >= self.limit
        )
        return state, transition

    def value(self, obs: Shaped[np.ndarray | Array, "... 5"], gamma: float) -> Values:
        """The table above."""
        ring = 1.0 / (1.0 - gamma**2)
        table = np.array([gamma**2, gamma, 1.0, ring, gamma * ring])
        return np.asarray(np.asarray(obs, np.float64) @ table)


def _one_hot(place: Int[Array, ""]) -> Float[Array, "5"]:
    return jax.nn.one_hot(place, 5, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class ContinuousTarget:
    """One step, reward -(action - target(obs))^2 with a Box action in [low, high]: V* = 0.

    obs is uniform in [-1, 1] and target(obs) = centre + 0.75 half-width obs, so that it lies within
    the bounds: 1 + 3 obs by default. Tests that actions reach bounds other than ±1.
    """

    low: float = -3.0
    high: float = 5.0

    id: ClassVar[str] = _name("ContinuousTarget")

    @property
    def spec(self) -> Spec:
        return Spec(_UNIT, Space("box", (1,), low=self.low, high=self.high))

    def reset(self, key: PRNGKeyArray) -> tuple[Obs, Obs]:
        """Anything in [-1, 1]."""
        obs = jax.random.uniform(key, (1,), jnp.float32, -1.0, 1.0)
        return obs, obs

    def step(self, env_state: Obs, action: Float[Array, "1"], key: PRNGKeyArray) -> tuple[Obs, Transition]:
        """Reward by distance, the end."""
        return env_state, _end(env_state, -jnp.square(action[0] - self.target(env_state)[0]))

    def target(self, obs: Shaped[np.ndarray | Array, "..."]) -> Shaped[np.ndarray | Array, "..."]:
        """The best action, of the shape of `obs`."""
        centre, half_width = (self.low + self.high) / 2, (self.high - self.low) / 2
        return centre + 0.75 * half_width * obs

    def value(self, obs: Shaped[np.ndarray | Array, "... 1"], gamma: float) -> Values:
        """V* = 0: the action is the target."""
        return np.zeros_like(_feature(obs))


class RecallState(NamedTuple):
    """What was shown, and the steps since."""

    cue: Float[Array, ""]
    steps: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Recall:
    """A cue of -1 or 1 is shown in the first step alone; `delay` steps later the reward is cue times action: V* = 1.

    Tests memory: the observation of the step that counts is the same whatever the cue, so without a memory the action
    does not depend on it, and the expected reward of every policy is E[cue] E[action] = 0. Observations are
    `(cue, 0)`, then `(0, t / delay)`; an episode lasts `delay + 1` steps. `discrete`: actions 0 and 1 count as -1 and 1.
    """

    delay: int = 3
    discrete: bool = False

    @property
    def id(self) -> str:
        return _name("RecallDiscrete" if self.discrete else "Recall")

    @property
    def spec(self) -> Spec:
        return Spec(Space("box", (2,), low=-1.0, high=1.0), _TWO if self.discrete else _UNIT)

    def reset(self, key: PRNGKeyArray) -> tuple[RecallState, Float[Array, "2"]]:
        """Show -1 or 1."""
        cue = _sign(key)[0]
        return RecallState(cue, jnp.int32(0)), jnp.stack([cue, jnp.float32(0.0)])

    def step(
        self, env_state: RecallState, action: Float[Array, "1"] | Int[Array, ""], key: PRNGKeyArray
    ) -> tuple[RecallState, Transition]:
        """Reward and end after `delay` steps; before, actions do nothing."""
        state = env_state._replace(steps=env_state.steps + jnp.int32(1))
        obs = jnp.stack([jnp.float32(0.0), jnp.minimum(state.steps, self.delay).astype(jnp.float32) / self.delay])
        last = env_state.steps >= self.delay
        said = 2.0 * action.astype(jnp.float32) - 1.0 if self.discrete else action[0]
        reward = jnp.where(last, env_state.cue * said, jnp.float32(0.0))
        return state, Transition(obs, reward, last, _flag(False))

    def value(self, obs: Shaped[np.ndarray | Array, "... 2"], gamma: float) -> Values:
        """V* = gamma^(steps left), for a policy that remembers."""
        steps = np.round(np.asarray(obs, np.float64)[..., 1] * self.delay)
        return np.asarray(gamma ** (self.delay - steps))


@dataclasses.dataclass(frozen=True)
class Picture:
    """One step; the action has to say on which half of an 8-bit picture a bright column stands: V* = 1.

    Reward 1 for action 1 exactly where it stands on the right, else 0; with a Box action in [-1, 1] it is
    1 - (action - target)^2, target 0.5 on the right and -0.5 on the left. All that is known is in the picture
    `[36, 36, 1]`, the smallest that DQN's CNN takes. Tests that policies see pictures.
    """

    continuous: bool = False
    side: ClassVar[int] = 36

    @property
    def id(self) -> str:
        return _name("Picture", self.continuous)

    @property
    def spec(self) -> Spec:
        return Spec(Space("box", (self.side, self.side, 1), "uint8", 0.0, 255.0), _ignored(self.continuous))

    def reset(self, key: PRNGKeyArray) -> tuple[Int[Array, ""], UInt8[Array, "H W 1"]]:
        """The column stands anywhere."""
        column = jax.random.randint(key, (), 0, self.side, jnp.int32)
        return column, self._drawn(column)

    def step(self, env_state: Int[Array, ""], action: Array, key: PRNGKeyArray) -> tuple[Int[Array, ""], Transition]:
        """Reward by side, the end."""
        right = env_state >= self.side // 2
        if self.continuous:
            reward = 1.0 - jnp.square(action[0] - jnp.where(right, 0.5, -0.5).astype(jnp.float32))
        else:
            reward = ((action == 1) == right).astype(jnp.float32)
        return env_state, Transition(self._drawn(env_state), reward, _flag(True), _flag(False))

    def _drawn(self, column: Int[Array, ""]) -> UInt8[Array, "H W 1"]:
        bright = (jnp.arange(self.side, dtype=jnp.int32) == column).astype(jnp.uint8) * jnp.uint8(255)
        return jnp.broadcast_to(bright[None, :, None], (self.side, self.side, 1))

    def value(self, obs: Shaped[np.ndarray | Array, "... H W 1"], gamma: float) -> Values:
        """V* = 1: the column's side is seen."""
        return np.ones(np.shape(obs)[:-3])
