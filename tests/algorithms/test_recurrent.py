"""Policies that remember: what is stored is what acted, what is learned from, the model's face, refusals, resuming."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DDPG, REINFORCE, SAC, TD3, TQC, TRPO, HerReplayBuffer, Rainbow, VecNormalize, make_vec_env
from advantage.algorithms import c51, ddpg, dqn
from advantage.algorithms.double_dqn import double_value
from advantage.algorithms.normalised import Normalised
from advantage.algorithms.recurrent import Recurrent
from advantage.equations.normalisation import normalisation
from advantage.memory import sequences
from advantage.models import agent_of
from advantage.networks.continuous import Widths
from advantage.networks.recurrent import Encoded, Recurrence
from advantage.types import Chunk, Observed, Space, Spec

SPEC = Spec(Space("box", (3,), low=-np.inf, high=np.inf), Space("box", (2,), low=-1.0, high=1.0))
CONFIG = ddpg.Config(
    net_arch=Widths((8,), (8,)), batch_size=16, buffer_size=60, learning_starts=0, action_noise=0.1,
    recurrence=Recurrence(8, 1, "lstm", 4, 2),
)  # fmt: skip
KEY = jax.random.PRNGKey(3)
T, N = 5, 2
RECURRENT = Recurrent(ddpg)
NORMALISED = Normalised(RECURRENT, normalisation())


@functools.cache
def fresh(algorithm):
    return jax.jit(algorithm.init, static_argnums=(0, 1))(CONFIG, SPEC, KEY)


def acted(algorithm, state):
    """A chunk as acting made it, with a beginning and a row that does not count; and the carry before each row."""
    rng = np.random.default_rng(0)
    obs, final_obs = jnp.asarray(rng.normal(size=(2, T, N, 3)), jnp.float32)
    is_first = jnp.zeros((T, N), bool).at[0, 0].set(True).at[3, 1].set(True)
    valid = jnp.ones((T, N), bool).at[2, 1].set(False)
    carry = jax.tree.map(lambda x: x + 0.5, algorithm.initial_carry(CONFIG, SPEC, N))
    actor, begun, before, actions = algorithm.actor(CONFIG, state), carry, [], []
    for t in range(T):
        before.append(carry.memory)
        action, carry = algorithm.act(CONFIG, actor, carry, Observed(obs[t], is_first[t]), KEY, True)
        actions.append(action)
    dirty = obs.at[2, 1].set(jnp.where(valid[1, 1], obs[2, 1], jnp.nan))
    chunk = Chunk(
        dirty, is_first, None, jnp.stack(actions), jnp.asarray(rng.normal(size=(T, N)), jnp.float32),
        jnp.zeros((T, N), bool).at[1, 1].set(True), jnp.zeros((T, N), bool), valid, final_obs, final_obs[0], begun,
    )  # fmt: skip
    return chunk, before


@pytest.mark.parametrize("algorithm", [RECURRENT, NORMALISED], ids=["plain", "normalised"])
def test_what_is_stored_is_what_acted(algorithm):
    """The carry beside each valid row is the one with which its action was chosen, normalised observations or not."""
    state = fresh(algorithm)
    chunk, before = acted(algorithm, state)
    found = jax.jit(sequences.carries, static_argnums=(0, 1))(algorithm, CONFIG, state, chunk)
    for t in range(T):
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(before[t]), strict=True):
            # Where an episode begins nobody asks what came before.
            rows = np.asarray(chunk.valid[t] & ~chunk.is_first[t])
            np.testing.assert_allclose(x[t][rows], y[rows], rtol=0, atol=1e-6)
    one = jax.tree.map(lambda x: x[:1], chunk._replace(carry=None, last_obs=None))
    found = sequences.carries(algorithm, CONFIG, state, one._replace(carry=chunk.carry))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(chunk.carry.memory), strict=True):
        np.testing.assert_array_equal(x, y[None])


@functools.cache
def drawn(algorithm):
    """A minibatch of a few rows that acting made, and the memory it is from."""
    agent, state = agent_of(algorithm), fresh(algorithm)
    replay = sequences.remember(algorithm, CONFIG, state, sequences.init_memory(CONFIG, SPEC, N), acted(algorithm, state)[0])
    memory = agent.init_memory(CONFIG, SPEC, N)
    return agent.drawn(CONFIG, state, memory._replace(inner=replay) if algorithm is NORMALISED else replay)[1], replay


def test_rows_that_are_not_there_teach_nothing():
    """Whatever stands in rows past the newest one and before the oldest changes no bit of what is learned."""
    algorithm, state = NORMALISED, fresh(NORMALISED)
    batch, replay = drawn(algorithm)
    assert int(replay.size.sum()) == 9
    gone, held = batch.weight == 0, batch.obs.held
    assert gone.any() and not held[:2].all()
    moved = [jnp.where(held[..., None], x.obs, 9.0) for x in (batch.obs, batch.next_obs)]
    following = jnp.where(held[2:][..., None], batch.next_obs.following, 9.0)
    other = batch._replace(
        reward=jnp.where(gone, 9.0, batch.reward),
        action=jnp.where(gone[:, None], 0.9, batch.action),
        obs=batch.obs._replace(obs=moved[0]),
        next_obs=batch.next_obs._replace(obs=moved[1], following=following),
    )
    learn = jax.jit(algorithm.learn, static_argnums=0)
    (after, metrics, _), (again, *_) = (learn(CONFIG, state, one) for one in (batch, other))
    assert np.isfinite([float(x) for x in metrics.values()]).all()
    for x, y in zip(*map(jax.tree.leaves, (after, again)), strict=True):
        np.testing.assert_array_equal(x, y)
    weights = [x.inner.actor.features.cells[0].recurrent.weight for x in (state, after)]
    assert not np.array_equal(*weights)


def test_actor_begins_with_the_stored_carry_and_critics_with_nothing():
    """And what they remember are two things."""
    state, batch = fresh(RECURRENT), drawn(RECURRENT)[0]
    windows = batch.obs._replace(is_first=jnp.zeros_like(batch.obs.is_first), held=jnp.ones_like(batch.obs.held))
    other = windows._replace(carry=jax.tree.map(lambda x: x + 1.0, windows.carry))
    actor, critics = state.actor.features, state.critics.features
    assert np.abs(actor(windows) - actor(other)).max() > 1e-3
    np.testing.assert_array_equal(critics(windows), critics(other))
    assert not np.array_equal(actor.cells[0].recurrent.weight, critics.cells[0].recurrent.weight)


CHOICES = Spec(SPEC.observation, Space("discrete", (), "int32", n=(3,), start=(0,)), masked=True)
RECURRENCE = {"net_arch": (8,), "batch_size": 16, "buffer_size": 60, "recurrence": Recurrence(8, 1, "gru", 4, 2)}


@pytest.mark.parametrize("module,options", [(dqn, {"bootstrap": double_value}), (c51, {"n_atoms": 5})], ids=["double", "c51"])
def test_values_of_windows_are_those_that_acted(module, options):
    """With the parameters of then each row's values, and those of what followed by both networks, are as they were rolled."""
    config, algorithm = module.Config(**RECURRENCE, **options), Recurrent(module)
    state = jax.jit(algorithm.init, static_argnums=(0, 1))(config, CHOICES, KEY)
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(T + 1, N, 3)), jnp.float32)
    is_first = jnp.zeros((T + 1, N), bool).at[0].set(True).at[3, 1].set(True)
    mask = jnp.asarray(np.eye(3, dtype=bool)[rng.integers(3, size=(T + 1, N))])
    carry, actor, values, actions = algorithm.initial_carry(config, CHOICES, N), algorithm.actor(config, state), [], []
    features, remembered = actor.network.features, carry.memory
    for t in range(T + 1):
        x, remembered = features.step(remembered, obs[t], is_first[t])
        values.append(state.network(Encoded(x)))
        action, carry = algorithm.act(config, actor, carry, Observed(obs[t], is_first[t], mask[t]), KEY, False)
        actions.append(action)
    assert (jnp.argmax(mask, axis=-1) == jnp.stack(actions)).all()  # the only legal one
    none = jnp.zeros((T, N), bool)
    chunk = Chunk(
        obs[:-1], is_first[:-1], mask[:-1], jnp.stack(actions[:-1]), jnp.ones((T, N)), none, none.at[2, 1].set(True), ~none,
        obs[1:], obs[-1], algorithm.initial_carry(config, CHOICES, N), None, mask[1:], mask[-1],
    )  # fmt: skip
    memory = sequences.remember(algorithm, config, state, sequences.init_memory(config, CHOICES, N), chunk)
    batch = sequences.sample_windows(memory, KEY, 64, 2, 4, 0.9)
    found, after = state.network(batch.obs), state.target_network(batch.next_obs)
    rows = {np.asarray(obs[t, n]).tobytes(): (t, n) for t, n in np.ndindex(T, N)}
    seen = np.asarray(batch.obs.obs[2:]).reshape(-1, 3)
    checked = set()
    for row in np.flatnonzero(np.asarray(batch.weight) > 0):
        t, n = rows[seen[row].tobytes()]
        np.testing.assert_allclose(found[row], values[t][n], atol=1e-5)
        np.testing.assert_array_equal(batch.next_mask[row], mask[t + 1, n])
        if (t, n) != (2, 1):  # whose next row is another episode's
            np.testing.assert_allclose(after[row], values[t + 1][n], atol=1e-5)
        checked.add((t, n))
    assert len(checked) == T * N
    _, metrics, errors = jax.jit(algorithm.learn)(config, state, batch)
    assert errors.shape == (256,) and all(np.isfinite(x) for x in metrics.values())


