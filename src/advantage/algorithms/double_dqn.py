"""Double Q-learning with networks (van Hasselt et al., 2016, https://arxiv.org/abs/1509.06461).

DQN in every other respect: `DQN("MlpPolicy", env, bootstrap=double_value)`, or `DoubleDQN("MlpPolicy", env)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from advantage.equations.objectives import action_values
from advantage.networks.q_network import ActionValues, legal_values


def double_value(
    network: ActionValues, target_network: ActionValues, obs: PyTree, action_mask: Bool[Array, "B A"] | None
) -> Float[Array, " B"]:
    """`Q'(s, argmax_a Q(s, a))`: one network chooses, the other judges (eq. 4).

    The greatest of values that are wrong by chance is too great. Where another network says what the chosen one is
    worth, the errors of both would have to agree.
    """
    return action_values(target_network(obs), double_action(network, target_network, obs, action_mask))


def double_action(
    network: ActionValues, target_network: ActionValues, obs: PyTree, action_mask: Bool[Array, "B A"] | None
) -> Int[Array, " B"]:
    """`argmax_a Q(s, a)`, the legal action that the online network thinks best."""
    return jnp.argmax(legal_values(network(obs), action_mask), axis=-1)


def greedy_action(
    network: ActionValues, target_network: ActionValues, obs: PyTree, action_mask: Bool[Array, "B A"] | None
) -> Int[Array, " B"]:
    """`argmax_a Q'(s, a)`, the legal action that the target network thinks best, as DQN does."""
    return jnp.argmax(legal_values(target_network(obs), action_mask), axis=-1)
