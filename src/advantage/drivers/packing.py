"""Small arrays packed into few, for the way between Python and a compiled program.

Each array that crosses costs 2.6 us (a NumPy array 4 us), whatever its size, and an agent with its optimiser
and memory has forty: more than DQN's whole gradient step. Large arrays travel alone: packed they would be copied.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from advantage.types import Metrics

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
        """The arrays of a tree with any leading axes, made by `jax.numpy` or by `numpy`.

        Raises:
            ValueError: a leaf has another shape than was laid out.
        """
        parts: list[list] = [[] for _ in self.sizes]
        for leaf, (array, shape, offset) in zip(jax.tree.leaves(tree), self.places, strict=True):
            leading = leaf.shape[: leaf.ndim - len(shape)]
            if leaf.shape != (*leading, *shape):
                raise ValueError(f"an array has shape {leaf.shape}, expected {shape} behind any leading axes")
            if offset is not None:
                leaf = xp.asarray(leaf, self.dtypes[array]).reshape(*leading, -1)
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
        """Pack metrics; of one that is no scalar the mean."""
        return Table(tuple(metrics), jnp.stack([jnp.mean(jnp.asarray(x, jnp.float32)) for x in metrics.values()]))

    def read(self) -> dict[str, np.ndarray]:
        """Each metric `[S]`; waits until it is computed."""
        return dict(zip(self.names, np.array(self.values).T, strict=True))
