"""C51, QR-DQN and Rainbow: losses and steps of independent implementations, what priorities are, what acts, and files."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import C51, QRDQN, PrioritizedReplayBuffer, Rainbow
from advantage.algorithms import c51, dqn, qrdqn, rainbow
from advantage.algorithms.double_dqn import double_action, double_value, greedy_action
from advantage.memory import prioritised
from advantage.memory.uniform import Batch
from advantage.networks import noisy, optimisers
from advantage.networks.distributional import CategoricalNetwork, QuantileNetwork
from advantage.networks.dueling import dueling_network
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.networks.q_network import QNetwork, q_network
from advantage.types import Observed, Space, Spec

ORACLES = Path(__file__).parents[1] / "oracles"
RLAX, CONTRIB = (np.load(ORACLES / f"{name}.npz") for name in ("rlax", "sb3_contrib"))
OBS = Space("box", (4,), low=-np.inf, high=np.inf)
SPEC = Spec(OBS, Space("discrete", (), "int32", n=(3,), start=(0,)))
KEY = jax.random.PRNGKey(0)


def table(values):
    """A network whose observations are the rows of a table `[rows, actions, numbers]`."""
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    return lambda obs: jnp.asarray(flat)[obs]


def batch_of_rlax(rows, mask=None):
    return Batch(
        jnp.arange(rows), jnp.asarray(RLAX["td/actions"], jnp.int32), jnp.asarray(RLAX["td/rewards"]),
        jnp.asarray(RLAX["td/discounts"]), jnp.arange(rows, 2 * rows), None, mask,
    )  # fmt: skip


# -- C51 -----------------------------------------------------------------------------------------------


def categorical(first, second):
    """Logits of the rows of a batch and of what follows them."""
    atoms = RLAX["categorical/atoms"]
    return CategoricalNetwork(table(np.concatenate([first, second])), len(atoms), float(atoms[0]), float(atoms[-1]))


MEANS = np.concatenate([RLAX["categorical/selector"]] * 2)


class Chooser(CategoricalNetwork):
    """A network whose means are the selector's, whatever its logits: only means choose."""

    def __call__(self, obs):
        return jnp.asarray(MEANS)[obs]


class QuantileChooser(QuantileNetwork):
    """The same of quantiles."""

    def __call__(self, obs):
        return jnp.asarray(MEANS)[obs]


def judged_by_selector():
    network = categorical(RLAX["categorical/logits"], RLAX["categorical/next_logits"])
    return Chooser(network.network, network.n_atoms, network.v_min, network.v_max)


@pytest.mark.parametrize("choose,expected", [(greedy_action, "losses"), (double_action, "double_losses")])
def test_the_loss_of_c51_is_rlaxs(choose, expected):
    """The cross-entropy with the projected target, of the action that either network chooses."""
    rows, atoms = len(RLAX["td/rewards"]), RLAX["categorical/atoms"]
    config = c51.Config(n_atoms=len(atoms), v_min=float(atoms[0]), v_max=float(atoms[-1]), next_action=choose)
    target = categorical(RLAX["categorical/logits"], RLAX["categorical/next_logits"])
    batch = batch_of_rlax(rows)
    total, (metrics, error) = c51.loss(config, judged_by_selector(), target, batch)
    np.testing.assert_allclose(total, RLAX[f"categorical/{expected}"].mean(), rtol=1e-5)
    for i in range(rows):  # each by its weight
        one = batch._replace(weight=jnp.zeros(rows).at[i].set(rows))
        found, _ = c51.loss(config, judged_by_selector(), target, one)
        np.testing.assert_allclose(found, RLAX[f"categorical/{expected}"][i], rtol=1e-4)
    wanted = c51.target_probs(config, judged_by_selector(), target, batch)
    entropy = -np.sum(np.where(wanted > 0, wanted * np.log(np.maximum(wanted, 1e-30)), 0.0), axis=1)
    np.testing.assert_allclose(error, RLAX[f"categorical/{expected}"] - entropy, rtol=1e-3, atol=1e-5)


def test_what_acts_are_the_means():
    """Called, a categorical network answers the expectation of each action's returns."""
    found = categorical(RLAX["categorical/logits"], RLAX["categorical/next_logits"])(jnp.arange(10, 20))
    np.testing.assert_allclose(found, RLAX["categorical/next_means"], rtol=1e-5, atol=1e-6)
    quantiles = QuantileNetwork(table(np.moveaxis(RLAX["quantile/quantiles"], 1, 2)), 11)(jnp.arange(10))
    np.testing.assert_allclose(quantiles, RLAX["quantile/quantiles"].mean(axis=1), rtol=1e-5, atol=1e-6)