WORDS = {"lstm_hidden_size": 8, "sequence_length": 4, "burn_in": 2, "net_arch": [8]}
SMALL = {"learning_starts": 8, "buffer_size": 60, "batch_size": 8, "train_freq": 4, "seed": 3}


def made(face=TD3, env="Pendulum-v1", words=(), **settings):
    return face("MlpLstmPolicy", env, policy_kwargs={**WORDS, **dict(words)}, **{**SMALL, **settings})


def test_predict_hands_on_what_is_remembered():
    """SB3's convention: nothing is remembered at first, `state` goes on, `episode_start` empties; none of it trains."""
    model = made(seeds=2)
    obs = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)  # three steps of four environments
    ask = functools.partial(model.predict, deterministic=True)
    first, state = ask(obs[0])
    second, state = ask(obs[1], state=state)
    assert not np.allclose(second, ask(obs[1])[0], atol=1e-6)
    begun = ask(obs[0], state=None, episode_start=np.ones(4, bool))[1]
    again, _ = ask(obs[1], state=begun, episode_start=np.zeros(4, bool))
    np.testing.assert_array_equal(again, second)
    starts = np.array([True, False, True, False])
    third, _ = ask(obs[2], state=state, episode_start=starts)
    np.testing.assert_allclose(third[starts], ask(obs[2])[0][starts], atol=1e-6)
    np.testing.assert_allclose(third[~starts], ask(obs[2], state=state)[0][~starts], atol=1e-6)
    one, state = ask(obs[0, 0], seed_index=1)
    assert one.shape == (1,) and not np.allclose(one, first[0], atol=1e-6)
    assert ask(obs[1, 0], state=state, episode_start=np.array([False]), seed_index=1)[0].shape == (1,)
    with pytest.raises(ValueError, match="state is of 1 environments, observation of 4"):
        ask(obs[1], state=state)


