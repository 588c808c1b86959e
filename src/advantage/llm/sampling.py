"""Choosing the next token: temperature, the k most likely, the smallest set of a given probability (nucleus)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

Key = Array


class Chosen(NamedTuple):
    """A token for each row, and how likely it was."""

    token: Int[Array, " B"]
    log_prob: Float[Array, " B"]  # by the model alone
    sampled_log_prob: Float[Array, " B"]  # by what it was drawn from: after temperature, k and p


def greedy(logits: Float[Array, "B V"], distribution: Float[Array, "B V"]) -> Chosen:
    """The most likely one of `distribution`, which is drawn with certainty."""
    token = jnp.argmax(distribution, axis=-1).astype(jnp.int32)
    return Chosen(token, log_prob_of(logits, token), jnp.zeros(token.shape))


def drawn(logits: Float[Array, "B V"], distribution: Float[Array, "B V"], key: Key) -> Chosen:
    """One of `distribution`, the logits as they were changed, by the Gumbel-max trick."""
    token = jax.random.categorical(key, distribution, axis=-1).astype(jnp.int32)
    return Chosen(token, log_prob_of(logits, token), log_prob_of(distribution, token))


def log_prob_of(logits: Float[Array, "B V"], token: Int[Array, " B"]) -> Float[Array, " B"]:
    """Of one token a row."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def top_k(logits: Float[Array, "B V"], k: Int[Array, ""] | int) -> Float[Array, "B V"]:
    """The k most likely, and what is as likely as the last of them; the rest `-inf`.

    Fan et al. (2018), https://arxiv.org/abs/1805.04833
    """
    return _largest(logits, lambda kept: jnp.sum(kept, axis=-1) >= k)


def top_p(logits: Float[Array, "B V"], p: Float[Array, ""] | float) -> Float[Array, "B V"]:
    """The most likely that have probability p together, and what is as likely as the last of them; the rest `-inf`.

    Holtzman et al. (2020), https://arxiv.org/abs/1904.09751; transformers breaks such ties by the order of its sorting.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    return _largest(logits, lambda kept: jnp.sum(jnp.where(kept, probs, 0.0), axis=-1) >= p)


def _largest(x: Float[Array, "B V"], enough: Callable[[Bool[Array, "B V"]], Bool[Array, " B"]]) -> Float[Array, "B V"]:
    """The largest of each row, as few as are `enough`.

    The least number kept is found bit by bit: 32 passes, where sorting a vocabulary takes ten times as long on a CPU.
    """
    ordered = _in_order(x)

    def bit(step: Int[Array, ""], least: UInt[Array, " B"]) -> UInt[Array, " B"]:
        higher = least | (jnp.uint32(1) << (31 - step).astype(jnp.uint32))
        return jnp.where(enough(ordered >= higher[:, None]), higher, least)

    least = jax.lax.fori_loop(0, 32, bit, jnp.zeros(x.shape[0], jnp.uint32))
    return jnp.where(ordered >= least[:, None], x, -jnp.inf)


def _in_order(x: Float[Array, "B V"]) -> UInt[Array, "B V"]:
    """Whole numbers in the order of the floating ones."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)
