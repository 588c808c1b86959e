"""Models with `PrioritizedReplayBuffer`: every algorithm, beta over training, files, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DQN, PPO, SAC, HerReplayBuffer, Linear, PrioritizedReplayBuffer
from advantage.algorithms import crossq, ddpg, discrete_sac, dqn, sac, td3, tqc
from advantage.algorithms.normalised import Normalised
from advantage.equations.normalisation import Normalisation
from advantage.models import agent_of
from advantage.networks.continuous import Widths
from advantage.training.files import NotAModel
from advantage.types import Chunk, Space, Spec

PER = {"replay_buffer_class": PrioritizedReplayBuffer}
SMALL = {
    "learning_starts": 16, "buffer_size": 300, "batch_size": 8, "train_freq": 4, "policy_kwargs": {"net_arch": [4]}, "seed": 3,
}  # fmt: skip


def small(face=DQN, env="CartPole-v1", **settings):
    return face("MlpPolicy", env, **{**SMALL, **PER, **settings})


def shares(model):
    """Each seed's row shares `[S, leaves]`."""
    tree = np.asarray(model._driver.memory.priorities.tree)
    return tree[:, tree.shape[1] // 2 :]


@pytest.mark.parametrize("algorithm", [dqn, sac, td3, ddpg, discrete_sac, tqc, crossq])
def test_every_algorithm_takes_priorities(algorithm):
    """An update of five seeds, normalised too, gives state and memory of the structure it was given; nothing is computed."""
    choice = algorithm in (dqn, discrete_sac)
    action = Space("discrete", (), "int32", n=(3,), start=(0,)) if choice else Space("box", (2,), low=-1.0, high=1.0)
    spec = Spec(Space("box", (3,), low=-9.0, high=9.0), action)
    config = algorithm.Config(batch_size=4, buffer_size=32, n_steps=3, net_arch=(4,) if algorithm is dqn else Widths((4,), (4,)))
    algorithm = Normalised(algorithm, Normalisation())
    agent = agent_of(algorithm, PrioritizedReplayBuffer())
    flags, obs = jnp.zeros((4, 2), bool), jnp.zeros((4, 2, 3))
    chunk = Chunk(obs, flags, None, jnp.asarray(action.zeros((4, 2))), jnp.zeros((4, 2)), flags, flags, ~flags, obs, obs[0])
    held = jax.eval_shape(lambda key: (algorithm.init(config, spec, key), agent.init_memory(config, spec, 2)), jax.random.PRNGKey(0))

    def update(state, memory):
        return agent.update(config, state, memory, chunk)[:2]

    seeds = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), held)
    assert jax.eval_shape(jax.vmap(update), *seeds) == seeds


def with_beta(config, network, target_network, batch):
    """DQN's loss, and beta as it sees it."""
    total, (metrics, error) = dqn.loss(config, network, target_network, batch)
    return total, (metrics | {"train/seen": jnp.asarray(config.replay_beta, jnp.float32)}, error)


@pytest.mark.parametrize("env", ["CartPole-v1", pytest.param("advantage/CartPole-v1", marks=pytest.mark.slow)])
def test_priorities_are_learned_from(env):
    """Under both drivers, two seeds, two environments, returns of three steps: rows that were drawn have shares of their
    own, new ones the greatest, each seed its own, and sums fit; beta goes to its end in a straight line by steps."""
    settings = {"loss": with_beta, "replay_buffer_kwargs": {"beta": 0.2, "final_beta": 0.8}}
    model = small(env=env, seeds=2, n_envs=2, n_steps=3, gradient_steps=2, **settings)
    assert model.replay_beta == pytest.approx(0.2) and model._logged()["replay_beta"] == "train/beta"
    if env.startswith("advantage"):
        model._driver._adapt = lambda updates, seconds: None  # segments of one update
    reports = list(model._driver.run(model._config, model._active_schedules(), 0, 160))
    seen = [float(np.ravel(report.metrics["train/seen"])[0]) for report in reports]
    np.testing.assert_allclose(seen[2:], (0.2 + 0.6 * np.arange(8, 168, 8) / 160)[2:], rtol=1e-5)
    found = shares(model)
    assert ((found > 0).sum(axis=1) == 160).all()
    for one, tree, greatest in zip(found, *model._driver.memory.priorities, strict=True):
        assert len(np.unique(one)) > 30 and (one == greatest).any() and one.max() <= greatest
        node = np.arange(1, len(one))
        np.testing.assert_array_equal(tree[node], tree[2 * node] + tree[2 * node + 1])
    assert not np.array_equal(*found)


