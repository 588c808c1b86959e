"""Networks that remember: LSTM and GRU layers, one step at a time or along sequences.

What is remembered between steps is the carry: for each layer a tuple of arrays `[N, H]`. Recurrence is a matter of
the features: an algorithm's equations see rows of features as ever, whether these came from acting (`Encoded`), from
windows of a replay (`Windows`) or from a rollout (`Steps`), and know nothing of it.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from advantage.equations.distributions import Key
from advantage.networks.features import Flatten
from advantage.networks.mlp import Linear
from advantage.types import Space

State = tuple[Float[Array, "*batch H"], ...]
"""What one layer remembers; the first array is its output."""

Carry = tuple[State, ...]
"""What all layers remember."""


class Recurrence(NamedTuple):
    """How a policy remembers, by the words of `policy_kwargs`; the first two are RecurrentPPO's of SB3-contrib."""

    lstm_hidden_size: int = 256  # numbers a layer gives, a GRU's too
    n_lstm_layers: int = 1
    rnn_type: str = "lstm"  # or gru
    sequence_length: int = 16  # steps of a window that are learned from
    burn_in: int = 8  # steps before them, which only warm the memory up


class LSTM(eqx.Module):
    """A long short-term memory (Hochreiter & Schmidhuber, 1997); gates as in torch: input, forget, cell, output."""

    input: Linear
    recurrent: Linear
    arrays: ClassVar[int] = 2

    def __call__(self, state: State, projected: Float[Array, "*batch G"]) -> State:
        """`(output, cell)` after a row; `projected` is the input layer's."""
        output, cell = state
        i, f, g, o = jnp.split(projected + self.recurrent(output), 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


class GRU(eqx.Module):
    """A gated recurrent unit (Cho et al., 2014) as torch has it; gates: reset, update, new."""

    input: Linear
    recurrent: Linear
    arrays: ClassVar[int] = 1

    def __call__(self, state: State, projected: Float[Array, "*batch G"]) -> State:
        """`(output,)` after a row; `projected` is the input layer's."""
        (output,) = state
        of_input, of_output = (jnp.split(x, 3, axis=-1) for x in (projected, self.recurrent(output)))
        reset, update = (jax.nn.sigmoid(x + y) for x, y in zip(of_input[:2], of_output[:2], strict=True))
        new = jnp.tanh(of_input[2] + reset * of_output[2])
        return ((1.0 - update) * new + update * output,)


KINDS: dict[str, tuple[type[LSTM] | type[GRU], int]] = {"lstm": (LSTM, 4), "gru": (GRU, 3)}
"""Layers by name, with the number of their gates."""


class Encoded(NamedTuple):
    """Observations that went through the memory already."""

    features: Float[Array, "N H"]


class Windows(NamedTuple):
    """B windows of consecutive rows of the past: `burn_in` rows P, then the L rows that a batch consists of."""

    obs: PyTree  # [P+L, B, ...]
    is_first: Bool[Array, "PL B"]  # where the memory begins anew
    held: Bool[Array, "PL B"]  # rows that exist: none before the oldest or after the newest one
    carry: Carry  # [B, H] each: what the actor remembered before the first row that exists
    following: PyTree = None  # [L, B, ...]: the observations wanted are not the rows' own but those that followed


class Steps(eqx.Module):
    """Rows of a rollout, each with what every network remembered before it.

    With a `length` of L they are B sequences, row `l * B + b` the l-th of sequence b, and only what was remembered
    before a sequence is read: from there on the memory is computed, and learns.
    """

    obs: PyTree  # [*batch, ...]
    is_first: Bool[Array, "*batch"]  # where the memory begins anew
    carry: tuple[Carry, ...]  # [*batch, H] each
    length: int = eqx.field(static=True, default=1)


class RecurrentFeatures(eqx.Module):
    """Features of an observation and of what came before it in the episode."""

    inner: Flatten | eqx.Module
    cells: tuple[LSTM | GRU, ...]
    burn_in: int = eqx.field(static=True, default=0)
    from_stored: bool = eqx.field(static=True, default=True)  # windows begin with their stored carry, or with nothing
    which: int = eqx.field(static=True, default=0)  # its own among the carries of `Steps`

    @property
    def size(self) -> int:
        """The number of features."""
        return self.cells[-1].recurrent.weight.shape[0]

    def __call__(self, obs: Encoded | Windows | Steps) -> Float[Array, "*batch H"]:
        """Features `[*batch, H]`, or `[L * B, H]` of windows, row by row."""
        if isinstance(obs, Encoded):
            return obs.features
        return self._of_steps(obs) if isinstance(obs, Steps) else self._of_windows(obs)

    def step(
        self, carry: Carry, obs: PyTree, is_first: Bool[Array, "*batch"] | None = None
    ) -> tuple[Float[Array, "*batch H"], Carry]:
        """`(features, carry)` after one observation `[*batch, ...]`; the memory is emptied where `is_first`."""
        x, after = self.inner(obs), []
        for cell, state in zip(self.cells, carry, strict=True):
            state = cell(state if is_first is None else _emptied(state, is_first), cell.input(x))
            after.append(state)
            x = state[0]
        return x, tuple(after)

    def sequence(
        self, carry: PyTree, obs: PyTree, is_first: Bool[Array, "T N"], held: Bool[Array, "T N"] | None = None
    ) -> tuple[Float[Array, "T N H"], PyTree]:
        """Features of T rows `[T, N, ...]` and the carry after each `[T, N, H]`; rows not `held` change nothing."""
        x, after = self.inner(obs), []
        for cell, state in zip(self.cells, carry, strict=True):
            # What does not depend on the row before is one product for all rows.
            states = _along(cell, state, cell.input(x), is_first, held)
            after.append(states)
            x = states[0]
        return x, tuple(after)

    def _of_steps(self, steps: Steps) -> Float[Array, "*batch H"]:
        carry = steps.carry[self.which]
        if steps.length == 1:
            return self.step(carry, steps.obs, steps.is_first)[0]
        rows = steps.obs, steps.is_first, carry
        obs, is_first, carry = jax.tree.map(lambda x: x.reshape(steps.length, -1, *x.shape[1:]), rows)
        features, _ = self.sequence(jax.tree.map(lambda x: x[0], carry), obs, is_first)
        return features.reshape(-1, self.size)

    def _of_windows(self, windows: Windows) -> Float[Array, "B H"]:
        """Burn-in moves the carry alone, without a gradient (Kapturowski et al., 2019, section 3)."""
        rows, start = (windows.obs, windows.is_first, windows.held), self.burn_in
        carry = windows.carry if self.from_stored else jax.tree.map(jnp.zeros_like, windows.carry)
        if start:
            _, after = self.sequence(carry, *jax.tree.map(lambda x: x[:start], rows))
            carry = jax.lax.stop_gradient(jax.tree.map(lambda x: x[-1], after))
        features, after = self.sequence(carry, *jax.tree.map(lambda x: x[start:], rows))
        if windows.following is not None:
            # One step from what is remembered after each row: it is right at every ending.
            features, _ = self.step(after, windows.following)
        return features.reshape(-1, self.size)


def recurrent_features(
    recurrence: Recurrence, inner: Callable[[Space, Key], eqx.Module] | None, from_stored: bool = True, which: int = 0
) -> Callable[[Space, Key], RecurrentFeatures]:
    """`features` for builders of networks; `inner` makes what comes before the memory (None: `Flatten`)."""

    def build(space: Space, key: Key) -> RecurrentFeatures:
        inner_key, *keys = jax.random.split(key, recurrence.n_lstm_layers + 1)
        extractor = Flatten(space) if inner is None else inner(space, inner_key)
        size = recurrence.lstm_hidden_size
        inputs = [extractor.size, *[size] * (recurrence.n_lstm_layers - 1)]
        cells = [layer(recurrence.rnn_type, key, count, size) for key, count in zip(keys, inputs, strict=True)]
        return RecurrentFeatures(extractor, tuple(cells), recurrence.burn_in, from_stored, which)

    return build


def layer(rnn_type: str, key: Key, inputs: int, size: int) -> LSTM | GRU:
    """A layer with torch's start: all weights and biases uniform within `1 / sqrt(size)`."""
    make, gates = KINDS[rnn_type]
    width, bound = gates * size, 1.0 / math.sqrt(size)
    shapes = [(inputs, width), (width,), (size, width), (width,)]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    drawn = jnp.split(jax.random.uniform(key, (ends[-1],), jnp.float32, -bound, bound), ends[:-1])
    parts = [part.reshape(shape) for part, shape in zip(drawn, shapes, strict=True)]
    return make(Linear(*parts[:2]), Linear(*parts[2:]))


def empty_carry(recurrence: Recurrence, count: int) -> Carry:
    """The carry of `count` policies that remember nothing yet."""
    arrays = KINDS[recurrence.rnn_type][0].arrays
    shape = (count, recurrence.lstm_hidden_size)
    return tuple(tuple(jnp.zeros(shape, jnp.float32) for _ in range(arrays)) for _ in range(recurrence.n_lstm_layers))


def recurrence(words: Mapping[str, Any]) -> Recurrence:
    """A `Recurrence` from the words of `policy_kwargs`.

    Raises:
        ValueError: a value that cannot be used.
    """
    given = Recurrence(**words)
    if given.rnn_type not in KINDS:
        raise ValueError(f"policy_kwargs['rnn_type']={given.rnn_type!r} is not known: choose from {', '.join(KINDS)}")
    numbers = {}
    for name, least in (("lstm_hidden_size", 1), ("n_lstm_layers", 1), ("sequence_length", 1), ("burn_in", 0)):
        value = getattr(given, name)
        try:
            numbers[name] = operator.index(value)
        except TypeError:
            numbers[name] = -1
        if numbers[name] < least:
            raise ValueError(f"policy_kwargs[{name!r}]={value!r} has to be a whole number of at least {least}")
    return given._replace(**numbers)


def _along(
    cell: LSTM | GRU,
    state: tuple[Float[Array, "N H"], ...],
    projected: Float[Array, "T N G"],
    is_first: Bool[Array, "T N"],
    held: Bool[Array, "T N"] | None,
) -> tuple[Float[Array, "T N H"], ...]:
    """The state after each of T rows `[T, N, H]`."""

    def step(state: State, row: tuple[Array, Array, Array | None]) -> tuple[State, State]:
        projected, first, there = row
        moved = cell(_emptied(state, first), projected)
        if there is not None:
            moved = jax.tree.map(lambda new, old: jnp.where(there[:, None], new, old), moved, state)
        return moved, moved

    return jax.lax.scan(step, state, (projected, is_first, held))[1]


def _emptied(state: State, is_first: Bool[Array, "*batch"]) -> State:
    return jax.tree.map(lambda x: jnp.where(is_first[..., None], 0.0, x), state)
