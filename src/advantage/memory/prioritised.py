"""Prioritised replay: what the agent was most wrong about is drawn most often (Schaul et al., 2016, section 3.3).

https://arxiv.org/abs/1511.05952, the proportional variant. Rows are those of `uniform.Replay`. Beside them is a sum
tree: a leaf for each row, and above every two nodes their sum. Sums are always made from both children, never by
adding a difference, so that rounding does not pile up in the root.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from advantage.equations.distributions import Key
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Linear
from advantage.memory import frames, uniform
from advantage.types import Chunk, Spec, require

LEAST, MOST = np.float32(1e-30), np.float32(1e25)
"""Bounds of a share: none is 0, and the sum of all is finite."""


@dataclasses.dataclass(frozen=True)
class PrioritizedReplayBuffer:
    """How rows are prioritised: `DQN(..., replay_buffer_class=PrioritizedReplayBuffer, replay_buffer_kwargs={...})`.

    Args:
        alpha: how much priorities count, between 0 (every row equally likely) and 1 (in proportion to its error).
        beta: how much of the bias that this brings is taken back by importance weights at the start of training,
            between 0 (nothing) and 1 (all).
        final_beta: the same at the end; between them it goes in a straight line.
        eps: added to every error, so that a row without one can be drawn again; in the unit of the values.

    Raises:
        ValueError: a setting that cannot work.
    """

    alpha: float | int | np.number = 0.6
    beta: float | int | np.number = 0.4
    final_beta: float | int | np.number = 1.0
    eps: float | int | np.number = 1e-6

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "final_beta", "eps"):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, float | int | np.number):
                raise ValueError(f"{name}={given!r} is not a number")
            object.__setattr__(self, name, float(given))
        require(self, 0, 1, "alpha", "beta", "final_beta")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"eps={self.eps!r} has to be positive: a row of priority 0 would never be drawn again")

    def schedule(self) -> Linear:
        """Beta over training."""
        return Linear(self.beta, self.final_beta)


class Priorities(NamedTuple):
    """What gradient steps change. A row's share is its priority to the power of alpha."""

    tree: Float[Array, " nodes"]  # node i is the sum of 2 i and 2 i + 1, node 1 that of all; the second half: the shares
    greatest: Float[Array, ""]  # share so far: what new rows get


class Replay(NamedTuple):
    """Rows and their priorities."""

    rows: uniform.Replay
    priorities: Priorities


def init(spec: Spec, num_envs: int, capacity: int) -> Replay:
    """An empty memory of `capacity // num_envs` rows for each of `num_envs` environments."""
    rows = uniform.init(spec, num_envs, capacity)
    leaves = max(2, 1 << (rows.reward.shape[0] - 1).bit_length())
    return Replay(rows, Priorities(jnp.zeros(2 * leaves, jnp.float32), jnp.float32(1.0)))


def push(memory: Replay, chunk: Chunk) -> Replay:
    """Append a chunk's valid rows with the greatest priority so far: each is to be seen once (algorithm 1, line 6)."""
    row = uniform.places(memory.rows, chunk.valid).reshape(-1)
    kept, greatest = row < memory.rows.reward.shape[0], memory.priorities.greatest
    tree = with_shares(memory.priorities.tree, row, jnp.broadcast_to(greatest, row.shape), kept)
    rows = uniform.push(memory.rows, chunk)
    if isinstance(rows.obs, frames.Frames):  # rows may be forgotten before their place is taken
        gone, is_gone = frames.before_oldest(rows, frames.most_forgotten(rows, len(chunk.valid)))
        tree = with_shares(tree, gone, jnp.zeros(gone.shape), is_gone)
    return Replay(rows, Priorities(tree, greatest))


def sample(
    memory: Replay, key: Key, batch_size: int, n_steps: int, gamma: Scalar, beta: Scalar
) -> tuple[uniform.Batch, Int[Array, " B"]]:
    """`(B transitions over up to n_steps steps, their rows)`, each row as likely as its share of the sum.

    Weights are `(N P(i))^-beta` over the greatest of the batch (section 3.4), in which N and the sum cancel out.
    """
    tree = memory.priorities.tree
    row = drawn_rows(tree, key, batch_size)
    log_share = jnp.log(jnp.maximum(tree[tree.shape[0] // 2 + row], LEAST))
    weight = jnp.exp(beta * (jnp.min(log_share) - log_share))
    capacity = memory.rows.reward.shape[0] // memory.rows.head.shape[0]
    # Rows are never negative: plain division, which takes half the time of Python's.
    env = jax.lax.div(row, jnp.int32(capacity))
    age = memory.rows.head[env] - 1 - (row - env * capacity)
    age = jnp.where(age < 0, age + capacity, age)
    return uniform.transitions(memory.rows, env, age, n_steps, gamma)._replace(weight=weight), row


def reprioritise(
    priorities: Priorities,
    row: Int[Array, " B"],
    error: Float[Array, " B"],
    kept: Bool[Array, ""],
    alpha: float,
    eps: float,
) -> Priorities:
    """Rows get the shares `(error + eps)^alpha` (section 3.3); none where not `kept`, nor for an error that is not finite."""
    share = jnp.clip(jnp.power(error + eps, alpha), LEAST, MOST)
    wanted = kept & jnp.isfinite(error)
    greatest = jnp.maximum(priorities.greatest, jnp.max(jnp.where(wanted, share, 0.0)))
    return Priorities(with_shares(priorities.tree, row, share, wanted), greatest)


def with_shares(
    tree: Float[Array, " nodes"], row: Int[Array, " R"], share: Float[Array, " R"], kept: Bool[Array, " R"]
) -> Float[Array, " nodes"]:
    """The tree in which the rows that are `kept` have these shares; of a row given twice the greater counts."""
    nodes = tree.shape[0]
    node = nodes // 2 + row
    at = jnp.where(kept, node, nodes)  # out of range: dropped
    # First cleared, then the greatest: in whatever order a row's two shares are written.
    tree = tree.at[at].set(0.0, mode="drop").at[at].max(share, mode="drop")

    def up(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        tree, node = carry[0], carry[1] // 2
        at = jnp.where(kept, node, nodes)
        return tree.at[at].set(tree[2 * node] + tree[2 * node + 1], mode="drop"), node

    # A loop: written out, the levels compile for ten seconds and are no faster.
    return jax.lax.fori_loop(0, _depth(tree), up, (tree, node))[0]


def drawn_rows(tree: Float[Array, " nodes"], key: Key, batch_size: int) -> Int[Array, " B"]:
    """B rows, one from each of as many equal parts of the sum (appendix B.2.1).

    A place in the sum is a part's beginning and an offset, kept apart: together they have more digits than a float.
    """
    part = tree[1] / batch_size
    base = part * jnp.arange(batch_size, dtype=jnp.float32)
    offset = part * jax.random.uniform(key, (batch_size,))

    def down(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        node, base = carry
        rest = base - tree[2 * node]
        # Never to where nothing is, however sums were rounded.
        right = (rest + offset >= 0) & (tree[2 * node + 1] > 0)
        return 2 * node + right.astype(jnp.int32), jnp.where(right, rest, base)

    node, _ = jax.lax.fori_loop(0, _depth(tree), down, (jnp.ones(batch_size, jnp.int32), base))
    return node - tree.shape[0] // 2


def _depth(tree: Array) -> int:
    """Levels above the leaves."""
    return tree.shape[0].bit_length() - 2
