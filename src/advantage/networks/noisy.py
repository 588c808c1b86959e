"""Noisy networks: exploration by weights that vary, as much as was learned (Fortunato et al., 2018).

https://arxiv.org/abs/1706.10295, with factorised noise. Noise is a part of the network: a network at rest has none, and
acts by its means; `drawn` gives a copy with fresh noise, which is used in place of it for a step.
"""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.networks.dueling import dueling_network
from advantage.networks.features import Fixed
from advantage.networks.mlp import Linear
from advantage.networks.q_network import q_network
from advantage.types import Spec

SCALE = 0.5
"""The standard deviation of weights at the start, times the square root of a layer's inputs (section 3.2)."""


class Noise(Fixed):
    """Numbers drawn for a layer, of whose products each weight gets one (eq. 10)."""

    inputs: Float[Array, " I"]
    outputs: Float[Array, " O"]


class NoisyLinear(eqx.Module):
    """`x @ (weight + scale * noise) + bias + bias_scale * noise` (eq. 9), without making the noisy weights."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"]
    scale: Float[Array, "I O"]
    bias_scale: Float[Array, " O"]
    noise: Noise

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        shape = (1,) * (x.ndim - 1) + (-1,)
        inputs, outputs = self.noise.inputs.reshape(shape), self.noise.outputs.reshape(shape)
        # A weight's noise is a product of two factors: one belongs to the input, the other to what comes out.
        noisy = ((x * inputs) @ self.scale + self.bias_scale.reshape(shape)) * outputs
        return Linear(self.weight, self.bias)(x) + noisy


def noisy_q_network(spec: Spec, key: Key, **options: Any) -> eqx.Module:
    """As `q_network`; every layer but those of `features` is noisy."""
    return noisy(q_network, spec, key, **options)


def noisy_dueling_network(spec: Spec, key: Key, **options: Any) -> eqx.Module:
    """As `dueling_network`; every layer but those of `features` is noisy."""
    return noisy(dueling_network, spec, key, **options)


def noisy(make: Callable[..., eqx.Module], spec: Spec, key: Key, **options: Any) -> eqx.Module:
    """The network that `make` makes, with noisy layers behind its `features`."""
    network = make(spec, key, **options)

    def loosen(part: Any) -> Any:
        if not isinstance(part, Linear):
            return part
        inputs, outputs = part.weight.shape
        scale = np.float32(SCALE / np.sqrt(inputs))
        noise = Noise(jnp.zeros(inputs), jnp.zeros(outputs))
        return NoisyLinear(part.weight, part.bias, jnp.full_like(part.weight, scale), jnp.full_like(part.bias, scale), noise)

    return jax.tree.map(loosen, network, is_leaf=lambda part: isinstance(part, Linear) or part is network.features)


def drawn(network: PyTree, key: Key) -> PyTree:
    """The network with fresh noise in each of its noisy layers; any other network as it is."""
    layers = [part for part in jax.tree.leaves(network, is_leaf=_is_noisy) if _is_noisy(part)]
    if not layers:
        return network
    sizes = [x.shape[0] for layer in layers for x in (layer.noise.inputs, layer.noise.outputs)]
    # All at once: a call for each layer costs more than the numbers.
    normal = jax.random.normal(key, (sum(sizes),))
    factors = jnp.sign(normal) * jnp.sqrt(jnp.abs(normal))  # products of two have variance 2 / pi (section 3.1 b)
    parts = iter(jnp.split(factors, list(itertools.accumulate(sizes))[:-1]))

    def draw(part: Any) -> Any:
        if not _is_noisy(part):
            return part
        return eqx.tree_at(lambda layer: layer.noise, part, Noise(next(parts), next(parts)))

    return jax.tree.map(draw, network, is_leaf=_is_noisy)


def _is_noisy(part: Any) -> bool:
    return isinstance(part, NoisyLinear)
