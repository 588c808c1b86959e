"""PPO with a penalty on the KL divergence in place of clipping (Schulman et al., 2017, section 4).

https://arxiv.org/abs/1707.06347: `PPO("MlpPolicy", env, loss=kl_penalty_loss, desired_kl=0.01, adapts="kl_coef")`.
"""

from jaxtyping import Array, Float

from advantage.algorithms.ppo import Config, Rows, surrogate_loss
from advantage.equations.divergence import penalised_surrogate
from advantage.networks.actor_critic import ActorCritic
from advantage.types import Metrics


def kl_penalty_loss(config: Config, network: ActorCritic, rows: Rows) -> tuple[Float[Array, ""], Metrics]:
    """Penalised surrogate, value error and entropy of one minibatch (eq. 8), to be minimised."""

    def surrogate(log_prob: Float[Array, " B"], advantage: Float[Array, " B"]) -> Float[Array, " B"]:
        return penalised_surrogate(log_prob, rows.log_prob, advantage, config.kl_coef)

    return surrogate_loss(surrogate, config, network, rows)
