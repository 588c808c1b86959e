"""Networks that remember: torch's numbers, steps and sequences that agree, where memory begins and gradients end."""

import itertools
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.networks.features import Flatten
from advantage.networks.mlp import Linear
from advantage.networks.recurrent import (
    GRU,
    LSTM,
    Encoded,
    Recurrence,
    RecurrentFeatures,
    Windows,
    empty_carry,
    layer,
    recurrence,
    recurrent_features,
)
from advantage.types import Space

pytestmark = pytest.mark.usefixtures("strict")
ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "torch_recurrent.npz")
SPACE = Space("box", (4,), low=-np.inf, high=np.inf)
T, N = ORACLE["obs"].shape[:2]
OBS = jnp.asarray(ORACLE["obs"])
NEVER, ALWAYS = jnp.zeros((T, N), bool), jnp.ones((T, N), bool)
along = eqx.filter_jit(lambda network, *given: network.sequence(*given))
step = eqx.filter_jit(lambda network, *given: network.step(*given))
seen = eqx.filter_jit(lambda network, windows: network(windows))
BOTH = pytest.mark.parametrize("kind", ["lstm", "gru"])


def torchs(kind, burn_in=0, from_stored=True):
    """Torch's layers as ours."""

    def linear(of, i):
        weight, bias = (ORACLE[f"{kind}/{name}_{of}_l{i}"] for name in ("weight", "bias"))
        return Linear(jnp.asarray(weight.T), jnp.asarray(bias))

    make = {"lstm": LSTM, "gru": GRU}[kind]
    cells = tuple(make(linear("ih", i), linear("hh", i)) for i in range(2))
    return RecurrentFeatures(Flatten(SPACE), cells, burn_in, from_stored)


def carry_of(kind, prefix=""):
    names = ("h", "c") if kind == "lstm" else ("h",)
    return tuple(tuple(jnp.asarray(ORACLE[f"{kind}/{prefix}{name}"][i]) for name in names) for i in range(2))


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-6)


def flags(*places):
    return NEVER.at[tuple(zip(*places, strict=True))].set(True)


def windows(carry, is_first=NEVER, held=ALWAYS, obs=OBS, following=None):
    return Windows(obs, is_first, held, carry, following)


def stepped(network, carry, is_first, obs=OBS):
    """`(features [T, N, H], the carry after each row)`, one step at a time."""
    features, after = [], []
    for t in range(len(obs)):
        x, carry = step(network, carry, obs[t], is_first[t])
        features.append(x)
        after.append(carry)
    return jnp.stack(features), after


@BOTH
def test_layers_are_those_of_torch(kind):
    """Two layers along six rows, from a state in which something is remembered."""
    features, after = along(torchs(kind), carry_of(kind), OBS, NEVER, ALWAYS)
    assert_close(features, ORACLE[f"{kind}/outputs"])
    assert_close(jax.tree.map(lambda x: x[-1], after), carry_of(kind, "last_"))


@BOTH
def test_steps_are_the_sequence(kind):
    """With memories emptied in the middle, at different rows of different sequences."""
    network, is_first = torchs(kind), flags((2, 0), (4, 1), (5, 1))
    features, after = along(network, carry_of(kind), OBS, is_first, ALWAYS)
    one_by_one, carries = stepped(network, carry_of(kind), is_first)
    assert_close(features, one_by_one)
    for t, carry in enumerate(carries):
        assert_close(jax.tree.map(lambda x, t=t: x[t], after), carry)


@BOTH
def test_nothing_is_remembered_over_a_beginning(kind):
    """What came before `is_first` changes nothing from there on, and does change what lies between."""
    network, is_first = torchs(kind), flags((3, 0))
    features, _ = along(network, carry_of(kind), OBS, is_first, ALWAYS)
    other, _ = along(network, carry_of(kind), OBS.at[:3].add(1.0), is_first, ALWAYS)
    np.testing.assert_array_equal(features[3:, 0], other[3:, 0])
    assert (features[3:, 1:] != other[3:, 1:]).all()
    fresh, _ = along(network, jax.tree.map(jnp.zeros_like, carry_of(kind)), OBS[3:], NEVER[3:], ALWAYS[3:])
    assert_close(features[3:, 0], fresh[:, 0])


