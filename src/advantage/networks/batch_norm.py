"""Dense networks with batch renormalisation, in CrossQ's arrangement: a norm before every layer.

Parameters and running statistics are apart, since an optimiser moves the first and a forward pass the second:
`train` normalises by a batch and returns the statistics after it, `evaluated` gives a network that uses them.
"""

import dataclasses
import functools
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from advantage.equations.distributions import Key
from advantage.networks.continuous import Critics, GaussianActor, Layers
from advantage.networks.mlp import Activation, Linear, dense_layers

R_MAX, D_MAX = 3.0, 5.0  # how far a batch's scale and mean may be from the running ones, in units of the latter

Network = TypeVar("Network", GaussianActor, Critics)


class Moments(NamedTuple):
    """Running mean and variance of a norm's inputs `[F]`, and the batches they have seen."""

    mean: Float[Array, "*C F"]
    var: Float[Array, "*C F"]
    steps: Int[Array, "*C"]


Statistics = tuple[Moments, ...]
"""Of each norm of a network."""


class BatchRenorm(eqx.Module):
    """Batch renormalisation (Ioffe, 2017, algorithm 1, https://arxiv.org/abs/1702.03275).

    For the first `warmup_steps` batches it is batch normalisation; then the bounds of r and d open, all at once
    and not little by little as in the paper.
    """

    scale: Float[Array, " F"]
    bias: Float[Array, " F"]
    momentum: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    warmup_steps: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch F"], moments: Moments) -> Float[Array, "*batch F"]:
        """By the running statistics."""
        return self._affine(x, moments.mean, jnp.sqrt(moments.var + self.eps))

    def train(self, x: Float[Array, "B F"], moments: Moments) -> tuple[Float[Array, "B F"], Moments]:
        """By the batch's statistics, corrected towards the running ones; and these with the batch counted in."""
        mean, var = jnp.mean(x, axis=0), jnp.var(x, axis=0)
        std, running_std = jnp.sqrt(var + self.eps), jnp.sqrt(moments.var + self.eps)
        warm = moments.steps >= self.warmup_steps
        r_max, d_max = jnp.where(warm, R_MAX, 1.0), jnp.where(warm, D_MAX, 0.0)
        r = jnp.clip(jax.lax.stop_gradient(std / running_std), 1.0 / r_max, r_max)
        d = jnp.clip(jax.lax.stop_gradient((mean - moments.mean) / running_std), -d_max, d_max)
        # (x - mean) / std * r + d, with the correction taken into mean and deviation.
        y = self._affine(x, mean - d * std / r, std / r)
        held_mean, held_var = jax.lax.stop_gradient((mean, var))
        moved = [old + self.momentum * (new - old) for old, new in ((moments.mean, held_mean), (moments.var, held_var))]
        return y, Moments(*moved, moments.steps + 1)

    def _affine(
        self, x: Float[Array, "*batch F"], mean: Float[Array, " F"], std: Float[Array, " F"]
    ) -> Float[Array, "*batch F"]:
        gain = self.scale / std
        gain, shift = (v.reshape((1,) * (x.ndim - 1) + (-1,)) for v in (gain, self.bias - mean * gain))
        return gain * x + shift


class BatchNormMLP(eqx.Module):
    """Dense layers with a norm before each and one after the last activation."""

    norms: tuple[BatchRenorm, ...]
    layers: tuple[Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch I"], statistics: Statistics) -> Float[Array, "*batch O"]:
        """By the running statistics."""
        x = self.norms[0](x, statistics[0])
        for layer, norm, moments in zip(self.layers, self.norms[1:], statistics[1:], strict=True):
            x = norm(self.activation(layer(x)), moments)
        return x

    def train(self, x: Float[Array, "B I"], statistics: Statistics) -> tuple[Float[Array, "B O"], Statistics]:
        """By the batch's statistics; and the running ones after it."""
        x, first = self.norms[0].train(x, statistics[0])
        after = [first]
        for layer, norm, moments in zip(self.layers, self.norms[1:], statistics[1:], strict=True):
            x, moments = norm.train(self.activation(layer(x)), moments)
            after.append(moments)
        return x, tuple(after)


class Evaluated(eqx.Module):
    """A `BatchNormMLP` with the statistics it is evaluated by."""

    mlp: BatchNormMLP
    statistics: Statistics

    def __call__(self, x: Float[Array, "*batch I"], key: Key | None = None) -> Float[Array, "*batch O"]:
        return self.mlp(x, self.statistics)


def evaluated(network: Network, statistics: Statistics) -> Network:
    """The network that normalises by its running statistics."""
    return dataclasses.replace(network, hidden=Evaluated(network.hidden, statistics))


def train_actor(
    actor: GaussianActor, statistics: Statistics, obs: PyTree
) -> tuple[Float[Array, "B L"], Statistics]:
    """The last hidden layer of a batch normalised by itself, and the running statistics after it."""
    return actor.hidden.train(actor.features(obs), statistics)


def train_critics(
    critics: Critics, statistics: Statistics, obs: PyTree, action: Float[Array, "B D"]
) -> tuple[Float[Array, "C B"], Statistics]:
    """The values of a batch normalised by itself, and the running statistics after it."""
    x = jnp.concatenate([critics.features(obs), action], axis=-1)

    def one(hidden: BatchNormMLP, head: Linear, statistics: Statistics) -> tuple[Float[Array, " B"], Statistics]:
        latent, statistics = hidden.train(x, statistics)
        return head(latent)[..., 0], statistics

    return jax.vmap(one)(critics.hidden, critics.head, statistics)


def fresh_statistics(network: GaussianActor | Critics) -> Statistics:
    """Of a network that has seen nothing: mean 0 and variance 1."""
    scales = [norm.scale for norm in network.hidden.norms]
    return tuple(Moments(jnp.zeros_like(x), jnp.ones_like(x), jnp.zeros(x.shape[:-1], jnp.int32)) for x in scales)


def batch_norm_layers(momentum: float, eps: float, warmup_steps: int) -> Layers:
    """`layers` for `gaussian_actor` and `critics`."""
    return functools.partial(_layers, momentum, eps, warmup_steps)


def _layers(
    momentum: float,
    eps: float,
    warmup_steps: int,
    key: Key,
    inputs: int,
    net_arch: tuple[int, ...],
    outputs: int,
    activation: Activation,
) -> tuple[BatchNormMLP, Linear]:
    hidden, head = dense_layers(key, inputs, net_arch, outputs, activation)
    norms = [BatchRenorm(jnp.ones(n), jnp.zeros(n), momentum, eps, warmup_steps) for n in (inputs, *net_arch)]
    return BatchNormMLP(tuple(norms), hidden.layers, activation), head
