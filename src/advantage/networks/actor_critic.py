"""Policy and value networks of the on-policy family, for every action space."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from advantage.equations.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Gaussian,
    Key,
    MultiCategorical,
    masked,
    positive_exponential,
    state_dependent_log_std,
)
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Activation, Linear, dense_networks
from advantage.types import Space, Spec


class Architecture(NamedTuple):
    """SB3's `net_arch`: layer widths of the shared trunk, of the policy and of the value network."""

    shared: tuple[int, ...] = ()
    pi: tuple[int, ...] = (64, 64)
    vf: tuple[int, ...] = (64, 64)


class Actor(eqx.Module):
    """Features, trunk and policy: all that acting needs."""

    features: Flatten | eqx.Module
    trunk: MLP
    hidden: MLP
    head: Linear
    log_std: Float[Array, "..."] | None
    space: Space = eqx.field(static=True)
    use_expln: bool = eqx.field(static=True, default=False)

    def latent(self, obs: PyTree) -> Float[Array, "*batch L"]:
        """The policy's last hidden layer."""
        return self.hidden(self.trunk(self.features(obs)))

    def distribution(
        self, latent: Float[Array, "*batch L"], action_mask: Bool[Array, "*batch A"] | None = None
    ) -> Distribution:
        """The distribution over actions; state-dependent noise where `log_std` is a matrix."""
        out = self.head(latent)
        if self.space.kind == "discrete":
            return Categorical(out) if action_mask is None else masked(Categorical(out), action_mask)
        if self.space.kind == "multi_discrete":
            parts = map(Categorical, _split(out, self.space.n))
            if action_mask is not None:
                # As sb3-contrib: the components' masks side by side.
                parts = map(masked, parts, _split(action_mask, self.space.n))
            return MultiCategorical(tuple(parts))
        if self.space.kind == "multi_binary":
            return Bernoulli(out)
        if self.log_std.ndim == 2:
            # SB3 does not learn the features through the noise.
            return Gaussian(out, state_dependent_log_std(jax.lax.stop_gradient(latent), self.std()))
        return Gaussian(out, jnp.broadcast_to(self.log_std, out.shape))

    def std(self) -> Float[Array, "..."]:
        """The standard deviation `[D]`, or that of the noise matrix `[L, D]`."""
        std = positive_exponential(self.log_std) if self.use_expln else jnp.exp(self.log_std)
        if std.ndim == 2:
            # One column serves every component unless there is one each (SB3's `full_std=False`).
            return jnp.broadcast_to(std, (std.shape[0], math.prod(self.space.shape)))
        return std


class ActorCritic(eqx.Module):
    """An actor and a value function, over the same features and trunk unless the latter has features of its own."""

    actor: Actor
    hidden: MLP
    head: Linear
    features: eqx.Module | None = None  # the value function's own; None: the actor's

    def value(self, obs: PyTree) -> Float[Array, "*batch"]:
        """`V(s)`."""
        shared = self.actor.trunk(self.actor.features(obs)) if self.features is None else self.features(obs)
        return self.value_of(shared)

    def value_of(self, shared: Float[Array, "*batch F"]) -> Float[Array, "*batch"]:
        """`V(s)` from the trunk's output, or from the value function's own features."""
        return self.head(self.hidden(shared))[..., 0]

    def both(
        self, obs: PyTree, action_mask: Bool[Array, "*batch A"] | None
    ) -> tuple[Distribution, Float[Array, "*batch"]]:
        """Distribution and value from one pass through features and trunk."""
        shared = self.actor.trunk(self.actor.features(obs))
        valued = shared if self.features is None else self.features(obs)
        return self.actor.distribution(self.actor.hidden(shared), action_mask), self.value_of(valued)


def actor_critic(
    spec: Spec,
    key: Key,
    *,
    net_arch: Architecture = Architecture(),
    activation: Activation = jnp.tanh,
    ortho_init: bool = True,
    log_std_init: float = 0.0,
    use_sde: bool = False,
    full_std: bool = True,
    use_expln: bool = False,
    features: eqx.Module | None = None,
    value_features: eqx.Module | None = None,
) -> ActorCritic:
    """SB3's `ActorCriticPolicy`: tanh layers, orthogonal with gains sqrt(2), 0.01 (policy), 1 (value).

    `features` replaces the flattening of observations: a module with `size` that maps `[*batch, ...]`
    to `[*batch, size]`. `value_features` are those of the value function, where it has its own.
    """
    features = Flatten(spec.observation) if features is None else features
    shared, pi, vf = net_arch
    width, actions = (features.size, *shared)[-1], action_parameters(spec.action)
    latent, value_latent = (width, *pi)[-1], (width, *vf)[-1]
    (trunk, policy, value), (head, value_head) = dense_networks(
        key,
        [(features.size, shared), (width, pi), (width, vf)],
        [(latent, actions, 0.01), (value_latent, 1, 1.0)],
        activation,
        ortho_init,
    )
    log_std = None
    if spec.action.kind == "box":
        shape = (latent, actions if full_std else 1) if use_sde else (actions,)
        log_std = jnp.full(shape, log_std_init, jnp.float32)
    actor = Actor(features, trunk, policy, head, log_std, spec.action, use_expln)
    return ActorCritic(actor, value, value_head, value_features)


def action_parameters(space: Space) -> int:
    """How many numbers a policy's last layer gives for an action space."""
    if space.kind in ("discrete", "multi_discrete"):
        return sum(space.n)
    return math.prod(space.shape)


def _split(x: Shaped[Array, "*batch A"], sizes: tuple[int, ...]) -> list[Shaped[Array, "*batch n"]]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [x[..., a : a + n] for a, n in zip(starts, sizes, strict=True)]
