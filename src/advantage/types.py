"""The vocabulary every room shares: spaces, what a policy sees, one time step, one chunk of experience.

Axes are always in the order `[S, T, N, ...]`: S seeds, T time steps, N parallel environments; B is a
minibatch. Everything here is either hashable (`Space`, `Spec`: usable as a static argument of `jax.jit`)
or a tuple of arrays (`Observed`, `TimeStep`, `Chunk`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

import advantage.platform  # noqa: F401  (JAX has no backend yet: nothing above makes one)

Bound = float | bytes
"""One number where a bound is the same for every element, else the raw `float32`/integer bytes."""


@dataclasses.dataclass(frozen=True)
class Space:
    """One observation or action space as a frozen, hashable value.

    `kind` is one of `box`, `discrete`, `multi_discrete`, `multi_binary`, `dict`, `tuple`.
    `n` holds the number of choices (one entry for `discrete`, one per component for `multi_discrete`),
    `start` the environment's smallest value of each, `parts` the named members of `dict` and `tuple`.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    low: Bound = 0.0
    high: Bound = 0.0
    n: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    parts: tuple[tuple[str, "Space"], ...] = ()

    @staticmethod
    def from_gymnasium(space: gymnasium.Space) -> Space:
        """Describe a Gymnasium space.

        Raises:
            TypeError: the space is of a kind that has no fixed shape (Text, Graph, Sequence) or is
                not a Gymnasium space.
        """
        spaces = gymnasium.spaces
        if isinstance(space, spaces.Box):
            dtype = canonical_dtype(space.dtype)
            low, high = _bound(space.low, dtype), _bound(space.high, dtype)
            return Space("box", tuple(space.shape), dtype, low, high)
        if isinstance(space, spaces.Discrete):
            return Space("discrete", (), "int32", n=(int(space.n),), start=(int(space.start),))
        if isinstance(space, spaces.MultiDiscrete):
            n, start = np.ravel(space.nvec), np.ravel(space.start)
            return Space("multi_discrete", tuple(space.shape), "int32", n=_ints(n), start=_ints(start))
        if isinstance(space, spaces.MultiBinary):
            return Space("multi_binary", tuple(space.shape), "int8")
        if isinstance(space, spaces.Dict):
            parts = tuple((name, Space.from_gymnasium(s)) for name, s in sorted(space.spaces.items()))
            return Space("dict", parts=parts)
        if isinstance(space, spaces.Tuple):
            parts = tuple((str(i), Space.from_gymnasium(s)) for i, s in enumerate(space.spaces))
            return Space("tuple", parts=parts)
        raise TypeError(
            f"space {space!r} is not supported: use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
            " (a gymnasium.ObservationWrapper can turn it into one of these)"
        )

    def to_gymnasium(self) -> gymnasium.Space:
        """The Gymnasium space this describes (dtypes as JAX holds them: `float32`, `int32`)."""
        spaces = gymnasium.spaces
        if self.kind == "box":
            low, high = self.bounds()
            return spaces.Box(low, high, self.shape, np.dtype(self.dtype).type)
        if self.kind == "discrete":
            return spaces.Discrete(self.n[0], start=self.start[0])
        if self.kind == "multi_discrete":
            return spaces.MultiDiscrete(
                np.reshape(self.n, self.shape), start=np.reshape(self.start, self.shape)
            )
        if self.kind == "multi_binary":
            return spaces.MultiBinary(self.shape)
        if self.kind == "dict":
            return spaces.Dict({name: part.to_gymnasium() for name, part in self.parts})
        return spaces.Tuple([part.to_gymnasium() for _, part in self.parts])

    @functools.cache  # noqa: B019  (a handful of spaces, and the driver asks at every step)
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """`(low, high)` of a box, as read-only arrays of its shape and dtype."""
        return _unbound(self.low, self.shape, self.dtype), _unbound(self.high, self.shape, self.dtype)

    @functools.cache  # noqa: B019  (as above)
    def stretch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(low, high, half the width)` of a box, in its dtype."""
        low, high = self.bounds()
        return low, high, (0.5 * high - 0.5 * low).astype(low.dtype)

    def zeros(self, leading: tuple[int, ...] = ()) -> PyTree[np.ndarray]:
        """NumPy zeros of this space's structure with `leading` axes in front."""
        if self.kind == "dict":
            return {name: part.zeros(leading) for name, part in self.parts}
        if self.kind == "tuple":
            return tuple(part.zeros(leading) for _, part in self.parts)
        return np.zeros(leading + self.shape, self.dtype)

    def is_image(self) -> bool:
        """Whether this is an 8-bit picture `[height, width, channels]` or `[channels, height, width]`, of 0 to 255."""
        eight_bits = self.dtype == "uint8" and (self.low, self.high) == (0.0, 255.0)
        return self.kind == "box" and eight_bits and len(self.shape) == 3


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an algorithm needs to know of an environment: both spaces, hashable and without an RNG."""

    observation: Space
    action: Space
    masked: bool = False  # whether it says which actions are legal
    stacked: bool = False  # whether observations are the last frames, of which a step adds one: `obs[1:]` is the next `obs[:-1]`

    @property
    def choices(self) -> int:
        """Entries of a mask of legal actions; 0: there are none."""
        return sum(self.action.n) if self.masked else 0

    @staticmethod
    def from_gymnasium(observation_space: gymnasium.Space, action_space: gymnasium.Space) -> Spec:
        """Describe a pair of Gymnasium spaces; raises `TypeError` for unsupported kinds."""
        return Spec(Space.from_gymnasium(observation_space), Space.from_gymnasium(_inwards(action_space)))

    def to_gymnasium(self) -> tuple[gymnasium.Space, gymnasium.Space]:
        """`(observation_space, action_space)`."""
        return self.observation.to_gymnasium(), self.action.to_gymnasium()


class Observed(NamedTuple):
    """What a policy sees of N environments."""

    obs: PyTree  # [N, ...]
    is_first: Array  # [N] bool: an episode has just begun
    action_mask: Array | None = None  # [N, actions] bool: True where an action is legal


class TimeStep(NamedTuple):
    """What N environments answer to one vector of actions.

    `observed` is what the policy sees next: after an episode's end, the first observation of the next
    one. `final_obs` is the observation that followed the action; it differs from `observed.obs` only
    where an episode ended. `valid` is False for the dummy step of next-step autoreset. Where `terminated` is true
    and the next `is_first` is not, what is learned of ends and nothing was reset: a life was lost in a game.
    """

    observed: Observed
    reward: Array  # [N]
    terminated: Array  # [N] bool: the task ended; nothing follows
    truncated: Array  # [N] bool: the episode was cut; the final state still has a value
    final_obs: PyTree  # [N, ...]
    valid: Array | None = None  # [N] bool; None: all are
    final_mask: Array | None = None  # [N, actions] bool: what was legal in `final_obs`; read where an episode was truncated
    played: tuple[Array, Array] | None = None  # ([N] reward, [N] whether an episode ended), where others are reported

    def reported(self, valid: Any, done: Any) -> tuple[Any, Any, Any]:
        """`(reward, valid, done)` of the episodes that are reported."""
        reward, done = self.played or (self.reward, done)
        return reward, valid, done


class Chunk(NamedTuple):
    """T time steps of N environments, as the algorithms consume them.

    Observations are stored raw. `action` is the policy's own action, before `to_env`. `final_obs` is
    read where an episode ended; it is None in the *next-step form* used for images, in which an invalid
    dummy row `t + 1` holds the final frame. Read what came next through `successor` alone.
    """

    obs: PyTree  # [T, N, ...]
    is_first: Array  # [T, N] bool
    action_mask: Array | None  # [T, N, actions] bool
    action: Array  # [T, N, ...]
    reward: Array  # [T, N]
    terminated: Array  # [T, N] bool
    truncated: Array  # [T, N] bool
    valid: Array  # [T, N] bool
    final_obs: PyTree  # [T, N, ...] or None
    last_obs: PyTree  # [N, ...]: what the policy saw after the last row
    carry: PyTree = ()  # the policy's carry before the first row
    behaviour_log_prob: Array | None = None  # [T, N]
    final_mask: Array | None = None  # [T, N, actions] bool: what was legal in `final_obs`, read where that is
    last_mask: Array | None = None  # [N, actions] bool: what was legal in `last_obs`


Metrics = dict[str, Array]
"""Scalars under SB3's log keys."""

NONFINITE = "train/nonfinite"
"""The metric that counts gradient steps left out because a gradient was not finite."""


class Algorithm(Protocol):
    """What a driver calls. An algorithm is a module of pure functions (see `docs/design.md`).

    On-policy files define `update`; off-policy files define `observe` and `learn`, and hold
    `n_updates` and `key` in their State: `memory.replayed` composes their `update`. `learn` answers how wrong it was about
    each sample, before its step and without weights: what prioritised replay draws by.
    """

    Config: type
    init: Callable  # (config, spec, key) -> State
    initial_carry: Callable  # (config, spec, num_envs) -> carry
    act: Callable  # (config, actor, carry, observed, key, explore) -> (action, carry)
    actor: Callable  # (config, state) -> what acting needs
    schedules: Callable  # (config) -> {field: function of the remaining progress}
    to_env: Callable  # (action_space, action) -> what the environment receives


class Agent(NamedTuple):
    """An algorithm with the update and the memory that drivers give it; hashable."""

    algorithm: Any  # a module that follows `Algorithm`
    update: Callable  # (config, state, memory, chunk) -> (state, memory, metrics)
    init_memory: Callable  # (config, spec, num_envs) -> memory
    drawn: Callable | None = None  # (config, state, memory) -> what the next `learn` gets; None: on-policy
    push: Callable | None = None  # (memory, chunk) -> memory: remember without learning; None: not possible


def _shift(obs: PyTree, last_obs: PyTree) -> PyTree:
    """`obs[t + 1]`, with `last_obs` after the last row."""
    return jax.tree.map(lambda x, last: jnp.concatenate([x[1:], last[None]]), obs, last_obs)


def successor(chunk: Chunk) -> PyTree:
    """The observation that followed each action `[T, N, ...]`, also where an episode ended."""
    following = _shift(chunk.obs, chunk.last_obs)
    if chunk.final_obs is None:
        return following
    done = chunk.terminated | chunk.truncated
    return jax.tree.map(lambda f, n: jnp.where(_like(done, n), f, n), chunk.final_obs, following)


def legal_now(chunk: Chunk) -> Bool[Array, "T N A"] | None:
    """Which actions were legal in `obs`; None: nobody said."""
    return None if chunk.action_mask is None else _some(chunk.action_mask)


def legal_next(chunk: Chunk) -> Bool[Array, "T N A"] | None:
    """Which actions are legal in what followed each action (see `successor`); None: nobody said."""
    if chunk.action_mask is None:
        return None
    following = _shift(chunk.action_mask, chunk.last_mask)
    if chunk.final_mask is not None:
        following = jnp.where((chunk.terminated | chunk.truncated)[..., None], chunk.final_mask, following)
    return _some(following)


def _some(mask: Bool[Array, "*batch A"]) -> Bool[Array, "*batch A"]:
    # Where nothing is legal nothing is chosen, but a maximum over nothing is no number.
    return mask | ~jnp.any(mask, axis=-1, keepdims=True)


def successor_values(
    value_fn: Callable[[PyTree], Float[Array, "..."]], chunk: Chunk
) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
    """`(V(s_t), V(s_{t+1}))`, zero after a termination: what every return estimator bootstraps from.

    `value_fn` maps observations `[rows, N, ...]` to values `[rows, N]`. Final observations are valued
    only when some episode was truncated, which most chunks do not contain.
    """
    rows = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), chunk.obs, chunk.last_obs)
    values = value_fn(rows)
    following = values[1:]
    if chunk.final_obs is not None:
        truncated = chunk.truncated & chunk.valid & ~chunk.terminated
        final = jax.lax.cond(
            jnp.any(truncated), lambda: value_fn(chunk.final_obs), lambda: jnp.zeros_like(following)
        )
        following = jnp.where(truncated, final, following)
    return values[:-1], jnp.where(chunk.terminated, 0.0, following)


def sanitise(chunk: Chunk) -> Chunk:
    """Zero everything that invalid rows hold, so that no garbage (NaN included) reaches an equation.

    A mask in the loss alone is not enough: `0 * NaN` is NaN, in gradients too. The observation of an
    invalid row stays where the row before it is valid, since it is that row's successor. Actions keep
    a legal value, zero.
    """
    valid = chunk.valid
    ended = chunk.terminated | chunk.truncated
    # The first row of padding and the dummy row hold the successor of the valid row before them, unless
    # that is a final observation of its own.
    followed = valid if chunk.final_obs is None else valid & ~ended
    wanted = valid | jnp.concatenate([jnp.zeros_like(valid[:1]), followed[:-1]])

    def keep(mask: Array, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.where(_like(mask, x), x, jnp.zeros_like(x)), tree)

    return chunk._replace(
        obs=keep(wanted, chunk.obs),
        is_first=chunk.is_first & valid,
        # An invalid row may pick any action: an empty mask would leave its distribution undefined.
        action_mask=None if chunk.action_mask is None else chunk.action_mask | ~valid[..., None],
        action=keep(valid, chunk.action),
        reward=keep(valid, chunk.reward),
        terminated=chunk.terminated & valid,
        truncated=chunk.truncated & valid,
        final_obs=keep(valid & ended, chunk.final_obs),
        # After an invalid last row that nothing precedes, the successor is nobody's.
        last_obs=keep(valid[-1], chunk.last_obs),
        behaviour_log_prob=keep(valid, chunk.behaviour_log_prob),
    )


def to_env(space: Space, action: Array | np.ndarray) -> Array | np.ndarray:
    """What the environment receives for a policy's action: Box clipped to its bounds, integers shifted.

    Works on NumPy and on JAX arrays `[..., *space.shape]`.
    """
    if space.kind == "discrete":
        return action + space.start[0] if space.start[0] else action
    # Written out since ranks are never promoted silently.
    shape = (1,) * (action.ndim - len(space.shape)) + space.shape
    if space.kind == "box":
        low, high = space.bounds()
        return action.clip(low.reshape(shape), high.reshape(shape))
    if space.kind == "multi_discrete" and any(space.start):
        return action + np.reshape(np.asarray(space.start, np.int32), shape)
    return action


def rescale_to_env(space: Space, action: Array | np.ndarray) -> Array | np.ndarray:
    """What the environment receives for a policy's action within [-1, 1]: stretched to the bounds of the Box.

    Works on NumPy and on JAX arrays `[..., *space.shape]`.
    """
    shape = (1,) * (action.ndim - len(space.shape)) + space.shape
    low, high, half = space.stretch()
    # Clipped last: the product may be rounded to just outside.
    stretched = low.reshape(shape) + (action + 1.0) * half.reshape(shape)
    return stretched.clip(low.reshape(shape), high.reshape(shape))


def require_bounds(algorithm: str, space: Space) -> None:
    """Raise `ValueError` unless a Box has finite bounds that differ: what `rescale_to_env` stretches to."""
    low, high = space.bounds()
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"{algorithm} stretches its actions to the bounds of the action space, and {space.to_gymnasium()} has"
            " infinite ones: give the Box finite bounds, also by gymnasium.wrappers.TransformAction with such an action space"
        )
    if (low >= high).any():
        raise ValueError(
            f"{algorithm} cannot choose where the bounds of the action space {space.to_gymnasium()} leave no width"
            f" (component {int(np.argmax((low >= high).ravel()))}): leave that component out"
        )


def require(config: Any, low: int | float, high: int | float, *names: str) -> None:
    """Raise `ValueError` unless these fields of a config lie within `low..high`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
            raise ValueError(f"{name}={value!r} is out of range: give a number {bounds}")


def canonical_dtype(dtype: Any) -> str:
    """The dtype JAX holds without 64-bit mode: `float64 -> float32`, `int64 -> int32`."""
    return jax.dtypes.canonicalize_dtype(np.dtype(dtype)).name


def _like(mask: Bool[Array, "..."], x: Array) -> Array:
    """Append axes to `mask` until it has the rank of `x`."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))


def _inwards(space: gymnasium.Space) -> gymnasium.Space:
    """A Box of float64 with float32 bounds inside its own: no action clipped to them lies outside."""
    if not isinstance(space, gymnasium.spaces.Box) or space.dtype != np.float64:
        return space
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
    high = np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)
    return gymnasium.spaces.Box(low, high, space.shape, np.float32)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _bound(values: np.ndarray, dtype: str) -> Bound:
    values = values.astype(dtype)
    if values.size and (values == values.flat[0]).all():
        return float(values.flat[0])
    return values.tobytes()


def _unbound(bound: Bound, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    flat = np.frombuffer(bound, dtype) if isinstance(bound, bytes) else np.asarray(bound, dtype)
    return np.broadcast_to(flat.reshape(shape) if flat.ndim else flat, shape)
