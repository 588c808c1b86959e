"""Initialisers of dense layers, all of a network at once: few draws and few decompositions compile fast."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from advantage.equations.distributions import Key

Sizes = Sequence[tuple[int, int]]
Layers = list[tuple[Float[Array, "I O"], Float[Array, " O"]]]


def orthogonal(key: Key, sizes: Sizes, gains: Sequence[float]) -> Layers:
    """Orthogonal weights times a gain each, zero biases (Saxe et al., 2014; https://arxiv.org/abs/1312.6120).

    A layer `[I, O]` is a corner of a random orthogonal square of the larger side: its shorter side's
    vectors are orthonormal, uniformly distributed. Layers of one side share one decomposition's program.
    """
    weights: dict[int, Float[Array, "I O"]] = {}
    sides = [max(size) for size in sizes]
    for key, side in zip(jax.random.split(key, len(set(sides))), sorted(set(sides)), strict=True):
        members = [i for i, s in enumerate(sides) if s == side]
        # Drawn flat: XLA takes 0.9 s to compile the generator in three dimensions, 0.25 s in one.
        normals = jax.random.normal(key, (len(members) * side * side,))
        # One after the other: XLA's batched decompositions need threads to spare (see `platform`).
        q, r = jax.lax.map(jnp.linalg.qr, normals.reshape(len(members), side, side))
        # Without this the distribution would lean towards the decomposition's choice of signs.
        squares = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None, :]
        for i, square in zip(members, squares, strict=True):
            weights[i] = gains[i] * square[: sizes[i][0], : sizes[i][1]]
    return [(weights[i], jnp.zeros(fan_out, jnp.float32)) for i, (_, fan_out) in enumerate(sizes)]


def orthogonal_apart(key: Key, sizes: Sizes, gains: Sequence[float]) -> Layers:
    """As `orthogonal`, by a decomposition of each layer's own shape: for layers with one side far longer than the other.

    A square of the 3136 inputs of a picture network's dense layer would take seconds.
    """
    layers = []
    for key, (fan_in, fan_out), gain in zip(jax.random.split(key, len(sizes)), sizes, gains, strict=True):
        tall, narrow = max(fan_in, fan_out), min(fan_in, fan_out)
        q, r = jnp.linalg.qr(jax.random.normal(key, (tall * narrow,)).reshape(tall, narrow))
        q = gain * q * jnp.sign(jnp.diagonal(r))[None]
        layers.append((q if fan_in >= fan_out else q.T, jnp.zeros(fan_out, jnp.float32)))
    return layers


def uniform_fan_in(key: Key, sizes: Sizes, gains: Sequence[float]) -> Layers:
    """Weights and biases uniform within `1 / sqrt(fan_in)`: what `torch.nn.Linear` starts from; no gains."""
    counts = [(fan_in + 1) * fan_out for fan_in, fan_out in sizes]
    drawn = jax.random.uniform(key, (sum(counts),), jnp.float32, -1.0, 1.0)
    layers, start = [], 0
    for (fan_in, fan_out), count in zip(sizes, counts, strict=True):
        layer = drawn[start : start + count].reshape(fan_in + 1, fan_out) / math.sqrt(fan_in)
        layers.append((layer[:-1], layer[-1]))
        start += count
    return layers


def scaled_normal(key: Key, sizes: Sizes, gains: Sequence[float]) -> Layers:
    """Normal weights of deviation `gain / sqrt(fan_in)` (He et al., 2015: gain sqrt(2); https://arxiv.org/abs/1502.01852); zero biases."""
    drawn = jax.random.normal(key, (sum(fan_in * fan_out for fan_in, fan_out in sizes),))
    layers, start = [], 0
    for (fan_in, fan_out), gain in zip(sizes, gains, strict=True):
        weight = drawn[start : start + fan_in * fan_out].reshape(fan_in, fan_out) * (gain / math.sqrt(fan_in))
        layers.append((weight, jnp.zeros(fan_out, jnp.float32)))
        start += fan_in * fan_out
    return layers
