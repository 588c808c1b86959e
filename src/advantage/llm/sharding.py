"""Networks over many devices: one table of rules says along which axes of a mesh each weight is split.

A mesh has three axes. Over `data` and `fsdp` the rows of a batch are split; over `fsdp` also the weights, which are gathered where
a layer needs them (Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054); over `tensor` the heads of attention and the width
of the MLP (Shoeybi et al., 2019, https://arxiv.org/abs/1909.08053). The numbers are those of one device, but for rounding.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from jaxtyping import Array, PyTree

T = TypeVar("T")
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # what the rows of a batch are split over
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"\.(embedding|head)$", ("tensor", "fsdp")),
    (r"\.(query|key|value|gate|up)\.weight$", (None, "tensor", "fsdp")),
    (r"\.(query|key|value|gate|up)\.bias$", (None, "tensor")),
    (r"\.(query|key|value|gate|up)\.lora\.up$", (None, "tensor", None)),
    (r"\.(query|key|value|gate|up)\.lora\.down$", (None, None, "fsdp")),
    (r"\.(output|down)\.weight$", (None, "fsdp", "tensor")),
    (r"\.(output|down)\.lora\.up$", (None, "fsdp", None)),
    (r"\.(output|down)\.lora\.down$", (None, None, "tensor")),
)
"""`(end of a weight's path, the mesh's axis for each of its own)`, first match; what none matches is whole on every device.

Blocks are stacked, so that the first axis of theirs is the layer. The optimiser's moments have their weight's path.
"""


def mesh_of(sizes: Sequence[int]) -> Mesh | None:
    """A mesh over the first devices; None for a single one.

    Args:
        sizes: devices along `data`, `fsdp` and `tensor`.

    Raises:
        ValueError: there are fewer devices.
    """
    wanted, devices = math.prod(sizes), jax.devices()
    if wanted == 1:
        return None
    if wanted > len(devices):
        raise ValueError(f"mesh={tuple(sizes)} wants {wanted} devices, and there are {len(devices)}: choose sizes whose product is at most that")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:wanted])


def spec_of(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> Spec:
    """How a leaf is split; an axis that its devices do not divide stays whole."""
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            fits = [axis is not None and size % mesh.shape[axis] == 0 for axis, size in zip(axes, shape, strict=True)]
            return Spec(*(axis if fit else None for axis, fit in zip(axes, fits, strict=True)))
    return Spec()


def shardings(mesh: Mesh | AbstractMesh, tree: PyTree) -> PyTree[NamedSharding]:
    """Of every array, or shape, of a tree."""
    return jax.tree.map_with_path(lambda path, x: NamedSharding(mesh, spec_of(jax.tree_util.keystr(path), x.shape, mesh)), tree)


def placed(sizes: Sequence[int], tree: T) -> T:
    """The tree on the mesh's devices; as it is where there is no mesh."""
    mesh = mesh_of(sizes)
    return tree if mesh is None else jax.device_put(tree, shardings(mesh, tree))


@contextlib.contextmanager
def over(sizes: Sequence[int]) -> Iterator[None]:
    """What is compiled inside is for this mesh: `split`, `by_rules` and `gathered` have it."""
    mesh = mesh_of(sizes)
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh):
        yield


def split(x: Array, *axes: str | tuple[str, ...] | None) -> Array:
    """In a compiled program, `x` split along its first axes over these of the mesh, each where its devices divide it."""
    mesh = _around()
    if mesh is None:
        return x
    given = zip(axes, x.shape, strict=False)
    return jax.lax.with_sharding_constraint(x, Spec(*(axis if axis is not None and size % _devices(mesh, axis) == 0 else None for axis, size in given)))


def by_rules(tree: T) -> T:
    """In a compiled program, the tree split as the rules have it, so that a step gives back what it was given."""
    mesh = _around()
    return tree if mesh is None else _constrained(tree, lambda path, shape: spec_of(path, shape, mesh))


def gathered(block: T) -> T:
    """In a compiled program, one layer whole along `fsdp`, as it is used: weights travel there and not what they are applied to."""
    mesh = _around()
    if mesh is None:
        return block

    def spec(path: str, shape: Sequence[int]) -> Spec:
        return Spec(*(None if axis == "fsdp" else axis for axis in spec_of(path, (1, *shape), mesh)[1:]))

    return _constrained(block, spec)


def _around() -> AbstractMesh | None:
    """The mesh that is compiled for."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES else None


def _devices(mesh: AbstractMesh, axis: str | tuple[str, ...]) -> int:
    return math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def _constrained(tree: T, spec: Callable[[str, Sequence[int]], Spec]) -> T:
    return jax.tree.map_with_path(lambda path, x: jax.lax.with_sharding_constraint(x, spec(jax.tree_util.keystr(path), x.shape)), tree)
