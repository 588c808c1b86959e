"""Hidden layers that keep critics sane at many updates per step: dropout and LayerNorm, or residual blocks."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from advantage.equations.distributions import Key
from advantage.networks.continuous import Layers
from advantage.networks.initialisers import scaled_normal, uniform_fan_in
from advantage.networks.mlp import Activation, Linear, dense_layers

EXPANSION = 4  # of a residual block's inner layer


class LayerNorm(eqx.Module):
    """Each row with mean 0 and variance 1, then scaled and shifted (Ba et al., 2016; https://arxiv.org/abs/1607.06450)."""

    scale: Float[Array, " F"]
    bias: Float[Array, " F"]

    def __call__(self, x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-5)
        scale, bias = (v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (self.scale, self.bias))
        return x * scale + bias


class Identity(eqx.Module):
    """In a norm's place where there is none."""

    def __call__(self, x: Float[Array, "*batch F"]) -> Float[Array, "*batch F"]:
        return x


def layer_norm(size: int) -> LayerNorm:
    """A LayerNorm that neither scales nor shifts yet."""
    return LayerNorm(jnp.ones(size, jnp.float32), jnp.zeros(size, jnp.float32))


def dropout(x: Float[Array, "..."], rate: float, key: Key) -> Float[Array, "..."]:
    """Zero with probability `rate`, else divided by `1 - rate` (Srivastava et al., 2014).

    https://jmlr.org/papers/v15/srivastava14a.html
    """
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)


class RegularisedMLP(eqx.Module):
    """Dense layers, each followed by dropout, a norm and the activation (Hiraoka et al., 2022, DroQ, figure 2).

    https://arxiv.org/abs/2110.02034
    """

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm | Identity, ...]
    dropout_rate: float = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch I"], key: Key | None = None) -> Float[Array, "*batch O"]:
        """`key` draws the masks; None: nothing is dropped."""
        drops = key is not None and self.dropout_rate > 0
        keys = jax.random.split(key, len(self.layers)) if drops else [None] * len(self.layers)
        for layer, norm, key in zip(self.layers, self.norms, keys, strict=True):
            x = layer(x)
            x = dropout(x, self.dropout_rate, key) if drops else x
            x = self.activation(norm(x))
        return x


class Block(eqx.Module):
    """`x + down(activation(up(norm(x))))`: what is added is small at first, so that the block begins as linear."""

    norm: LayerNorm
    up: Linear
    down: Linear

    def __call__(self, x: Float[Array, "*batch F"], activation: Activation) -> Float[Array, "*batch F"]:
        return x + self.down(activation(self.up(self.norm(x))))


class SimBa(eqx.Module):
    """A linear embedding, residual blocks and a LayerNorm (Lee et al., 2024, section 4; https://arxiv.org/abs/2410.09754).

    The paper normalises observations by running statistics before them: `normalize=True` of every model.
    """

    embedding: Linear
    blocks: tuple[Block, ...]
    norm: LayerNorm
    activation: Activation = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch I"], key: Key | None = None) -> Float[Array, "*batch O"]:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x, self.activation)
        return self.norm(x)


def hidden_layers(block: str, layer_norm: bool = False, dropout_rate: float = 0.0) -> Layers:
    """`layers` for `gaussian_actor` and its like, by the words of `policy_kwargs`."""
    if block == "simba":
        return simba_layers
    if layer_norm or dropout_rate:
        return functools.partial(_regularised_layers, layer_norm, dropout_rate)
    return dense_layers


def check_layers(config: Any) -> None:
    """Raise `ValueError` for words that `hidden_layers` cannot follow."""
    if config.block not in ("dense", "simba"):
        raise ValueError(f"block={config.block!r} is not known: choose 'dense' or 'simba'")
    if not 0 <= config.dropout_rate < 1:
        raise ValueError(f"dropout_rate={config.dropout_rate!r} has to be at least 0 and below 1")
    if config.block == "simba":
        if config.layer_norm or config.dropout_rate:
            raise ValueError("block='simba' has its own LayerNorms: leave out layer_norm and dropout_rate")
        if any(len(set(widths)) != 1 for widths in config.net_arch):
            raise ValueError(
                f"block='simba' has blocks of one width, net_arch={tuple(config.net_arch)} has others:"
                " give it one for each block, as in [256, 256]"
            )


def simba_layers(
    key: Key, inputs: int, net_arch: tuple[int, ...], outputs: int, activation: Activation
) -> tuple[SimBa, Linear]:
    """One residual block for each width of `net_arch`, all of which are equal; and the output layer.

    Normal weights, of variance 2 / inputs in the blocks and 1 / inputs in the embedding, which is orthogonal in the
    paper.
    """
    width, count = net_arch[0], len(net_arch)
    hidden_key, head_key = jax.random.split(key)
    sizes = [(inputs, width)] + [(width, EXPANSION * width), (EXPANSION * width, width)] * count
    drawn = scaled_normal(hidden_key, sizes, [1.0] + [2**0.5] * (2 * count))
    embedding, *dense = [Linear(*layer) for layer in drawn]
    blocks = [Block(layer_norm(width), up, down) for up, down in zip(dense[::2], dense[1::2], strict=True)]
    ((weight, bias),) = uniform_fan_in(head_key, [(width, outputs)], [1.0])
    return SimBa(embedding, tuple(blocks), layer_norm(width), activation), Linear(weight, bias)


def _regularised_layers(
    normed: bool,
    dropout_rate: float,
    key: Key,
    inputs: int,
    net_arch: tuple[int, ...],
    outputs: int,
    activation: Activation,
) -> tuple[RegularisedMLP, Linear]:
    hidden, head = dense_layers(key, inputs, net_arch, outputs, activation)
    norms = tuple(layer_norm(width) if normed else Identity() for width in net_arch)
    return RegularisedMLP(hidden.layers, norms, dropout_rate, activation), head
