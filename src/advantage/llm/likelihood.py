"""How likely a decoder finds given tokens, without all logits in memory at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from advantage.llm import sharding
from advantage.llm.decoder import Decoder, hidden_states, logits

LOGITS = 2**24
"""Logits that exist at once, about: 64 MB of float32."""


Measure = Callable[[Array, Array], PyTree]
"""Of logits `[R,V]` and a token a row: numbers `[R]`."""


class Likelihood(NamedTuple):
    """Of each token, given those before it."""

    log_prob: Float[Array, "B T"]
    entropy: Float[Array, "B T"]  # of the distribution it came from, in nats


def likelihood(
    decoder: Decoder, tokens: Int[Array, "B T"], start: Int[Array, " B"], first: int, temperature: float = 1.0, remat: bool = False
) -> Likelihood:
    """Of `tokens[:, first:]`, which is what is left of T below; whatever is padding among them means nothing.

    Args:
        start: the slot of each sequence's first token.
        first: from 1 on; the token in slot t is told by what stands in slot t - 1.
        temperature: of the distribution: logits are divided by it.
    """
    hidden = hidden_states(decoder, tokens[:, :-1], start, remat)[:, first - 1 :]
    return of_targets(decoder, hidden, tokens[:, first:], temperature)


def of_targets(
    decoder: Decoder, hidden: Float[Array, "B T D"], target: Int[Array, "B T"], temperature: float = 1.0
) -> Likelihood:
    """The same from hidden states."""
    return in_parts(decoder, hidden, target, lambda scores, part: _likelihood(scores / temperature, part))


def in_parts(decoder: Decoder, hidden: Float[Array, "B T D"], target: Int[Array, "B T"], measure: Measure) -> PyTree:
    """`measure` of all tokens, `[B,T]`: the logits of a few rows at a time, and gradients compute these again."""
    count = target.size
    rows = max(min(count, LOGITS // decoder.config.vocab_size), 1)
    parts = -(-count // rows)
    rows = -(-count // parts)  # parts of one size
    padding = parts * rows - count
    flat = jnp.pad(hidden.reshape((count, -1)), ((0, padding), (0, 0))).reshape((parts, rows, -1))
    targets = jnp.pad(target.reshape(-1), (0, padding)).reshape((parts, rows))

    # Every device has its own rows of each part; the loop's axis is nobody's.
    flat, targets = (sharding.split(x, None, sharding.ROWS) for x in (flat, targets))

    def part(inputs: tuple[Array, Array]) -> PyTree:
        return measure(logits(decoder, inputs[0]), inputs[1])

    whole = parts == 1
    out = part((flat[0], targets[0])) if whole else jax.lax.map(jax.checkpoint(part), (flat, targets))
    return jax.tree.map(lambda x: x.reshape(-1)[:count].reshape(target.shape), out)


def _likelihood(scores: Float[Array, "R V"], target: Int[Array, " R"]) -> Likelihood:
    """Of one token a row; the entropy has no gradient."""
    total = jax.nn.logsumexp(scores, axis=-1)
    log_prob = jnp.take_along_axis(scores, target[:, None], axis=-1)[:, 0] - total
    fixed, fixed_total = jax.lax.stop_gradient(scores), jax.lax.stop_gradient(total)
    mean = jnp.sum(jnp.exp(fixed - fixed_total[:, None]) * fixed, axis=-1)
    return Likelihood(log_prob, fixed_total - mean)