def test_illegal_actions_are_nobodys_future():
    """The target's action is the best of the legal ones, by C51 and QR-DQN."""
    rows = len(RLAX["td/rewards"])
    means, mask = RLAX["categorical/next_means"], np.ones((rows, 4), bool)
    mask[np.arange(rows), means.argmax(axis=1)] = False  # what would be chosen
    network = categorical(RLAX["categorical/logits"], RLAX["categorical/next_logits"])
    config = c51.Config(n_atoms=11, v_min=-2.0, v_max=3.0)
    with_mask = c51.target_probs(config, network, network, batch_of_rlax(rows, jnp.asarray(mask)))
    second = np.argsort(means, axis=1)[:, -2]
    forced = c51.target_probs(
        dataclasses.replace(config, next_action=lambda *_: jnp.asarray(second)), network, network, batch_of_rlax(rows)
    )
    np.testing.assert_array_equal(with_mask, forced)
    without = c51.target_probs(config, network, network, batch_of_rlax(rows))
    assert np.abs(with_mask - without).max() > 0.05


def test_termination_leaves_the_reward_alone():
    """With a discount of 0 all probability is at the reward, whatever follows."""
    network = categorical(RLAX["categorical/logits"], RLAX["categorical/next_logits"])
    batch = batch_of_rlax(10)._replace(discount=jnp.zeros(10), reward=jnp.full(10, 0.75))
    found = c51.target_probs(c51.Config(n_atoms=11, v_min=-2.0, v_max=3.0), network, network, batch)
    expected = np.zeros((10, 11))
    expected[:, 5:7] = 0.5  # halfway between 0.5 and 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


# -- QR-DQN --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choose,expected", [(greedy_action, "losses"), (double_action, "double_losses")])
def test_the_loss_of_qrdqn_is_rlaxs(choose, expected):
    """Added up over quantiles, a mean over the target's, of the action that either network chooses."""
    rows = len(RLAX["td/rewards"])
    both = [np.moveaxis(RLAX[f"quantile/{name}"], 1, 2) for name in ("quantiles", "next_quantiles")]
    target = QuantileNetwork(table(np.concatenate(both)), 11)
    config = qrdqn.Config(n_quantiles=11, next_action=choose)
    total, (_, error) = qrdqn.loss(config, QuantileChooser(target.network, 11), target, batch_of_rlax(rows))
    np.testing.assert_allclose(error, RLAX[f"quantile/{expected}"], rtol=1e-4)
    np.testing.assert_allclose(total, np.mean(error), rtol=1e-6)


def contrib_network(prefix):
    """sb3-contrib's network as ours: its outputs are `[quantiles, actions]`, ours the other way round."""
    def layer(i):
        return Linear(*(jnp.asarray(CONTRIB[f"{prefix}.quantile_net.{i}.{name}"].T) for name in ("weight", "bias")))

    head = layer(4)
    order = np.arange(15).reshape(5, 3).T.reshape(-1)
    head = Linear(head.weight[:, order], head.bias[order])
    return QuantileNetwork(QNetwork(Flatten(OBS), MLP((layer(0), layer(2)), jax.nn.relu), head), 5)


def test_gradient_steps_are_those_of_sb3_contrib():
    """Three steps on one batch: losses, and every weight after the first and the third."""
    rows = {name: jnp.asarray(CONTRIB[f"qrdqn/{name}"]) for name in ("obs", "actions", "rewards", "next_obs")}
    discount = np.where(CONTRIB["qrdqn/terminated"], 0.0, CONTRIB["qrdqn/settings/gamma"]).astype(np.float32)
    batch = Batch(rows["obs"], rows["actions"].astype(jnp.int32), rows["rewards"], jnp.asarray(discount), rows["next_obs"])
    config = qrdqn.Config(learning_rate=float(CONTRIB["qrdqn/settings/learning_rate"]), n_quantiles=5, net_arch=(16, 16))
    state = dqn.begun(config, contrib_network("qrdqn/before/quantile_net"), KEY)
    state = state._replace(target_network=contrib_network("qrdqn/before/quantile_net_target"))
    step, losses = jax.jit(lambda state: qrdqn.learn(config, state, batch)), []
    for count in (1, 2, 3):
        state, metrics, _ = step(state)
        losses.append(metrics["train/loss"])
        if count != 2:
            expected = contrib_network(f"qrdqn/after{count}/quantile_net")
            for x, y in zip(*map(jax.tree.leaves, (state.network, expected)), strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)
    np.testing.assert_allclose(losses, CONTRIB["qrdqn/log/loss"], rtol=1e-5)


# -- Rainbow -------------------------------------------------------------------------------------------


