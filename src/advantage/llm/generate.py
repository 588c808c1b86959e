"""Writing: prompts go in, answers come out, each whole answer in one compiled loop that ends when all of a batch have.

Prompts are padded on the left, so that all rows write into the same slot; `start` says where each begins. Their length is
rounded up to few sizes, and so is compiled few times (`COMPILED` counts).
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from advantage.llm import decoder as decoders
from advantage.llm import sampling, sharding
from advantage.llm.decoder import Cache, Decoder
from advantage.llm.stopping import Stops, stops

Key = Array
COMPILED: collections.Counter[tuple[int, int, int]] = collections.Counter()
"""How often a program was compiled for so many rows, slots of a prompt and new tokens."""


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How answers are written, under transformers' names.

    Raises:
        ValueError: a number that cannot work.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0  # no answer ends before
    temperature: float | int = 1.0  # 0: always the most likely token
    top_k: int = 0  # only so many of the most likely; 0: all
    top_p: float | int = 1.0  # only the most likely that have this probability together
    stop_strings: tuple[str, ...] | list[str] | str | None = ()  # an answer ends with any of these, which stays in it

    def __post_init__(self):
        stop = self.stop_strings or ()
        object.__setattr__(self, "stop_strings", (stop,) if isinstance(stop, str) else tuple(stop))
        for name in ("max_new_tokens", "min_new_tokens", "top_k", "temperature", "top_p"):
            value, whole = getattr(self, name), name.endswith(("tokens", "_k"))
            if isinstance(value, bool) or not isinstance(value, int | np.integer if whole else int | float | np.number):
                raise ValueError(f"{name}={value!r} has to be a {'whole ' if whole else ''}number")
        wrong = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "between 0 and max_new_tokens"),
            "temperature": (0 <= self.temperature < float("inf"), "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0, where 0 keeps all tokens"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
        }
        for name, (fits, wanted) in wrong.items():
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)!r} has to be {wanted}")


class Generation(NamedTuple):
    """B answers of up to G tokens behind prompts of P slots."""

    tokens: Int[np.ndarray, "B PG"]  # prompt and answer
    start: Int[np.ndarray, " B"]  # where each prompt begins
    prompt_slots: int  # where all answers begin
    length: Int[np.ndarray, " B"]  # of each answer, its end included
    ended: Bool[np.ndarray, " B"]  # by itself; otherwise it was cut at `max_new_tokens`
    log_prob: Float[np.ndarray, "B G"]  # of each token by the model; 0 behind the end
    sampled_log_prob: Float[np.ndarray, "B G"]  # by what it was drawn from

    def answers(self) -> list[list[int]]:
        """The answers' tokens, each of its own length."""
        return [row[self.prompt_slots : self.prompt_slots + n].tolist() for row, n in zip(self.tokens, self.length, strict=True)]


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    eos_ids: Sequence[int],
    key: Key,
    token_bytes: Sequence[bytes] | None = None,
) -> Generation:
    """An answer to each prompt.

    Args:
        prompts: tokens; lengths may differ.
        eos_ids: tokens that end an answer.
        token_bytes: of the tokenizer, where there are stop strings.

    Raises:
        ValueError: an empty prompt, one too long for the model, a token that it doesn't have, or nothing that ends an answer.
    """
    check(decoder, prompts, config, eos_ids)
    if config.stop_strings and token_bytes is None:
        raise ValueError("stop_strings need the tokenizer's token_bytes")
    tokens, start = padded_left(prompts, bucket(max(len(prompt) for prompt in prompts)))
    room = decoder.config.max_position_embeddings - config.max_new_tokens
    if tokens.shape[1] > room:  # a longer bucket than the context has room for
        tokens, start = padded_left(prompts, room)
    automata = _stops(config.stop_strings, tuple(token_bytes)) if config.stop_strings else None
    numbers = _Numbers(
        jnp.float32(config.temperature), jnp.int32(config.top_k), jnp.float32(config.top_p), jnp.int32(config.min_new_tokens)
    )
    kinds = (config.temperature == 0, config.top_k > 0, config.top_p < 1)
    state = _run(decoder, tokens, start, numbers, automata, key, tuple(eos_ids), config.max_new_tokens, kinds)
    written = np.asarray(state.tokens)
    return Generation(
        np.concatenate([tokens, written], axis=1), start, tokens.shape[1], np.asarray(state.length),
        np.asarray(state.finished), np.asarray(state.log_prob), np.asarray(state.sampled_log_prob),
    )  # fmt: skip


def check(decoder: Decoder, prompts: Sequence[Sequence[int]], config: GenerationConfig, eos_ids: Sequence[int]) -> None:
    """Raise `ValueError` for what cannot be answered; before anything is compiled."""
    context, vocabulary = decoder.config.max_position_embeddings, decoder.config.vocab_size
    if not eos_ids:
        raise ValueError("eos_ids is empty: no answer would ever end; give the tokenizer's eos_ids")
    if max(eos_ids) >= vocabulary:
        raise ValueError(f"eos_ids has {max(eos_ids)}, and the model's vocabulary is {vocabulary}: no answer would ever end")
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give at least one")
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {number} is empty: give at least one token, such as the tokenizer's beginning")
        if len(prompt) + config.max_new_tokens > context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, which with max_new_tokens={config.max_new_tokens} is more than the model's "
                f"context of {context}: shorten the prompt, or ask for fewer tokens"
            )
        if max(prompt) >= vocabulary or min(prompt) < 0:
            raise ValueError(
                f"prompt {number} has tokens from {min(prompt)} to {max(prompt)}, and the model's vocabulary is {vocabulary}: "
                "tokenizer and model do not belong together"
            )


