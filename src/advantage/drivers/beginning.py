"""Fresh agents and empty memories of every seed, in the arrays that a driver holds."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from advantage.drivers.common import compiled_quickly
from advantage.drivers.packing import Layout
from advantage.drivers import filed


def beginning(
    packed_init: Callable, layout: Layout, held: PyTree, seeds: int
) -> Callable[[np.ndarray, bool], tuple[tuple, PyTree]]:
    """`begin(keys [S, 2], whether observations go to a file) -> (arrays, carry)`, of `packed_init(key)` for each seed.

    `held` is what the layout lays out for one seed: arrays, or anything with a shape and a dtype.
    """
    # One seed after the other: decompositions side by side need threads to spare (see `platform`).
    in_memory = compiled_quickly(functools.partial(jax.lax.map, packed_init))
    apart = {place.array for place, may in zip(layout.places, filed.fileable(held, seeds), strict=True) if may}

    def others(key: Array) -> tuple[list, PyTree]:
        arrays, carry = packed_init(key)
        return [x for i, x in enumerate(arrays) if i not in apart], carry

    def begin(keys: np.ndarray, in_files: bool) -> tuple[tuple, PyTree]:
        if not in_files:
            return in_memory(keys)
        made, carry = compiled_quickly(functools.partial(jax.lax.map, others))(keys)
        rest = iter(made)
        arrays = (
            filed.zeros((len(keys), *size), dtype) if i in apart else next(rest)
            for i, (size, dtype) in enumerate(zip(layout.sizes, layout.dtypes, strict=True))
        )
        return tuple(arrays), carry

    return begin
