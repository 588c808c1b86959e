"""Actors and critics of off-policy continuous control: actions within [-1, 1], critics side by side."""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key, positive_exponential, state_dependent_log_std
from advantage.equations.soft import SquashedGaussian
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_layers
from advantage.types import Space, Spec

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0
Features = Callable[[Space, Key], eqx.Module] | None
Layers = Callable[[Key, int, tuple[int, ...], int, Activation], tuple[eqx.Module, Linear]]
"""`layers(key, inputs, net_arch, outputs, activation)` gives hidden layers and an output layer."""


class Widths(NamedTuple):
    """SB3's `net_arch` for actors and critics: layer widths of each."""

    pi: tuple[int, ...] = (256, 256)
    qf: tuple[int, ...] = (256, 256)


class GaussianActor(eqx.Module):
    """A squashed Gaussian whose deviation is a function of the state, or gSDE's where `log_std` is a matrix."""

    features: Flatten | eqx.Module
    hidden: MLP | eqx.Module
    head: Linear
    log_std: Float[Array, "L D"] | None
    space: Space = eqx.field(static=True)
    use_expln: bool = eqx.field(static=True, default=False)
    clip_mean: float = eqx.field(static=True, default=2.0)

    def latent(self, obs: PyTree) -> Float[Array, "*batch L"]:
        """The last hidden layer."""
        return self.hidden(self.features(obs))

    def distribution(self, latent: Float[Array, "*batch L"]) -> SquashedGaussian:
        """The distribution over actions, from the last hidden layer."""
        out = self.head(latent)
        if self.log_std is not None:
            # Bounded as in SB3: nothing else keeps the mean from where the tangent is flat.
            mean = jnp.clip(out, -self.clip_mean, self.clip_mean) if self.clip_mean > 0 else out
            return SquashedGaussian(mean, state_dependent_log_std(latent, self.std()))
        mean, log_std = jnp.split(out, 2, axis=-1)
        return SquashedGaussian(mean, jnp.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))

    def std(self) -> Float[Array, "L D"]:
        """The standard deviation of gSDE's noise matrix."""
        return positive_exponential(self.log_std) if self.use_expln else jnp.exp(self.log_std)


class DeterministicActor(eqx.Module):
    """One action within [-1, 1] for each state."""

    features: Flatten | eqx.Module
    hidden: MLP | eqx.Module
    head: Linear
    space: Space = eqx.field(static=True)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch D"]:
        return jnp.tanh(self.head(self.hidden(self.features(obs))))


class Critics(eqx.Module):
    """C action-value functions side by side; `hidden` and `head` have a leading axis C."""

    features: Flatten | eqx.Module
    hidden: MLP | eqx.Module
    head: Linear

    def __call__(
        self, obs: PyTree, action: Float[Array, "*batch D"], key: Key | None = None
    ) -> Float[Array, "C *batch"]:
        """`key` draws dropout's masks, of each critic its own; None: nothing is dropped."""
        x = jnp.concatenate([self.features(obs), action], axis=-1)
        return _each(lambda hidden, head, key: head(hidden(x, key))[..., 0], self, key)

    def first(self, obs: PyTree, action: Float[Array, "*batch D"], key: Key | None = None) -> Float[Array, "*batch"]:
        """The value of the first critic alone."""
        hidden, head = jax.tree.map(lambda x: x[:1], (self.hidden, self.head))
        return Critics(self.features, hidden, head)(obs, action, key)[0]


class QuantileCritics(eqx.Module):
    """C critics side by side, each with N quantiles of the return; `hidden` and `head` have a leading axis C."""

    features: Flatten | eqx.Module
    hidden: MLP | eqx.Module
    head: Linear

    def __call__(
        self, obs: PyTree, action: Float[Array, "*batch D"], key: Key | None = None
    ) -> Float[Array, "C *batch N"]:
        """`key` as for `Critics`."""
        x = jnp.concatenate([self.features(obs), action], axis=-1)
        return _each(lambda hidden, head, key: head(hidden(x, key)), self, key)


