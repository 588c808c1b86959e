"""Learning from which of two answers was preferred."""

import jax
from jaxtyping import Array, Float

from advantage.equations.returns import Scalar


def bradley_terry(chosen: Float[Array, " B"], rejected: Float[Array, " B"]) -> Float[Array, " B"]:
    """`-log sigmoid(chosen - rejected)`: how unlikely the preference is by these scores (Bradley & Terry, 1952).

    As a reward model's loss: Ouyang et al. (2022), eq. 1, https://arxiv.org/abs/2203.02155.
    """
    return jax.nn.softplus(rejected - chosen)


def direct_preference(
    chosen: Float[Array, " B"],
    rejected: Float[Array, " B"],
    reference_chosen: Float[Array, " B"],
    reference_rejected: Float[Array, " B"],
    beta: Scalar,
) -> Float[Array, " B"]:
    """Bradley and Terry's loss of the rewards that a policy implies, `beta log(policy / reference)`, from log-probabilities.

    Rafailov et al. (2023), eq. 7, https://arxiv.org/abs/2305.18290
    """
    return bradley_terry(beta * (chosen - reference_chosen), beta * (rejected - reference_rejected))
