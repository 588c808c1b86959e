"""How off-policy actors of continuous control act: at random until learning starts, then by policy and noise.

Both families have one function each: `act_squashed` (SAC, TQC, CrossQ) and `act_deterministic` (TD3, DDPG).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from advantage.equations.distributions import Key
from advantage.equations.noise import (
    HeldNoise,
    due_noise,
    held_noise,
    initial_noise,
    perturbed,
    state_dependent_noise,
)
from advantage.networks.continuous import DeterministicActor, GaussianActor
from advantage.types import Observed, Spec


class Actor(NamedTuple):
    """What acting needs."""

    policy: GaussianActor | DeterministicActor
    random: Bool[Array, ""]  # until `learning_starts`


class Carry(NamedTuple):
    """Noise from one step to the next, where there is any."""

    sde: HeldNoise | tuple[()]
    added: PyTree


def squashed_actor(config: Any, policy: GaussianActor, state: Any) -> Actor:
    """The policy, and whether its place is taken by chance."""
    random = state.steps < config.learning_starts
    return Actor(policy, random & (not (config.use_sde and config.use_sde_at_warmup)))


def squashed_carry(config: Any, spec: Spec, num_envs: int, init: Callable[..., Any]) -> Carry:
    """The carry of gSDE and of action noise; `init` is the algorithm's, whose actor says how large gSDE's matrix is."""
    components = math.prod(spec.action.shape)
    sde = ()
    if config.use_sde:
        log_std = jax.eval_shape(lambda: init(config, spec, jax.random.PRNGKey(0))).actor.log_std
        sde = held_noise(num_envs, log_std.shape[0], components)
    return Carry(sde, initial_noise(config.action_noise, num_envs, components))


def act_squashed(
    config: Any, actor: Actor, carry: Carry, observed: Observed, key: Key, explore: bool
) -> tuple[Array, Carry]:
    """Sample actions `[N, ...]` within [-1, 1], or take the mode."""
    latent = actor.policy.latent(observed.obs)
    distribution = actor.policy.distribution(latent)
    shape = (latent.shape[0], *actor.policy.space.shape)
    if not explore:
        return distribution.mode().reshape(shape), carry
    key, random_key, noise_key = jax.random.split(key, 3)
    sde = carry.sde
    if config.use_sde:
        due = due_noise(
            sde, config.sde_sample_freq, config.steps_per_update, config.episodes_per_update, observed.is_first
        )
        noise, sde = state_dependent_noise(sde, latent, actor.policy.std(), due, key)
        action = jnp.tanh(distribution.mean + noise)
    else:
        action = distribution.sample(key)
    random = jax.random.uniform(random_key, action.shape, minval=-1.0, maxval=1.0)
    action = jnp.where(actor.random, random, action)
    action, added = perturbed(config.action_noise, carry.added, action, observed.is_first, noise_key)
    return action.reshape(shape), Carry(sde, added)


def deterministic_carry(config: Any, spec: Spec, num_envs: int) -> PyTree:
    """The carry of action noise."""
    return initial_noise(config.action_noise, num_envs, math.prod(spec.action.shape))


def act_deterministic(
    config: Any, actor: Actor, carry: PyTree, observed: Observed, key: Key, explore: bool
) -> tuple[Array, PyTree]:
    """The actor's actions `[N, ...]` within [-1, 1], with noise where it explores."""
    action = actor.policy(observed.obs)
    shape = (action.shape[0], *actor.policy.space.shape)
    if not explore:
        return action.reshape(shape), carry
    key, random_key = jax.random.split(key)
    random = jax.random.uniform(random_key, action.shape, minval=-1.0, maxval=1.0)
    action = jnp.where(actor.random, random, action)
    action, carry = perturbed(config.action_noise, carry, action, observed.is_first, key)
    return action.reshape(shape), carry