def gaussian_actor(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    use_sde: bool = False,
    log_std_init: float = -3.0,
    use_expln: bool = False,
    clip_mean: float = 2.0,
    features: Features = None,
    layers: Layers = dense_layers,
) -> GaussianActor:
    """SB3's actor of SAC. `features` replaces the flattening of observations: `features(space, key)` gives a
    module with `size` that maps `[*batch, ...]` to `[*batch, size]`; `layers` makes hidden and output layers."""
    components = action_components(spec)
    outputs = components if use_sde else 2 * components
    extractor, hidden, head = on_features(spec, key, net_arch, outputs, activation, features, layers)
    log_std = jnp.full((head.weight.shape[0], components), log_std_init, jnp.float32) if use_sde else None
    return GaussianActor(extractor, hidden, head, log_std, spec.action, use_expln, clip_mean)


def deterministic_actor(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    features: Features = None,
    layers: Layers = dense_layers,
) -> DeterministicActor:
    """SB3's actor of TD3; `features` as for `gaussian_actor`."""
    network = on_features(spec, key, net_arch, action_components(spec), activation, features, layers)
    return DeterministicActor(*network, spec.action)


def critics(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    n_critics: int = 2,
    features: Features = None,
    layers: Layers = dense_layers,
) -> Critics:
    """`n_critics` action-value functions, which share `features` (as for `gaussian_actor`) and nothing else."""
    more = action_components(spec)
    return Critics(*side_by_side(spec, key, net_arch, 1, activation, n_critics, features, layers, more))


def quantile_critics(
    spec: Spec,
    key: Key,
    *,
    net_arch: tuple[int, ...] = (256, 256),
    activation: Activation = jax.nn.relu,
    n_critics: int = 2,
    n_quantiles: int = 25,
    features: Features = None,
    layers: Layers = dense_layers,
) -> QuantileCritics:
    """As `critics`, with `n_quantiles` outputs each."""
    more = action_components(spec)
    return QuantileCritics(*side_by_side(spec, key, net_arch, n_quantiles, activation, n_critics, features, layers, more))


def action_components(spec: Spec) -> int:
    """The numbers of an action."""
    return math.prod(spec.action.shape)


def on_features(
    spec: Spec,
    key: Key,
    net_arch: tuple[int, ...],
    outputs: int,
    activation: Activation,
    features: Features,
    layers: Layers = dense_layers,
) -> tuple[eqx.Module, eqx.Module, Linear]:
    """`(features, hidden layers, output layer)` of one network."""
    extractor, key = _extractor(spec, key, features)
    return extractor, *layers(key, extractor.size, net_arch, outputs, activation)


def side_by_side(
    spec: Spec,
    key: Key,
    net_arch: tuple[int, ...],
    outputs: int,
    activation: Activation,
    count: int,
    features: Features,
    layers: Layers = dense_layers,
    more: int = 0,
) -> tuple[eqx.Module, eqx.Module, Linear]:
    """As `on_features`, of `count` networks on the same features and `more` inputs: layers have a leading axis."""
    extractor, key = _extractor(spec, key, features)

    def one(key: Key) -> tuple[eqx.Module, Linear]:
        return layers(key, extractor.size + more, net_arch, outputs, activation)

    return extractor, *jax.vmap(one)(jax.random.split(key, count))


def _extractor(spec: Spec, key: Key, features: Features) -> tuple[eqx.Module, Key]:
    features_key, key = jax.random.split(key)
    return Flatten(spec.observation) if features is None else features(spec.observation, features_key), key


def _each(value: Callable[..., Array], critics: Critics | QuantileCritics, key: Key | None) -> Array:
    """`value(hidden, head, key)` of each critic."""
    keys = None if key is None else jax.random.split(key, critics.head.weight.shape[0])
    return jax.vmap(value)(critics.hidden, critics.head, keys)
