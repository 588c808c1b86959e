"""A convolution that is fast on a CPU wherever it stands, in a loop and over seeds too.

XLA rewrites the convolutions of a program's outermost level into the one form that it computes fast on a CPU, and leaves
those of a loop as they are: there those of a gradient take ten times as long. So they are written in a fast form here.
Over seeds, with weights of each, XLA has none at all; there a convolution is a product of matrices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pictures = Float[Array, "N H W I"]
Kernel = Float[Array, "k k I O"]
Out = Float[Array, "N P Q O"]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Pictures, weight: Kernel, stride: int) -> Out:
    """Without padding; the kernel is a multiple of the stride.

    It has gradients, and those may be differentiated forwards (`jax.jvp` of `jax.grad`), but not backwards once more.
    """
    return _forward(stride)(x, weight)


def _convolve_forward(x: Pictures, weight: Kernel, stride: int) -> tuple[Out, tuple[Pictures, Kernel]]:
    return _forward(stride)(x, weight), (x, weight)


def _convolve_backward(stride: int, kept: tuple[Pictures, Kernel], out: Out) -> tuple[Pictures, Kernel]:
    x, weight = kept
    # Of pictures the product of matrices is the faster one in every case.
    to_pictures = jax.vjp(lambda x: as_products(x, weight, stride), x)[1](out)[0]
    return to_pictures, _to_kernel(stride, weight.shape[0])(x, out)


convolve.defvjp(_convolve_forward, _convolve_backward)


def as_products(x: Pictures, weight: Kernel, stride: int) -> Out:
    """The same as a product of matrices."""
    kernel, _, channels, outputs = weight.shape
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    # Squares of `stride` pixels become channels, of which a kernel spans `across` in each direction.
    across, depth = kernel // stride, stride**2 * channels
    x = _squares(x, stride, rows + across - 1, columns + across - 1)
    x = x.reshape(len(x), rows + across - 1, columns + across - 1, depth)
    weight = _squares(weight.reshape(1, kernel, kernel, -1), stride, across, across).reshape(-1, outputs)
    moved = [x[:, i : i + rows, j : j + columns] for i in range(across) for j in range(across)]
    return jnp.concatenate(moved, axis=-1) @ weight


def _squares(x: Float[Array, "N H W F"], stride: int, rows: int, columns: int) -> Float[Array, "N R S s s F"]:
    x = x[:, : rows * stride, : columns * stride]
    return x.reshape(len(x), rows, stride, columns, stride, -1).transpose(0, 1, 3, 2, 4, 5)


def _over_seeds(products: Callable) -> Callable[[Callable], Callable]:
    """A function linear in each of two arrays that is `products` where either of them is mapped."""

    def decorate(function: Callable) -> Callable:
        mapped = jax.custom_batching.custom_vmap(function)

        @mapped.def_vmap
        def _(size: int, are_mapped: list[bool], one: Array, two: Array) -> tuple[Array, bool]:
            return jax.vmap(products, [0 if x else None for x in are_mapped])(one, two), True

        # JAX does not know it of a function with a rule for `vmap`; TRPO differentiates gradients forwards.
        derived = jax.custom_jvp(mapped)

        @derived.defjvp
        def _(given: tuple[Array, Array], moved: tuple[Array, Array]) -> tuple[Array, Array]:
            return derived(*given), derived(moved[0], given[1]) + derived(given[0], moved[1])

        return derived

    return decorate


@functools.cache
def _forward(stride: int) -> Callable[[Pictures, Kernel], Out]:
    @_over_seeds(functools.partial(as_products, stride=stride))
    def forward(x: Pictures, weight: Kernel) -> Out:
        return _xla(x, weight, stride=stride)

    return forward


@functools.cache
def _to_kernel(stride: int, kernel: int) -> Callable[[Pictures, Out], Kernel]:
    """The gradient of a kernel of this side."""

    def products(x: Pictures, out: Out) -> Kernel:
        zeros = jnp.zeros((kernel, kernel, x.shape[-1], out.shape[-1]), out.dtype)
        return jax.vjp(lambda weight: as_products(x, weight, stride), zeros)[1](out)[0]

    @_over_seeds(products)
    def to_kernel(x: Pictures, out: Out) -> Kernel:
        used = [kernel + (places - 1) * stride for places in out.shape[1:3]]
        # Channels take the place of pictures, and pictures that of channels.
        swapped, places = x[:, : used[0], : used[1]].transpose(3, 1, 2, 0), out.transpose(1, 2, 0, 3)
        return _xla(swapped, places, apart=stride).transpose(1, 2, 0, 3)

    return to_kernel


def _xla(x: Array, weight: Array, stride: int = 1, apart: int = 1) -> Array:
    """With a kernel whose entries are so many pixels `apart`, in the form that is fast."""
    return jax.lax.conv_general_dilated(
        x, weight, (stride,) * 2, "VALID", rhs_dilation=(apart,) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