def test_files_keep_how_a_policy_remembers(tmp_path):
    """Kind and sizes of the memory are in the model file, which is read without them."""
    env = VecNormalize(make_vec_env("Pendulum-v1", 1))  # which is taken off: the memory stays
    model = made(env=env, words={"rnn_type": "gru", "n_lstm_layers": 2}).learn(16)
    model.save(tmp_path / "model")
    loaded = TD3.load(tmp_path / "model")
    assert loaded.recurrence == Recurrence(8, 2, "gru", 4, 2) and loaded.policy_name == "MlpLstmPolicy"
    obs, states = np.ones((2, 3), np.float32), [None, None]
    for _ in range(3):
        a, states[0] = model.predict(obs, states[0], deterministic=True)
        b, states[1] = loaded.predict(obs, states[1], deterministic=True)
        np.testing.assert_array_equal(a, b)
    assert len(jax.tree.leaves(states[0])) == 2


RUNS = {
    "host, two seeds, mid-chunk": (
        "Pendulum-v1", {"n_envs": 2, "seeds": 2, "action_noise": "ornstein-uhlenbeck_0.2"}, 74,
    ),
    "JAX": ("advantage/Pendulum-v1", {}, 48),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the callbacks are not those of the checkpoint")
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    """What is remembered, by the actor and beside each row, is part of a checkpoint."""
    env, settings, stop = RUNS[run]
    make = functools.partial(made, DDPG, env, {"rnn_type": "gru"}, **settings)
    whole, first = make().learn(96), make()
    jax_env = env.startswith("advantage/")
    stopped = {} if jax_env else {"callback": lambda local, _: local["self"].num_timesteps < stop}
    first.learn(96, checkpoint_dir=tmp_path, checkpoint_every=stop if jax_env else None, **stopped)
    resumed = DDPG.resume(tmp_path, at=stop if jax_env else None)
    assert resumed.num_timesteps < 96
    resumed.learn()
    ours, theirs = ((m._driver.state, m._driver.memory) for m in (whole, resumed))
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert np.abs(whole._driver.memory.carry[0][0]).max() > 0


def test_what_cannot_remember_says_so():
    """Each with one error before training: other algorithms, and settings that do not go together."""
    for face in (REINFORCE, TRPO):
        fit = "DQN, C51, QRDQN, IQN, PPO, A2C, SAC, TD3, DDPG or TQC"
        with pytest.raises(ValueError, match=f"is not built for {face.__name__}: use {fit}"):
            face("MlpLstmPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="'MlpLstmPolicy' is not one that Rainbow takes: choose from MlpPolicy, CnnPolicy"):
        Rainbow("MlpLstmPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match=r"policy_kwargs\['burn_in'\] is for recurrent policies: use 'MlpLstmPolicy'"):
        SAC("MlpPolicy", policy_kwargs={"burn_in": 3})
    with pytest.raises(TypeError, match="no 'lstm_hidden' here: did you mean 'lstm_hidden_size'"):
        SAC("MlpLstmPolicy", policy_kwargs={"lstm_hidden": 3})
    with pytest.raises(ValueError, match="'shared_lstm'] has to be False"):
        SAC("MlpLstmPolicy", policy_kwargs={"shared_lstm": True})
    assert SAC("MlpLstmPolicy", policy_kwargs={"enable_critic_lstm": True}).recurrence == Recurrence()
    wrong = {
        "n_steps=3 cannot be used with a recurrent policy": {"n_steps": 3},
        "use_sde=True cannot be used with a recurrent policy": {"use_sde": True, "face": SAC},
        "batch_size=3 counts steps, and is less than one window of sequence_length=4": {"batch_size": 3},
        "buffer_size=8 holds 4 rows for each of 2 environments, fewer than burn_in=2": {"buffer_size": 8, "n_envs": 2},
        "replay_buffer_class=HerReplayBuffer cannot be used with policy='MlpLstmPolicy'": {
            "replay_buffer_class": HerReplayBuffer
        },
    }
    for message, settings in wrong.items():
        with pytest.raises(ValueError, match=message):
            made(**settings)


def test_observations_in_a_dictionary():
    """TQC, which has quantiles besides; what is learned is finite."""
    env = "goals/PointReach-v0"
    model = TQC("MultiInputLstmPolicy", env, policy_kwargs=WORDS, **SMALL).learn(24)
    assert all(np.isfinite(x).all() for x in model.get_parameters()["policy"].values())
    with pytest.raises(ValueError, match="takes no Dict observations: use 'MultiInputLstmPolicy'"):
        made(env=env)


def test_words_given_to_load_change_no_others(tmp_path):
    """A window's burn-in is changed; what the networks are made of stays the file's. Other policies have none."""
    made(words={"rnn_type": "gru"}).save(tmp_path / "model.zip")
    given = ({}, {"policy_kwargs": {"burn_in": 1}})
    stored, found = (TD3.load(tmp_path / "model.zip", **words)._config.recurrence for words in given)
    assert found == stored._replace(burn_in=1) and stored.rnn_type == "gru"
    SAC("MlpPolicy", "advantage/Pendulum-v1", policy_kwargs={"net_arch": [4]}).save(tmp_path / "plain.zip")
    with pytest.raises(ValueError, match="burn_in.*is for recurrent policies"):
        SAC.load(tmp_path / "plain.zip", policy_kwargs={"burn_in": 1})
