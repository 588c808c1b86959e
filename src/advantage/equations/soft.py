"""What off-policy actor-critics add to the textbook: squashed actions, temperature, slow and smooth targets."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Gaussian, Key
from advantage.equations.returns import Scalar


class SquashedGaussian(eqx.Module):
    """The hyperbolic tangent of a Gaussian: an action within (-1, 1) (Haarnoja et al., 2018, appendix C).

    https://arxiv.org/abs/1812.05905. It has no entropy in closed form: `-log_prob` of a sample estimates it.
    """

    mean: Float[Array, "*batch D"]  # of the Gaussian
    log_std: Float[Array, "*batch D"]

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Of an action within [-1, 1]; at the bounds, of the nearest number inside them."""
        inside = 1.0 - jnp.finfo(action.dtype).epsneg
        return self._log_prob(jnp.arctanh(jnp.clip(action, -inside, inside)))

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        return jnp.tanh(self._gaussian().sample(key))

    def sample_and_log_prob(self, key: Key) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch"]]:
        """An action and its log-probability, exact where the action is rounded to its bound."""
        before = self._gaussian().sample(key)
        return jnp.tanh(before), self._log_prob(before)

    def mode(self) -> Float[Array, "*batch D"]:
        """The tangent of the Gaussian's mode, which is where SAC acts without exploring."""
        return jnp.tanh(self.mean)

    def _gaussian(self) -> Gaussian:
        return Gaussian(self.mean, self.log_std)

    def _log_prob(self, before: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        # log(1 - tanh(x)^2), written so that nothing is lost where tanh(x) rounds to 1.
        slope = 2.0 * (jnp.log(2.0) - before - jax.nn.softplus(-2.0 * before))
        return self._gaussian().log_prob(before) - jnp.sum(slope, axis=-1)


def temperature_objective(
    log_alpha: Float[Array, ""], log_prob: Float[Array, " B"], target_entropy: Scalar | Float[Array, " B"]
) -> Float[Array, " B"]:
    """SAC's objective for its temperature, to be minimised (Haarnoja et al., 2018, eq. 18).

    `-log(alpha) (log_prob + target_entropy)`: alpha grows while the entropy is below its target. As in SB3 it
    is linear in log(alpha), not in alpha as in the paper: the sign is the same. https://arxiv.org/abs/1812.05905
    """
    return -log_alpha * jax.lax.stop_gradient(log_prob + target_entropy)


def soft_update(
    target: PyTree[Float[Array, "..."]], online: PyTree[Float[Array, "..."]], tau: Scalar
) -> PyTree[Float[Array, "..."]]:
    """`(1 - tau) target + tau online`: Polyak averaging (Lillicrap et al., 2016, algorithm 1).

    https://arxiv.org/abs/1509.02971
    """
    return jax.tree.map(lambda old, new: (1.0 - tau) * old + tau * new, target, online)


def smoothed(
    action: Float[Array, "B D"], noise: Float[Array, "B D"], noise_clip: Scalar
) -> Float[Array, "B D"]:
    """An action with noise of at most `noise_clip`, within [-1, 1]: target smoothing (Fujimoto et al., 2018, eq. 14).

    https://arxiv.org/abs/1802.09477
    """
    return jnp.clip(action + jnp.clip(noise, -noise_clip, noise_clip), -1.0, 1.0)
