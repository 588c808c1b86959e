"""Arrays packed for the way into compiled programs and back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DQN, PPO, SAC
from advantage.algorithms import dqn
from advantage.drivers import host
from advantage.drivers.host import rollout_layout
from advantage.drivers.packing import SMALL, ActorParts, Layout, Packed, Table
from advantage.networks.q_network import QNetwork, q_network
from advantage.types import Space, Spec

TREE = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "count": np.int32(7),
    "image": np.arange(SMALL + 1, dtype=np.uint8),
    "bias": np.array([8.0, 9.0], np.float32),
    "flags": np.array([[True], [False]]),
    "nothing": np.zeros((0, 2), np.float32),
    "steps": np.array([3, 4], np.int32),
}


def with_seeds(tree, num_seeds):
    """Each leaf `[S, ...]`, different for every seed."""
    return jax.tree.map(lambda x: np.stack([np.roll(x, s) for s in range(num_seeds)]), tree)


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_pack_and_unpack_are_inverse(leading, xp):
    """Whatever the leading axes; shapes, dtypes and values come back."""
    tree = with_seeds(TREE, 3) if leading else TREE
    layout = Layout(TREE)
    arrays = layout.pack(tree, xp)
    sizes = {str(x.dtype): x.shape for x in arrays}
    assert sizes == {"float32": (*leading, 8), "int32": (*leading, 3), "uint8": (*leading, SMALL + 1), "bool": (*leading, 2)}
    back = layout.unpack(arrays)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for name, leaf in tree.items():
        assert back[name].dtype == leaf.dtype
        np.testing.assert_array_equal(back[name], leaf)


def test_one_leaf_by_hand():
    """Leaves of one dtype lie behind each other in the order of the tree (dicts sort their names)."""
    layout = Layout({"a": np.zeros(2, np.float32), "b": np.zeros((1, 2), np.float32)})
    (vector,) = layout.pack({"a": np.array([1.0, 2.0], np.float32), "b": np.array([[3.0, 4.0]], np.float32)}, np)
    np.testing.assert_array_equal(vector, [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(layout.leaf({0: vector}, 1), [[3.0, 4.0]])


def test_unpacked_numpy_arrays_are_views():
    """What is written through them is shipped, for every seed."""
    layout = Layout(TREE)
    arrays = layout.zeros((2,))
    rows = layout.unpack(arrays)
    for name, leaf in with_seeds(TREE, 2).items():
        rows[name][:] = leaf
    for packed, expected in zip(arrays, layout.pack(with_seeds(TREE, 2), np), strict=True):
        np.testing.assert_array_equal(packed, expected)


def test_programs_are_compiled_once_for_each_layout():
    """A layout is a constant of compiled programs: equal shapes must give the same object."""
    spec = Spec(Space("box", (4,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(2,), start=(0,)))
    layout = rollout_layout(spec, 8, 2)
    masked = dataclasses.replace(spec, masked=True)
    assert rollout_layout(spec, 8, 2) is layout and rollout_layout(masked, 8, 2) is not layout
    traced = []

    @jax.jit
    def program(packed):
        traced.append(None)
        return packed.unpack().reward.sum()

    for value in (1.0, 2.0):
        packed = Packed(layout.zeros(()), layout)
        packed.unpack().reward[:] = value
        assert program(packed) == 16 * value
    assert len(traced) == 1


def test_metrics_cross_in_one_array():
    """With their names, whatever their dtype; a vector by its mean."""
    table = jax.jit(jax.vmap(lambda x: Table.of({"b": x + 0.5, "a": jnp.int32(1), "c": jnp.stack([x, x + 4])})))(
        jnp.arange(3.0)
    )
    assert table.values.shape == (3, 3) and table.names == ("b", "a", "c")
    np.testing.assert_array_equal(table.read()["c"], [2.0, 3.0, 4.0])
    np.testing.assert_array_equal(table.read()["b"], [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(table.read()["a"], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("algorithm,most", [(DQN, 12), (PPO, 8)])
def test_few_arrays_cross_at_an_update(algorithm, most):
    """Forty arrays for each of DQN's updates took longer than what it computes."""
    driver = algorithm("MlpPolicy", "CartPole-v1", seed=0)._driver
    held = jax.tree.leaves((driver.state, driver.memory))
    assert len(driver._arrays) <= most < len(held)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_state_can_be_replaced(num_seeds):
    """What is set is what is read and trained on; the memory stays as it was."""
    model = DQN("MlpPolicy", "CartPole-v1", seeds=num_seeds, learning_starts=0, buffer_size=100, seed=0)
    model.learn(20)
    driver = model._driver
    memory = jax.tree.map(np.array, driver.memory)
    state = jax.tree.map(lambda x: np.array(x) + np.ones((), x.dtype), driver.state)
    driver.state = state
    for got, expected in zip(*map(jax.tree.leaves, (driver.state, state)), strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(*map(jax.tree.leaves, (driver.memory, memory)), strict=True):
        np.testing.assert_array_equal(got, expected)
    model.learn(20, reset_num_timesteps=False)
    assert (np.asarray(driver.state.n_updates) == state.n_updates + 5).all()


def test_setting_the_state_copies_no_large_array_of_the_memory():
    """A replay may be larger than half of what a device holds."""
    driver = DQN("MlpPolicy", "CartPole-v1", buffer_size=10_000, seed=0)._driver
    large = [x for x in driver.memory if isinstance(x, jax.Array)]
    driver.state = jax.tree.map(jnp.array, driver.state)
    assert len(large) == 5 and all(any(x is now for now in driver._arrays) for x in large)


def test_a_leaf_of_another_shape_is_refused():
    """It would shift all that lies behind it."""
    with pytest.raises(ValueError, match=r"an array has shape \(3,\), expected \(2,\)"):
        Layout({"a": np.zeros(2, np.float32)}).pack({"a": np.zeros(3, np.float32)}, np)


class Maker:
    """An algorithm whose actor has a small leaf and a large one of the state, and one of its own."""

    @staticmethod
    def actor(config, state):
        return {"small": state["bias"], "large": state["weight"], "own": state["bias"] * config}


def test_actors_are_joined_from_the_state_and_their_own():
    """Only what is not in the state is computed and carried beside it."""
    state = {"bias": jnp.arange(3.0), "other": jnp.arange(2.0), "weight": jnp.ones(SMALL)}
    layout = Layout((state, jnp.zeros(3)))
    parts = ActorParts(Maker, 2.0, state, layout)
    actor = Maker.actor(2.0, state)
    own, arrays = parts.own(actor), layout.pack((state, jnp.zeros(3)))
    assert len(own) == 1 and len(parts.held(arrays)) == 2
    joined = parts.join(parts.held(arrays), own)
    for name, leaf in actor.items():
        np.testing.assert_array_equal(joined[name], leaf)


class Scaled(QNetwork):
    """A network with a plain number beside its arrays."""

    scale: float

    def __call__(self, obs):
        """Values of the actions."""
        return super().__call__(obs) * self.scale


def scaled(spec, key, **settings):
    """A user's network."""
    network = q_network(spec, key, **settings)
    return Scaled(network.features, network.hidden, network.head, 0.5)


def with_values(config, network, target_network, batch):
    """A user's loss with a metric for each action."""
    total, (metrics, error) = dqn.loss(config, network, target_network, batch)
    return total, (metrics | {"train/values": jnp.mean(network(batch.obs), axis=0)}, error)


def test_what_users_replace_may_hold_numbers_and_vectors():
    """A number in a network is a leaf like any other; of a metric that is a vector the mean is logged."""
    settings = {"learning_starts": 0, "buffer_size": 100, "seed": 0, "network": scaled, "loss": with_values}
    driver = DQN("MlpPolicy", "CartPole-v1", **settings)._driver
    config = dqn.Config(learning_starts=0, buffer_size=100, network=scaled, loss=with_values)
    (report,) = driver.run(config, {}, 0, 4)
    assert driver.state.network.scale.shape == (1,) and np.isfinite(report.metrics["train/values"]).all()


def test_a_step_at_a_time_copies_no_replay(monkeypatch):
    """An update after every step, of one environment: its temporary memory is far below the ring's size."""
    sizes, programs_of = [], host._programs

    def watched(*arguments):
        programs = programs_of(*arguments)

        def update(*given):
            compiled = programs.update.lower(*given).compile()
            sizes.append(compiled.memory_analysis().temp_size_in_bytes)
            return programs.update(*given)

        return programs._replace(update=update)

    monkeypatch.setattr(host, "_programs", watched)
    small = {"policy_kwargs": {"net_arch": [4]}, "batch_size": 8, "learning_starts": 10}
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=300_000, seed=0, **small)
    next(model._driver.run(model._config, {}, 0, 2))
    ring = sum(x.nbytes for x in jax.tree.leaves(model._driver.memory))
    assert ring > 8_000_000 and max(sizes) < ring / 20