def bucket(length: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, 64, ...: of more than 8 less than a half is padding, and few sizes are compiled."""
    size = 8
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def padded_left(rows: Sequence[Sequence[int]], slots: int) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, " B"]]:
    """`(tokens, where each row starts)`; padding is token 0, which nothing reads."""
    tokens, start = np.zeros((len(rows), slots), np.int32), np.array([slots - len(row) for row in rows], np.int32)
    for number, row in enumerate(rows):
        tokens[number, slots - len(row) :] = row
    return tokens, start


class _Numbers(NamedTuple):
    """What may change without another compilation."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_new_tokens: Int[Array, ""]


class _State(NamedTuple):
    """Between two tokens."""

    step: Int[Array, ""]
    last: Int[Array, " B"]  # the token that is read next
    caches: list[Cache] | None
    key: Key
    stops: Int[Array, "B K"]
    finished: Bool[Array, " B"]
    length: Int[Array, " B"]
    tokens: Int[Array, "B G"]
    log_prob: Float[Array, "B G"]
    sampled_log_prob: Float[Array, "B G"]


@functools.partial(jax.jit, static_argnames=("eos_ids", "new_tokens", "kinds"))
def _run(decoder, tokens, start, numbers, automata, key, eos_ids, new_tokens, kinds) -> _State:
    """Read the prompts but for their last token, then write."""
    rows, slots = tokens.shape
    COMPILED[rows, slots, new_tokens] += 1
    layers = [sharding.gathered(layer) for layer in decoders.unstacked(decoder)]  # once, not for each token
    caches = decoders.empty_caches(decoder.config, rows, slots + new_tokens, decoder.norm.dtype)
    if slots > 1:
        _, caches = decoders.hidden_states_cached(decoder, layers, tokens[:, :-1], start, caches, 0)
    blank = jnp.zeros((rows, new_tokens))
    state = _State(
        jnp.int32(0), tokens[:, -1], caches, key,
        jnp.zeros((rows, 0 if automata is None else automata.whole.shape[0]), jnp.int32),
        jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32), blank.astype(jnp.int32), blank, blank,
    )  # fmt: skip

    def unfinished(state: _State) -> Bool[Array, ""]:
        return (state.step < new_tokens) & ~jnp.all(state.finished)

    def write(state: _State) -> _State:
        at = slots - 1 + state.step
        hidden, caches = decoders.hidden_states_cached(decoder, layers, state.last[:, None], start, state.caches, at)
        logits = decoders.logits(decoder, hidden[:, 0])
        key, subkey = jax.random.split(state.key)
        allowed = _may_end(logits, eos_ids, state.step >= numbers.min_new_tokens)
        chosen = _choose(logits, allowed, numbers, subkey, kinds)
        return _written(state._replace(caches=caches, key=key), chosen, automata, eos_ids)

    return jax.lax.while_loop(unfinished, write, state)._replace(caches=None)


def _may_end(logits: Array, eos_ids: tuple[int, ...], allowed: Array) -> Array:
    """No end where none is allowed yet."""
    ends = jnp.zeros(logits.shape[-1], bool).at[jnp.asarray(eos_ids)].set(True)
    return jnp.where(ends[None] & ~allowed, -jnp.inf, logits)


def _choose(logits: Array, allowed: Array, numbers: _Numbers, key: Key, kinds: tuple[bool, bool, bool]) -> sampling.Chosen:
    """Of what is allowed, by temperature, then k, then p, as transformers; `logits` are the model's own."""
    always_likeliest, some, nucleus = kinds
    if always_likeliest:
        return sampling.greedy(logits, allowed)
    distribution = allowed / numbers.temperature
    distribution = sampling.top_k(distribution, numbers.top_k) if some else distribution
    distribution = sampling.top_p(distribution, numbers.top_p) if nucleus else distribution
    return sampling.drawn(logits, distribution, key)


def _written(state: _State, chosen: sampling.Chosen, automata: Stops | None, eos_ids: tuple[int, ...]) -> _State:
    """The token goes behind the answers that have not ended."""
    open_ = ~state.finished
    token = jnp.where(open_, chosen.token, 0)
    following = state.stops if automata is None else automata.after(state.stops, token)
    ends = jnp.any(token[:, None] == jnp.asarray(eos_ids, jnp.int32)[None], axis=-1)
    if automata is not None:
        ends = ends | automata.stopped(following)

    def put(row: Array, value: Array) -> Array:
        return jax.lax.dynamic_update_slice(row, jnp.where(open_, value, 0)[:, None].astype(row.dtype), (0, state.step))

    return state._replace(
        step=state.step + 1, last=token, stops=following,
        finished=state.finished | (open_ & ends), length=state.length + open_,
        tokens=put(state.tokens, token), log_prob=put(state.log_prob, chosen.log_prob),
        sampled_log_prob=put(state.sampled_log_prob, chosen.sampled_log_prob),
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _stops(strings: tuple[str, ...], token_bytes: tuple[bytes, ...]) -> Stops:
    return stops(strings, token_bytes)