def test_windows_are_rows_of_features():
    """Row by row, those of the sequence after burn-in; from nothing where no stored carry is used."""
    for burn_in, stored in itertools.product((0, 2), (True, False)):
        carry = carry_of("lstm") if stored else jax.tree.map(jnp.zeros_like, carry_of("lstm"))
        expected, _ = along(torchs("lstm"), carry, OBS, flags((4, 2)), ALWAYS)
        found = seen(torchs("lstm", burn_in, stored), windows(carry_of("lstm"), flags((4, 2))))
        assert_close(found, expected[burn_in:].reshape(-1, 5))
    features = jnp.ones((3, 5))
    assert torchs("lstm")(Encoded(features)) is features


@pytest.mark.parametrize("burn_in", [0, 2])
@BOTH
def test_what_followed_continues_each_row(kind, burn_in):
    """Features of the next observations: one step from what is remembered after each row, over ends and beginnings."""
    network, is_first = torchs(kind, burn_in), flags((3, 0), (5, 1))
    following = OBS[burn_in:] * 2.0 - 1.0
    found = seen(network, windows(carry_of(kind), is_first, following=following)).reshape(T - burn_in, N, 5)
    _, carries = stepped(network, carry_of(kind), is_first)
    for t in range(burn_in, T):
        assert_close(found[t - burn_in], step(network, carries[t], following[t - burn_in])[0])


def test_rows_that_are_not_held_do_nothing():
    """Before the oldest row the stored carry waits: it belongs to the first row that exists."""
    held = ALWAYS.at[:2, 0].set(False).at[0, 1].set(False)
    found = seen(torchs("lstm", 3), windows(carry_of("lstm"), held=held)).reshape(3, N, 5)
    for n, first in enumerate((2, 1, 0)):
        expected, _ = along(torchs("lstm"), carry_of("lstm"), OBS[first:], NEVER[first:], ALWAYS[first:])
        assert_close(found[:, n], expected[3 - first :, n])


@BOTH
def test_burn_in_has_no_gradient(kind):
    """It moves what is learned from, and is not learned from: no gradient reaches its rows or the stored carry."""

    def total(obs, carry):
        return jnp.sum(torchs(kind, 3)(windows(carry, obs=obs)) ** 2)

    of_obs, of_carry = jax.jit(jax.grad(total, argnums=(0, 1)))(OBS, carry_of(kind))
    assert (of_obs[:3] == 0).all() and (jnp.abs(of_obs[3:]).sum(axis=(1, 2)) > 0).all()
    assert all((x == 0).all() for x in jax.tree.leaves(of_carry))
    before, moved = total(OBS, carry_of(kind)), total(OBS.at[0].add(1.0), carry_of(kind))
    assert abs(float(before - moved)) > 1e-3


@BOTH
def test_layers_begin_as_torchs(kind):
    """Uniform within one over the root of the size, biases too; each layer and key its own."""
    built = recurrent_features(Recurrence(64, 2, kind), None, True)(SPACE, jax.random.PRNGKey(0))
    gates = {"lstm": 4, "gru": 3}[kind]
    assert built.size == 64 and built.cells[0].input.weight.shape == (4, gates * 64)
    assert built.cells[1].input.weight.shape == built.cells[1].recurrent.weight.shape == (64, gates * 64)
    for x in jax.tree.leaves(built.cells):
        assert 0.9 / 8 < jnp.abs(x).max() <= 1 / 8
        np.testing.assert_allclose(jnp.std(x), 1 / 8 / 3**0.5, rtol=0.15)
    assert not np.array_equal(built.cells[0].recurrent.weight, built.cells[1].recurrent.weight)
    assert not np.array_equal(layer(kind, jax.random.PRNGKey(1), 4, 64).input.weight, built.cells[0].input.weight)
    carry = empty_carry(Recurrence(64, 2, kind), 7)
    assert [x.shape for x in jax.tree.leaves(carry)] == [(7, 64)] * {"lstm": 4, "gru": 2}[kind]


def test_words():
    """What is given is kept, numbers as whole ones; what cannot be is named."""
    assert recurrence({"lstm_hidden_size": np.int64(8), "burn_in": 0}) == Recurrence(8, burn_in=0)
    wrong = {"rnn_type": "rnn", "lstm_hidden_size": 0, "n_lstm_layers": 1.5, "sequence_length": "8", "burn_in": -1}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=rf"policy_kwargs\['{name}'\]={value!r}"):
            recurrence({name: value})
