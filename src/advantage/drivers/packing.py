"""Small arrays packed into few, for the way between Python and a compiled program.

Each array that crosses costs 2.6 us (a NumPy array 4 us), whatever its size, and an agent with its optimiser
and memory has forty: more than DQN's whole gradient step. Large arrays travel alone: packed they would be copied.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from advantage.types import Chunk, Metrics, Spec

SMALL = 4096
"""Bytes up to which an array is packed: copying more would cost more than it saves."""


class Place(NamedTuple):
    """Where one leaf is: in `arrays[array]`, whole or a part of it."""

    array: int
    shape: tuple[int, ...]
    offset: int | None  # None: the whole array


class Layout:
    """Where the leaves of a tree are in a tuple of arrays: small ones of one dtype behind each other in a vector."""

    def __init__(self, tree: PyTree):
        """Lay out a tree of arrays, or of anything with a shape and a dtype."""
        leaves, self.structure = jax.tree.flatten(tree)
        self.dtypes: list[np.dtype] = []
        self.sizes: list[tuple[int, ...]] = []
        self.places: list[Place] = []
        vectors: dict[np.dtype, int] = {}
        for leaf in leaves:
            shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
            small = math.prod(shape) * dtype.itemsize <= SMALL
            if not small or dtype not in vectors:
                if small:
                    vectors[dtype] = len(self.sizes)
                self.dtypes.append(dtype)
                self.sizes.append((0,) if small else shape)
            if small:
                array = vectors[dtype]
                (offset,) = self.sizes[array]
                self.sizes[array] = (offset + math.prod(shape),)
                self.places.append(Place(array, shape, offset))
            else:
                self.places.append(Place(len(self.sizes) - 1, shape, None))

    def zeros(self, leading: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """NumPy arrays to be filled through `unpack`, which gives views of them."""
        return tuple(np.zeros(leading + size, dtype) for size, dtype in zip(self.sizes, self.dtypes, strict=True))

    def leaf(self, arrays: Any, i: int) -> Any:
        """Leaf i of the tree, `[*leading, *shape]`; `arrays` may be a dict that holds its array alone."""
        array, shape, offset = self.places[i]
        if offset is None:
            return arrays[array]
        part = arrays[array][..., offset : offset + math.prod(shape)]
        return part.reshape(part.shape[:-1] + shape)

    def unpack(self, arrays: Any) -> PyTree:
        """The tree."""
        return jax.tree.unflatten(self.structure, [self.leaf(arrays, i) for i in range(len(self.places))])

    def pack(self, tree: PyTree, xp: Any = jnp) -> tuple:
        """The arrays of a tree with any leading axes, made by `jax.numpy` or by `numpy`."""
        parts: list[list] = [[] for _ in self.sizes]
        for leaf, (array, shape, offset) in zip(jax.tree.leaves(tree), self.places, strict=True):
            if offset is not None:
                leading = leaf.shape[: leaf.ndim - len(shape)]
                leaf = xp.asarray(leaf).reshape(*leading, -1)
            parts[array].append(leaf)
        return tuple(part[0] if len(part) == 1 else xp.concatenate(part, axis=-1) for part in parts)


class ActorParts:
    """Where an actor's leaves are: most are the state's, which a program would only copy to give them again."""

    def __init__(self, algorithm: Any, config: Any, state: PyTree, layout: Layout):
        self.layout = layout  # its tree begins with the state
        self.places: list[int | None] = []  # among the state's leaves; None: the actor's own

        def trace(state: PyTree) -> PyTree:
            actor = algorithm.actor(config, state)
            held = {id(leaf): place for place, leaf in enumerate(jax.tree.leaves(state))}
            self.places = [held.get(id(leaf)) for leaf in jax.tree.leaves(actor)]
            return actor

        self.structure = jax.tree.structure(jax.eval_shape(trace, state))
        held = [place for place in self.places if place is not None]
        self.arrays = tuple(sorted({layout.places[place].array for place in held}))

    def own(self, actor: PyTree) -> tuple:
        """The leaves that no array holds."""
        leaves = zip(jax.tree.leaves(actor), self.places, strict=True)
        return tuple(leaf for leaf, place in leaves if place is None)

    def held(self, arrays: tuple) -> tuple:
        """Those of the arrays that hold the others."""
        return tuple(arrays[i] for i in self.arrays)

    def join(self, held: tuple, own: tuple) -> PyTree:
        """The actor."""
        arrays, rest = dict(zip(self.arrays, held, strict=True)), iter(own)
        leaves = [next(rest) if place is None else self.layout.leaf(arrays, place) for place in self.places]
        return jax.tree.unflatten(self.structure, leaves)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Packed:
    """Arrays with their layout, which compiled programs take as a constant: one object for each layout."""

    arrays: tuple
    layout: Layout = dataclasses.field(metadata={"static": True})

    def unpack(self) -> PyTree:
        """The tree; views, of NumPy arrays."""
        return self.layout.unpack(self.arrays)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Table:
    """Metrics in one array."""

    names: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    values: Any  # [S, len(names)]

    @staticmethod
    def of(metrics: Metrics) -> "Table":
        """Pack metrics."""
        return Table(tuple(metrics), jnp.stack([x.astype(jnp.float32) for x in metrics.values()]))

    def read(self) -> dict[str, np.ndarray]:
        """Each metric `[S]`; waits until it is computed."""
        return dict(zip(self.names, np.array(self.values).T, strict=True))


class Rollout(NamedTuple):
    """A chunk as it is written and shipped; without the axis S where one seed learns from it."""

    obs: PyTree  # [S, T+1, N, ...]: the last is what the policy saw after the last row
    action_mask: np.ndarray | None  # [S, T, N, actions]
    action: np.ndarray  # [S, T, N, ...]
    reward: np.ndarray  # [S, T, N]
    flags: np.ndarray  # [S, 4, T, N] bool: is_first, terminated, truncated, valid
    final_obs: PyTree  # [S, T, N, ...]: as it was where no episode ended

    def chunk(self, carry: PyTree) -> Chunk:
        """The chunk of one seed (without the axis S)."""
        is_first, terminated, truncated, valid = self.flags
        return Chunk(
            obs=jax.tree.map(lambda x: x[:-1], self.obs),
            is_first=is_first,
            action_mask=self.action_mask,
            action=self.action,
            reward=self.reward,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            final_obs=self.final_obs,
            last_obs=jax.tree.map(lambda x: x[-1], self.obs),
            carry=carry,
        )


@functools.lru_cache(maxsize=64)
def rollout_layout(spec: Spec, length: int, num_envs: int, choices: int) -> Layout:
    """How the rollout of one seed is shipped; one object for each shape, since programs are compiled for it."""
    rows = (length, num_envs)
    return Layout(
        Rollout(
            obs=spec.observation.zeros((length + 1, num_envs)),
            action_mask=np.zeros((*rows, choices), bool) if choices else None,
            action=spec.action.zeros(rows),
            reward=np.zeros(rows, np.float32),
            flags=np.zeros((4, *rows), bool),
            final_obs=spec.observation.zeros(rows),
        )
    )
