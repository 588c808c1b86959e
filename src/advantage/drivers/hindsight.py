"""Rows that hindsight adds to what was collected, as the host driver ships them.

They reach the memory by an ordinary `push` and are nobody's steps: nothing counts them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from advantage.drivers.host import Rollout, rollout_layout
from advantage.drivers.packing import Packed
from advantage.types import Spec

SHORTEST, LONGEST = 64, 1024
"""Rows shipped at once: powers of two between these, so that few programs are compiled."""


class FurtherRows:
    """What a `memory.goals.Hindsight` makes of chunks, packed."""

    def __init__(self, hindsight: Any):
        self.hindsight = hindsight

    def take(self, rollout: Rollout) -> list[Packed]:
        """What the memory takes besides a chunk `[S, T, N, ...]`.

        Raises:
            EnvironmentFailure: rewards could not be computed.
        """
        return packed_rows(self.hindsight.spec, self.hindsight.count.shape, self.hindsight.take(rollout))

    def kept(self) -> PyTree:
        """What a checkpoint keeps."""
        return self.hindsight.kept()

    @property
    def longest(self) -> int:
        """Steps of the longest running episode."""
        return int(self.hindsight.count.max())

    def like(self, longest: int) -> PyTree:
        """Arrays of the shapes that were kept when the longest running episode had so many steps."""
        return self.hindsight.like(longest)

    def put(self, kept: Mapping[str, Any]) -> None:
        """Go on from what was kept."""
        self.hindsight.put(kept)


def packed_rows(spec: Spec, shape: tuple[int, int], made: Sequence[tuple[int, int, Any]]) -> list[Packed]:
    """Transitions of single steps as rollouts; rows left over are invalid.

    Args:
        spec: of the environments.
        shape: seeds and environments `(S, N)`.
        made: `(seed index, environment, transitions)` of `memory.goals.Hindsight`.
    """
    places: dict[tuple[int, int], list] = {}
    for s, n, transitions in made:
        places.setdefault((s, n), []).append(transitions)
    rows = {place: jax.tree.map(lambda *x: np.concatenate(x), *parts) for place, parts in places.items()}
    most = max((len(x.reward) for x in rows.values()), default=0)
    rollouts, done = [], 0
    while done < most:
        length = min(max(SHORTEST, 1 << (most - done - 1).bit_length()), LONGEST)
        layout = rollout_layout(spec, length, shape[1])
        rollouts.append(Packed(layout.zeros(shape[:1]), layout))
        for place, x in rows.items():
            part = jax.tree.map(lambda leaf, done=done, length=length: leaf[done : done + length], x)
            _write(rollouts[-1].unpack(), *place, part)
        done += length
    return rollouts


def _write(arrays: Rollout, s: int, n: int, rows: Any) -> None:
    """Put transitions into the first rows of a seed's environment; `arrays` are views."""
    count = len(rows.reward)
    into = (arrays.obs, arrays.action_mask, arrays.action, arrays.reward, arrays.final_obs, arrays.final_mask)
    made = (rows.obs, rows.mask, rows.action, rows.reward, rows.next_obs, rows.next_mask)
    for x, new in zip(*map(jax.tree.leaves, (into, made)), strict=True):
        x[s, :count, n] = new
    # Each is an episode of its own: its successor is not the next row, and no return goes on to that.
    always = np.ones(count, bool)
    arrays.flags[s, :, :count, n] = np.stack([always, rows.terminated, ~rows.terminated, always])