def test_every_set_of_parts_is_a_setting():
    """All sixty-four: what is in is there, what is out is not."""
    for count in range(7):
        for parts in itertools.combinations(rainbow.PARTS, count):
            found = rainbow.settings(parts)
            name = found["network"].__name__
            assert ("dueling" in name, "noisy" in name) == ("dueling" in parts, "noisy" in parts)
            chooses = found["next_action"] is double_action if "distributional" in parts else found["bootstrap"] is double_value
            assert chooses == ("double" in parts)
            assert ("replay_buffer_class" in found) == ("prioritised" in parts)
            assert found.get("n_steps", 1) == (3 if "multi-step" in parts else 1)
            assert ("exploration_initial_eps" in found) == ("noisy" in parts)
    assert rainbow.settings(())["network"] is q_network and rainbow.settings(["dueling"])["network"] is dueling_network
    with pytest.raises(ValueError, match=r"parts=\['sarsa'\] are not known: choose from double, prioritised, dueling"):
        rainbow.settings(["sarsa"])


SMALL = {
    "learning_starts": 16, "buffer_size": 256, "batch_size": 16, "policy_kwargs": {"net_arch": [16]}, "seed": 0,
    "train_freq": 16, "gradient_steps": 16,
}  # fmt: skip


def test_each_part_leaves_its_trace():
    """After a little training scales of noise have moved, rows have priorities of their own, there are atoms and two streams."""
    model = Rainbow("MlpPolicy", "advantage/CartPole-v1", n_atoms=21, v_min=0, v_max=20, **SMALL).learn(256)
    network = model._seed_state(0).network
    assert isinstance(network, CategoricalNetwork) and network.network.numbers == 21
    for layer in (*network.network.value_stream.layers, network.network.value_head, network.network.advantage_head):
        assert isinstance(layer, noisy.NoisyLinear)
        assert np.std(layer.scale * np.sqrt(layer.scale.shape[0])) > 1e-5
        assert not np.any(layer.noise.inputs) and not np.any(layer.noise.outputs)  # at rest
    assert isinstance(model._driver.memory, prioritised.Replay)
    tree = np.asarray(model._driver.memory.priorities.tree)[0]
    shares = tree[len(tree) // 2 :][:256]
    assert len(np.unique(shares)) > 32
    batch = model._driver.agent.drawn(model._config, *jax.tree.map(lambda x: jnp.asarray(x)[0], (model._driver.state, model._driver.memory)))[1]
    assert np.isclose(batch.discount, 0.99**3).any() and (np.asarray(batch.weight) < 1).any()
    assert model._prioritised.alpha == 0.5 and model.next_action is double_action and model.exploration_rate == 0


def test_parts_can_be_given_otherwise():
    """Rainbow without priorities, and with other settings of them: those of a class do not outlive it."""
    assert Rainbow("MlpPolicy", replay_buffer_class=PrioritizedReplayBuffer)._prioritised.alpha == 0.6
    plain = Rainbow("MlpPolicy", replay_buffer_class=None)
    assert plain._prioritised is None and plain.optimizer is optimisers.adam_rainbow
    assert Rainbow("MlpPolicy", replay_buffer_kwargs={"alpha": 0.2})._prioritised.alpha == 0.2
    assert Rainbow("MlpPolicy", n_steps=1).n_steps == 1


@pytest.mark.parametrize("face", [C51, QRDQN, Rainbow])
def test_files(face, tmp_path):
    """A loaded model has the same settings, also where a default was left out, and chooses alike."""
    options = {} if face is not Rainbow else {"replay_buffer_class": None}
    model = face("MlpPolicy", "advantage/CartPole-v1", **SMALL, **options).learn(64)
    model.save(tmp_path / "model")
    loaded = face.load(tmp_path / "model")
    assert loaded._config == model._config and loaded._prioritised is None
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_bad_input():
    """Atoms that span nothing, too few of them, no quantiles."""
    for given, message in (
        ({"v_min": 1, "v_max": 1}, "v_min=1.0 has to be less than v_max=1.0: they bound discounted returns"),
        ({"n_atoms": 1}, "n_atoms=1 is out of range: give a number at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            C51("MlpPolicy", "advantage/CartPole-v1", **given)
    with pytest.raises(ValueError, match="n_quantiles=0 is out of range"):
        QRDQN("MlpPolicy", "advantage/CartPole-v1", policy_kwargs={"n_quantiles": 0})


def test_acting_is_by_means_of_legal_actions():
    """A network of several numbers for each action acts by legal means alone."""
    config = c51.Config(net_arch=(4,), n_atoms=5)
    state = c51.init(config, SPEC, KEY)
    assert state.network.network.head.weight.shape == (4, 15)
    obs = jax.random.normal(KEY, (64, 4))
    means = np.asarray(state.network(obs))
    mask = np.ones((64, 3), bool)
    mask[np.arange(64), means.argmax(axis=1)] = False
    action, _ = c51.act(config, c51.actor(config, state), (), Observed(obs, jnp.zeros(64, bool), jnp.asarray(mask)), KEY, False)
    np.testing.assert_array_equal(action, np.argsort(means, axis=1)[:, -2])
