"""Distributions over actions, with the same methods: `log_prob(action)`, `entropy()`, `sample(key)`, `mode()`, `kl(other)`.

Batch axes lead, and an action of several components is one action: its log-probability is the sum over its
components. `p.kl(q)` is `E_p[log p - log q]`, for two of one kind.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from advantage.equations.objectives import chosen

Key = PRNGKeyArray | UInt32[Array, "2"]

# Low enough that exp() of it is 0, finite so that 0 * log(0) stays 0 and gradients stay numbers.
ILLEGAL = -1e8


class Categorical(eqx.Module):
    """One choice among A, from unnormalised log-probabilities."""

    logits: Float[Array, "*batch A"]

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        return chosen(jax.nn.log_softmax(self.logits), action)

    def entropy(self) -> Float[Array, "*batch"]:
        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    def sample(self, key: Key) -> Int[Array, "*batch"]:
        return jax.random.categorical(key, self.logits)

    def mode(self) -> Int[Array, "*batch"]:
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def kl(self, other: "Categorical") -> Float[Array, "*batch"]:
        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.sum(jnp.exp(log_probs) * (log_probs - jax.nn.log_softmax(other.logits)), axis=-1)


class MultiCategorical(eqx.Module):
    """Several independent choices, each among its own number."""

    parts: tuple[Categorical, ...]

    def log_prob(self, action: Int[Array, "*batch M"]) -> Float[Array, "*batch"]:
        terms = [part.log_prob(action[..., i]) for i, part in enumerate(self.parts)]
        return jnp.sum(jnp.stack(terms), axis=0)

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(jnp.stack([part.entropy() for part in self.parts]), axis=0)

    def sample(self, key: Key) -> Int[Array, "*batch M"]:
        keys = jax.random.split(key, len(self.parts))
        return jnp.stack([part.sample(k) for part, k in zip(self.parts, keys, strict=True)], axis=-1)

    def mode(self) -> Int[Array, "*batch M"]:
        return jnp.stack([part.mode() for part in self.parts], axis=-1)

    def kl(self, other: "MultiCategorical") -> Float[Array, "*batch"]:
        terms = [ours.kl(theirs) for ours, theirs in zip(self.parts, other.parts, strict=True)]
        return jnp.sum(jnp.stack(terms), axis=0)


class Bernoulli(eqx.Module):
    """M independent yes-or-no choices, from their log-odds."""

    logits: Float[Array, "*batch M"]

    def log_prob(self, action: Int[Array, "*batch M"]) -> Float[Array, "*batch"]:
        signed = jnp.where(action > 0, self.logits, -self.logits)
        return jnp.sum(jax.nn.log_sigmoid(signed), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        p = jax.nn.sigmoid(self.logits)
        terms = p * jax.nn.log_sigmoid(self.logits) + (1 - p) * jax.nn.log_sigmoid(-self.logits)
        return -jnp.sum(terms, axis=-1)

    def sample(self, key: Key) -> Int[Array, "*batch M"]:
        return jax.random.bernoulli(key, jax.nn.sigmoid(self.logits)).astype(jnp.int8)

    def mode(self) -> Int[Array, "*batch M"]:
        return (self.logits > 0).astype(jnp.int8)

    def kl(self, other: "Bernoulli") -> Float[Array, "*batch"]:
        yes = jax.nn.log_sigmoid(self.logits) - jax.nn.log_sigmoid(other.logits)
        no = jax.nn.log_sigmoid(-self.logits) - jax.nn.log_sigmoid(-other.logits)
        p = jax.nn.sigmoid(self.logits)
        return jnp.sum(p * yes + (1 - p) * no, axis=-1)


class Gaussian(eqx.Module):
    """Independent normal components."""

    mean: Float[Array, "*batch D"]
    log_std: Float[Array, "*batch D"]

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return -jnp.sum(0.5 * jnp.square(z) + self.log_std + 0.5 * jnp.log(2 * jnp.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        return jnp.sum(self.log_std + 0.5 * jnp.log(2 * jnp.pi) + 0.5, axis=-1)

    def sample(self, key: Key) -> Float[Array, "*batch D"]:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Float[Array, "*batch D"]:
        return self.mean

    def kl(self, other: "Gaussian") -> Float[Array, "*batch"]:
        apart = (self.mean - other.mean) * jnp.exp(-other.log_std)
        ratio = self.log_std - other.log_std
        return jnp.sum(0.5 * (jnp.exp(2 * ratio) + jnp.square(apart) - 1.0) - ratio, axis=-1)


Distribution = Categorical | MultiCategorical | Bernoulli | Gaussian


def masked(distribution: Categorical, action_mask: Bool[Array, "*batch A"]) -> Categorical:
    """The choice restricted to legal actions (Huang & Ontañón, 2022; https://arxiv.org/abs/2006.14171).

    Where no action is legal, all are equally likely: a distribution has to remain one.
    """
    return Categorical(jnp.where(action_mask, distribution.logits, ILLEGAL))


def state_dependent_log_std(
    latent: Float[Array, "*batch L"], std: Float[Array, "L D"]
) -> Float[Array, "*batch D"]:
    """Log standard deviation of noise that is linear in the state's features: gSDE.

    Noise is `latent @ W` with `W_ij ~ N(0, std_ij^2)`, so its variance is `latent^2 @ std^2`
    (Raffin et al., 2021, eq. 4; https://arxiv.org/abs/2005.05719), plus 1e-6 as in SB3.
    """
    return 0.5 * jnp.log(jnp.square(latent) @ jnp.square(std) + 1e-6)


def positive_exponential(log_std: Float[Array, "..."]) -> Float[Array, "..."]:
    """`exp(x)` below 0 and `1 + log(1 + x)` above: `expln`, which grows slowly (gSDE, section 3)."""
    # Not minimum and maximum: at a tie, such as the usual start of 0, they halve the gradient.
    below = jnp.exp(jnp.where(log_std <= 0, log_std, 0.0))
    above = jnp.log1p(jnp.where(log_std <= 0, 0.0, log_std)) + 1.0
    return jnp.where(log_std <= 0, below, above)