def test_beta_can_have_a_schedule_of_its_own(tmp_path):
    """Set on the model as any other number that a schedule changes; a file keeps it."""
    model = small()
    model.replay_beta = Linear(1.0, 0.5)
    assert model._active_schedules()["replay_beta"] == Linear(1.0, 0.5)
    model.save(tmp_path / "m")
    assert DQN.load(tmp_path / "m")._active_schedules()["replay_beta"] == Linear(1.0, 0.5)
    assert DQN("MlpPolicy", "CartPole-v1")._active_schedules().keys() == {"exploration_rate"}


def test_files(tmp_path):
    """A model file keeps the settings; the memory with its priorities has a file of its own."""
    model = small(replay_buffer_kwargs={"alpha": 0.5, "eps": 0.1}).learn(60)
    model.save(tmp_path / "m")
    model.save_replay_buffer(tmp_path / "r")
    again = DQN.load(tmp_path / "m", env="CartPole-v1")
    assert again.replay_buffer_class is PrioritizedReplayBuffer
    assert again._prioritised == model._prioritised == PrioritizedReplayBuffer(0.5, 0.4, 1.0, 0.1)
    assert not shares(again).any()
    again.load_replay_buffer(tmp_path / "r")
    np.testing.assert_array_equal(shares(again), shares(model))
    with pytest.raises(NotAModel, match=r"memory\S* is no array"):
        small(replay_buffer_class=None).save_replay_buffer(tmp_path / "u")
        again.load_replay_buffer(tmp_path / "u")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: small(replay_buffer_kwargs={"alpha": 2}), ValueError, "alpha=2.0 is out of range"),
        (lambda: small(replay_buffer_kwargs={"eps": 0}), ValueError, "eps=0.0 has to be positive"),
        (lambda: small(replay_buffer_kwargs={"betas": 0.4}), TypeError, "no setting 'betas': did you mean 'beta'"),
        (lambda: small(replay_buffer_class=[HerReplayBuffer, PrioritizedReplayBuffer]), ValueError, "one of them"),
        (lambda: PPO("MlpPolicy", "CartPole-v1", **PER), TypeError, "PPO keeps no replay memory"),
        (lambda: small(replay_beta=0.5), TypeError, "no hyper-parameter 'replay_beta'"),
    ],
)
def test_what_cannot_work_is_refused(make, error, message):
    """One clear message each, before training."""
    with pytest.raises(error, match=message):
        make()


def test_room_is_counted_with_the_tree():
    """Two numbers for each row, up to a power of two."""
    from advantage.models import replay_bytes

    plain, model = small(replay_buffer_class=None), small()
    given = model.algorithm, model._config, model._spec, 1
    assert replay_bytes(*given, model._prioritised) - replay_bytes(*given) == 2 * 512 * 4 + 4
    assert plain._prioritised is None and "prioritised" in model._settings() and "prioritised" not in plain._settings()
    assert "PrioritizedReplayBuffer draws" in SAC.__doc__


def test_the_exponent_as_a_number():
    """It stays what it is over training; out of range, or without priorities, it is refused."""
    model = DQN("MlpPolicy", "advantage/CartPole-v1", replay_buffer_class=PrioritizedReplayBuffer)
    model.replay_beta = 0.5
    assert model._resolved()[0].replay_beta == 0.5
    with pytest.raises(ValueError, match="replay_beta=2.0 is out of range"):
        model.replay_beta = 2.0
    with pytest.raises(ValueError, match="replay_beta is for replay_buffer_class=PrioritizedReplayBuffer"):
        DQN("MlpPolicy", "advantage/CartPole-v1").replay_beta = 0.5
