"""Double DQN: against rlax, on values that are wrong by chance, and in a whole gradient step."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DoubleDQN, DuelingDQN
from advantage.algorithms import dqn
from advantage.algorithms.double_dqn import double_value
from advantage.memory.uniform import Batch
from advantage.networks.dueling import dueling_network
from advantage.types import Space, Spec

RLAX = np.load(Path(__file__).parents[1] / "oracles" / "rlax.npz")
SPEC = Spec(Space("box", (4,), low=-np.inf, high=np.inf), Space("discrete", (), "int32", n=(3,), start=(0,)))


def table(values):
    """A network whose observations are the rows of a table."""
    return lambda obs: jnp.asarray(values)[obs]


def test_the_error_is_that_of_rlax():
    """The online network chooses among the next actions, the target network judges."""
    rows = len(RLAX["td/q"])
    batch = Batch(
        jnp.arange(rows), jnp.asarray(RLAX["td/actions"], jnp.int32), jnp.asarray(RLAX["td/rewards"]),
        jnp.asarray(RLAX["td/discounts"]), jnp.arange(rows, 2 * rows),
    )  # fmt: skip
    online = table(np.concatenate([RLAX["td/q"], RLAX["double/selector"]]))
    target = table(np.concatenate([RLAX["td/q"], RLAX["td/next_q"]]))
    error, _ = dqn.td_error(dqn.Config(bootstrap=double_value), online, target, batch)
    np.testing.assert_allclose(-error, RLAX["double/errors"], rtol=1e-5, atol=1e-6)
    single, _ = dqn.td_error(dqn.Config(), online, target, batch)
    np.testing.assert_allclose(-single, RLAX["td/errors"], rtol=1e-5, atol=1e-6)
    assert np.abs(error - single).max() > 0.5


def test_errors_by_chance_do_not_add_up():
    """Ten actions worth 0, and two networks that are wrong by standard normal errors: the greatest is 1.54 on average."""
    noise = jax.random.normal(jax.random.PRNGKey(0), (2, 20_000, 10))
    greedy, double = (
        one(table(noise[0]), table(noise[1]), jnp.arange(20_000), None) for one in (dqn.greedy_value, double_value)
    )
    np.testing.assert_allclose(jnp.mean(greedy), 1.5388, atol=0.02)
    np.testing.assert_allclose(jnp.mean(double), 0.0, atol=0.03)


def test_what_followed_is_worth_its_best_legal_action():
    """Values 1, 2, 3 judged by 30, 20, 10, and masks that leave all, the first two, or the last."""
    online, target = table([[1.0, 2.0, 3.0]] * 3), table([[30.0, 20.0, 10.0]] * 3)
    mask, rows = jnp.asarray([[True, True, True], [True, True, False], [False, False, True]]), jnp.arange(3)
    assert dqn.greedy_value(online, target, rows, mask).tolist() == [30, 30, 10]
    assert double_value(online, target, rows, mask).tolist() == [10, 20, 10]
    batch = Batch(rows, jnp.zeros(3, jnp.int32), jnp.zeros(3), jnp.ones(3), rows, None, mask)
    for bootstrap, expected in ((dqn.greedy_value, [29, 29, 9]), (double_value, [9, 19, 9])):
        error, _ = dqn.td_error(dqn.Config(bootstrap=bootstrap), online, target, batch)
        assert (-error).tolist() == expected


def test_a_gradient_step_has_its_target():
    """Nothing flows into what chooses; priorities are of the same errors."""
    config = dqn.Config(net_arch=(4,), batch_size=8, buffer_size=64, bootstrap=double_value)
    state = dqn.init(config, SPEC, jax.random.PRNGKey(0))
    state = state._replace(target_network=dqn.init(config, SPEC, jax.random.PRNGKey(1)).network)
    obs, next_obs = jax.random.normal(jax.random.PRNGKey(2), (2, 8, 4))
    batch = Batch(obs, jnp.zeros(8, jnp.int32), jnp.ones(8), jnp.full(8, 0.9), next_obs)
    new, _, error = jax.jit(dqn.learn)(config, state, batch)
    chosen = np.argmax(state.network(next_obs), axis=-1)
    target = 1 + 0.9 * np.asarray(state.target_network(next_obs))[np.arange(8), chosen]
    np.testing.assert_allclose(error, np.abs(np.asarray(state.network(obs))[:, 0] - target), rtol=1e-5)

    def by_hand(network):
        difference = network(obs)[:, 0] - target
        return jnp.mean(jnp.where(jnp.abs(difference) < 1, 0.5 * difference**2, jnp.abs(difference) - 0.5))

    found = jax.grad(lambda network: dqn.loss(config, network, state.target_network, batch)[0])(state.network)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(by_hand)(state.network)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (new.network, state.network)), strict=True))


@pytest.mark.parametrize("face", [DoubleDQN, DuelingDQN])
def test_faces_are_dqn_with_another_function(face, tmp_path):
    """By default; files keep it, and both can be had at once."""
    small = {"learning_starts": 8, "buffer_size": 64, "policy_kwargs": {"net_arch": [8, 4]}, "seed": 0}
    model = face("MlpPolicy", "advantage/CartPole-v1", **small).learn(64)
    expected = {"DoubleDQN": (double_value, "QNetwork"), "DuelingDQN": (dqn.greedy_value, "DuelingNetwork")}[face.__name__]
    assert (model.bootstrap, type(model._seed_state(0).network).__name__) == expected
    model.save(tmp_path / "model")
    loaded = face.load(tmp_path / "model")
    assert loaded._config == model._config
    obs = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    both = DuelingDQN("MlpPolicy", "advantage/CartPole-v1", bootstrap=double_value, **small)
    assert both.bootstrap is double_value and both.network is dueling_network
    assert dataclasses.replace(both._config, bootstrap=dqn.greedy_value) == DuelingDQN("MlpPolicy", **small)._config
