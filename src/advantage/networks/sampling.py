"""What on-policy algorithms share of networks: how they are built from a `Config`, and how their actors act."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from advantage.equations.distributions import Key
from advantage.equations.noise import HeldNoise, due_noise, held_noise, state_dependent_noise
from advantage.networks.actor_critic import Actor, ActorCritic
from advantage.networks.extractors import extracted
from advantage.types import Observed, Spec


def fresh_network(config: Any, spec: Spec, key: Key, features_key: Key) -> ActorCritic:
    """`config.network` with what `config` says of it."""
    return config.network(
        spec,
        key,
        net_arch=config.net_arch,
        activation=config.activation_fn,
        ortho_init=config.ortho_init,
        log_std_init=config.log_std_init,
        use_sde=config.use_sde,
        full_std=config.full_std,
        use_expln=config.use_expln,
        **extracted(config, spec.observation, features_key),
    )


def check_sde(config: Any, spec: Spec) -> None:
    """Raise `ValueError` where gSDE is asked for and actions are no Box."""
    if config.use_sde and spec.action.kind != "box":
        raise ValueError(f"use_sde=True needs a Box action space, not {spec.action.kind}: drop it")


def sampling_carry(config: Any, spec: Spec, num_envs: int, init: Callable[..., Any]) -> tuple[()] | HeldNoise:
    """No carry, or gSDE's noise, drawn at the first step; `init` is the algorithm's."""
    if not config.use_sde:
        return ()
    log_std = jax.eval_shape(lambda: init(config, spec, jax.random.PRNGKey(0))).network.actor.log_std
    return held_noise(num_envs, log_std.shape[0], math.prod(spec.action.shape))


def act_sampling(
    config: Any, actor: Actor, carry: Any, observed: Observed, key: Key, explore: bool
) -> tuple[Array, Any]:
    """Sample actions `[N, ...]`, or take the most likely ones."""
    latent = actor.latent(observed.obs)
    distribution = actor.distribution(latent, observed.action_mask)
    shape = (latent.shape[0], *actor.space.shape)
    if not explore:
        return distribution.mode().reshape(shape), carry
    if not config.use_sde:
        return distribution.sample(key).reshape(shape), carry
    episodes = getattr(config, "episodes_per_update", None)
    due = due_noise(carry, config.sde_sample_freq, config.steps_per_update, episodes, observed.is_first)
    noise, carry = state_dependent_noise(carry, latent, actor.std(), due, key)
    return (distribution.mean + noise).reshape(shape), carry
