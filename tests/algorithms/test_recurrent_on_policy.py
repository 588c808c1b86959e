"""PPO and A2C that remember: rows know what was remembered, gradients flow along sequences, minibatches hold windows."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import A2C, PPO, RecurrentPPO
from advantage.algorithms import a2c, ppo
from advantage.algorithms.recurrent import RecurrentOnPolicy, remembered
from advantage.memory.rollout import sequence_length, shuffled_windows
from advantage.networks.actor_critic import Architecture, actor_critic
from advantage.networks.recurrent import Encoded, Recurrence, Steps
from advantage.types import Chunk, Observed, Space, Spec, sanitise, successor

OBS = Space("box", (3,), low=-np.inf, high=np.inf)
SPECS = {
    "discrete": Spec(OBS, Space("discrete", (), "int32", n=(3,), start=(0,))),
    "box": Spec(OBS, Space("box", (2,), low=-1.0, high=1.0)),
}
T, N, KEY = 6, 4, jax.random.PRNGKey(3)
WORDS = {"net_arch": Architecture((), (8,), (8,)), "n_steps": T, "recurrence": Recurrence(5, 2, "lstm", 3)}
CONFIG = ppo.Config(batch_size=12, n_epochs=1, **WORDS)
RECURRENT = RecurrentOnPolicy(ppo)


@functools.cache
def fresh(case="discrete", config=CONFIG, algorithm=RECURRENT):
    return jax.jit(algorithm.init, static_argnums=(0, 1))(config, SPECS[case], KEY)


@functools.cache
def acted(case="discrete", config=CONFIG, next_step=False):
    """A chunk as acting made it, both memories before each row and the log-probabilities.

    Ends of both kinds: in the next-step form a dummy row follows each.
    """
    rng, state = np.random.default_rng(0), fresh(case, config)
    first = rng.normal(size=(T + 1, N, 3)).astype(np.float32)
    truncated = np.zeros((T, N), bool)
    truncated[1, 1] = truncated[2, 2] = True
    terminated = np.zeros((T, N), bool)
    terminated[3, 3] = True
    ended, valid, is_first = terminated | truncated, np.ones((T, N), bool), np.zeros((T, N), bool)
    is_first[0, 0] = True
    if next_step:
        valid[1:] &= ~ended[:-1]
        is_first[2:] = ended[:-2]
    else:
        is_first[1:] |= ended[:-1]
    carry = jax.tree.map(lambda x: x + 0.25, RECURRENT.initial_carry(config, SPECS[case], N))
    actor, begun = RECURRENT.actor(config, state), carry
    before, actions, log_probs = [], [], []
    for t in range(T):
        before.append(carry.memory)
        seen = Observed(jnp.asarray(first[t]), jnp.asarray(is_first[t]))
        features, _ = actor.policy.features.step(carry.memory[0], *seen[:2])
        policy = actor.policy.distribution(actor.policy.latent(Encoded(features)))
        action, carry = RECURRENT.act(config, actor, carry, seen, jax.random.fold_in(KEY, t), True)
        actions.append(action)
        log_probs.append(policy.log_prob(action))
    final = rng.normal(size=(T, N, 3)).astype(np.float32)
    chunk = Chunk(
        jnp.asarray(first[:-1]), jnp.asarray(is_first), None, jnp.stack(actions),
        jnp.asarray(rng.normal(size=(T, N)), jnp.float32), jnp.asarray(terminated), jnp.asarray(truncated),
        jnp.asarray(valid), None if next_step else jnp.asarray(final), jnp.asarray(first[-1]), begun,
    )  # fmt: skip
    return chunk, before, jnp.stack(log_probs)


def features_of(state):
    return state.network.actor.features, state.network.features


def assert_close(a, b, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def update(algorithm, config, state, chunk):
    return jax.jit(lambda state, chunk: algorithm.update(config, state, (), chunk))(state, chunk)


@pytest.mark.parametrize("next_step", [False, True])
def test_rows_know_what_was_remembered_when_they_acted(next_step):
    """Both memories, of every valid row; two networks with memories of their own."""
    chunk, before, _ = acted(next_step=next_step)
    seen = jax.jit(lambda state, chunk: remembered(features_of(state), sanitise(chunk)))(fresh(), chunk)
    for t in range(T):
        # Where an episode begins nobody asks what came before.
        rows = np.asarray(chunk.valid[t] & ~chunk.is_first[t])
        for x, y in zip(jax.tree.leaves(seen.obs.carry), jax.tree.leaves(before[t]), strict=True):
            np.testing.assert_allclose(x[t][rows], y[rows], rtol=0, atol=1e-6)
    actor, critic = before[-1]
    assert not np.allclose(actor[0][0], critic[0][0])


@pytest.mark.parametrize("next_step", [False, True])
def test_what_followed_is_valued_from_what_was_remembered_then(next_step):
    """V(s') of every row by hand: one step from the memory after it, never emptied, whatever began next."""
    chunk, _, _ = acted(next_step=next_step)
    state, clean = fresh(), sanitise(chunk)
    seen = remembered(features_of(state), clean)
    values = state.network.value(successor(seen))
    critic, carry = state.network.features, chunk.carry.memory[1]
    for t in range(T):
        _, carry = critic.step(carry, clean.obs[t], clean.is_first[t])
        ended = chunk.terminated[t] | chunk.truncated[t]
        following = chunk.obs[t + 1] if t + 1 < T else chunk.last_obs
        if not next_step:
            following = jnp.where(ended[:, None], chunk.final_obs[t], following)
        features, _ = critic.step(carry, following)
        # A termination has no successor to value, nor has a row that does not count.
        rows = np.asarray(chunk.valid[t] & ~chunk.terminated[t])
        expected = state.network.value_of(features)
        np.testing.assert_allclose(values[t][rows], expected[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", SPECS)
def test_the_policy_that_acted_is_the_one_that_learns(case):
    """Log-probabilities of rows, and of whole sequences, are those of acting: the first ratio is 1 everywhere."""
    chunk, _, log_probs = acted(case)
    state = fresh(case)
    seen = remembered(features_of(state), sanitise(chunk))
    rows = ppo.prepare(CONFIG, state.network, seen)
    assert_close(rows.log_prob.reshape(T, N), log_probs)
    config = dataclasses.replace(CONFIG, batch_size=T * N, learning_rate=0.01)
    _, _, metrics = update(RECURRENT, config, state, chunk)
    assert abs(float(metrics["train/approx_kl"])) < 1e-6 and metrics["train/clip_fraction"] == 0


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_gradients_flow_along_sequences(name):
    """A2C's step and PPO's first equal those of a loss unrolled by hand, with the memory emptied where episodes begin."""
    module = {"ppo": ppo, "a2c": a2c}[name]
    config = {"ppo": dataclasses.replace(CONFIG, batch_size=T * N), "a2c": a2c.Config(**WORDS)}[name]
    algorithm, chunk = RecurrentOnPolicy(module), acted()[0]
    state = fresh("discrete", config, algorithm)
    # Policies begin nearly uniform, and memories nearly empty: gradients would be too small to be compared.
    network = jax.tree.map(lambda x: 3.0 * x, state.network)
    network = eqx.tree_at(lambda network: network.actor.head.weight, network, replace_fn=lambda x: 30.0 * x)
    state = state._replace(network=network)
    seen = remembered(features_of(state), sanitise(chunk))
    rows = module.prepare(config, state.network, seen)
    length = {"ppo": 3, "a2c": T}[name]
    assert sequence_length(config) == length

    def unrolled(network):
        memories, features = chunk.carry.memory, ([], [])
        for t in range(T):
            if t % length == 0:  # a sequence begins with what was remembered, which is data
                memories = jax.lax.stop_gradient(jax.tree.map(lambda x, t=t: x[t], seen.obs.carry))
            after = []
            for i, one in enumerate((network.actor.features, network.features)):
                x, carry = one.step(memories[i], chunk.obs[t], chunk.is_first[t])
                features[i].append(x)
                after.append(carry)
            memories = tuple(after)
        computed = [Computed(jnp.concatenate(x)) for x in features]
        network = eqx.tree_at(lambda network: (network.actor.features, network.features), network, computed)
        return module.loss(config, network, rows)[0]

    expected = jax.grad(unrolled)(state.network)
    order = jnp.arange(T * N).reshape(-1, length, N).transpose(1, 0, 2).reshape(-1)  # windows, step by step
    arranged = jax.tree.map(lambda x: x[order], rows)
    arranged = arranged._replace(obs=dataclasses.replace(arranged.obs, length=length))
    found = jax.grad(lambda network: module.loss(config, network, arranged)[0])(state.network)
    assert_close(found, expected, 1e-5)
    assert all(np.abs(one.cells[0].recurrent.weight).max() > 1e-4 for one in (found.actor.features, found.features))


class Computed(eqx.Module):
    """Features of rows that were computed before."""

    features: jax.Array

    def __call__(self, obs):
        return self.features


@pytest.mark.parametrize(("length", "n_epochs", "count"), [(3, 2, 4), (4, 3, 2), (6, 1, 4), (5, 2, 3)])
def test_minibatches_hold_whole_windows(length, n_epochs, count):
    """Every row once in each epoch, windows of consecutive steps of one environment, R beyond the end."""
    rows = T * N
    found = np.asarray(shuffled_windows(KEY, jnp.ones(rows), n_epochs, count, T, length))
    epochs = found.reshape(n_epochs, -1)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch[epoch < rows]), np.arange(rows))
    for batch in found.reshape(len(found), length, count).transpose(0, 2, 1).reshape(-1, length):
        held = batch[batch < rows]
        assert (np.diff(held) == N).all() and (batch[len(held) :] == rows).all()
        assert len(held) == 0 or held[0] // N % length == 0
    if n_epochs > 1:
        assert (epochs[0] != epochs[1]).any()


def test_windows_without_a_valid_row_come_last():
    """A rollout that was cut short: full minibatches first."""
    weight = jnp.ones((T, N)).at[3:].set(0.0).reshape(-1)
    found = np.asarray(shuffled_windows(KEY, weight, 1, 4, T, 3)).reshape(2, -1)
    assert set(found[0]) == set(range(12)) and set(found[1]) == set(range(12, 24))


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_rows_that_do_not_count_teach_nothing(name):
    """Not a bit of what is learned depends on what stands in dummy rows and in padding."""
    module = {"ppo": ppo, "a2c": a2c}[name]
    config = {"ppo": dataclasses.replace(CONFIG, n_epochs=2), "a2c": a2c.Config(**WORDS)}[name]
    algorithm, chunk = RecurrentOnPolicy(module), acted(next_step=True)[0]
    chunk = chunk._replace(valid=chunk.valid.at[-1].set(False))
    gone = ~chunk.valid
    # A dummy row's observation is the successor of the row before it, and counts.
    unseen = gone & ~jnp.concatenate([jnp.zeros_like(gone[:1]), chunk.valid[:-1]])
    other = chunk._replace(
        obs=jnp.where(unseen[..., None], jnp.nan, chunk.obs), reward=jnp.where(gone, jnp.nan, chunk.reward),
        action=jnp.where(gone, 2, chunk.action), last_obs=chunk.last_obs * jnp.nan,
    )  # fmt: skip
    state = fresh("discrete", config, algorithm)
    (one, _, metrics), (two, *_) = (update(algorithm, config, state, x) for x in (chunk, other))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(x, y)
    assert np.isfinite([float(x) for x in metrics.values()]).all()
    assert one.n_updates == (2 if name == "ppo" else 1)


def test_an_empty_chunk_changes_nothing():
    """No bit."""
    chunk = acted()[0]
    state = fresh()
    after, *_ = update(RECURRENT, CONFIG, state, chunk._replace(valid=jnp.zeros_like(chunk.valid)))
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x, y)


def test_steps_of_one_row_are_steps():
    """`length` 1 reads every row's own memory; a sequence that of its first row alone."""
    chunk, before, _ = acted()
    state = fresh()
    actor = state.network.actor.features
    carry = jax.tree.map(lambda *x: jnp.stack(x), *before)
    rows = Steps(chunk.obs, chunk.is_first, carry)
    expected = [actor.step(before[t][0], chunk.obs[t], chunk.is_first[t])[0] for t in range(T)]
    assert_close(actor(rows), jnp.stack(expected))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    assert_close(actor(dataclasses.replace(flat, length=T)), jnp.concatenate(expected), 1e-5)
    spoilt = jax.tree.map(lambda x: x.at[N:].set(jnp.nan), flat.carry)
    assert_close(actor(dataclasses.replace(flat, carry=spoilt, length=T)), jnp.concatenate(expected), 1e-5)


def test_lengths_of_sequences():
    """As few equal windows as can be; algorithms without minibatches learn along whole rollouts."""
    for n_steps, longest, expected in ((128, 16, 16), (100, 16, 15), (5, 16, 5), (17, 16, 9), (1, 4, 1)):
        recurrence = Recurrence(sequence_length=longest)
        assert sequence_length(ppo.Config(n_steps=n_steps, recurrence=recurrence)) == expected
        assert sequence_length(a2c.Config(n_steps=n_steps, recurrence=recurrence)) == n_steps


SMALL = {"lstm_hidden_size": 4, "net_arch": [4]}


def forgetful(spec, key, *, features, value_features, **words):
    return actor_critic(spec, key, **words)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RecurrentPPO("MlpPolicy", "CartPole-v1"), "is not one that RecurrentPPO takes: choose from MlpLstm"),
        (lambda: RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=8), "one window of 16 steps"),
        (lambda: PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"burn_in": 4}), "every sequence begins with what"),
        (lambda: PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"lstm_hidden_size": 4}), "for recurrent policies"),
        (
            lambda: A2C("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8, {"pi": [8], "vf": [8]}]}),
            "remember for themselves",
        ),
        (lambda: PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"enable_critic_lstm": False}), "has to be True"),
        (lambda: PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"shared_lstm": True}), "has to be False"),
        (lambda: A2C("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"sequence_length": 4}), "as long as n_steps"),
        (lambda: PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"lstm_kwargs": {"dropout": 0.1}}), "has to be None"),
        (
            lambda: PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"share_features_extractor": True}),
            "cannot be True with policy='MlpLstmPolicy'",
        ),
        (
            lambda: PPO("MlpLstmPolicy", "CartPole-v1", network=forgetful),
            "has to hold what it is given as `features` in `network.actor.features`",
        ),
    ],
)
def test_what_cannot_be_done_is_said_before_training(make, says):
    """Each by its name, with what to do."""
    with pytest.raises(ValueError, match=says):
        make()


def test_the_face_is_that_of_contrib():
    """Its defaults, `predict` with states and beginnings, a file that is loaded and trains on."""
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, policy_kwargs=SMALL)
    assert isinstance(model, PPO) and (model.n_steps, model.batch_size) == (128, 128)
    model.learn(140)
    env = model.get_env()
    obs, state = env.reset(), None
    begins = np.ones((1,), bool)
    for _ in range(3):
        action, state = model.predict(obs, state=state, episode_start=begins, deterministic=True)
        obs, _, begins, _ = env.step(action)
    again = {tuple(x.shape) for x in jax.tree.leaves(state)}
    assert again == {(1, 4)} and len(jax.tree.leaves(state)) == 4  # output and cell, of policy and value function


def test_a_file_holds_it(tmp_path):
    """Its own name, and words that are given anew."""
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, n_steps=16, batch_size=16, policy_kwargs=SMALL).learn(40)
    model.save(tmp_path / "model")
    other = RecurrentPPO.load(tmp_path / "model", env="CartPole-v1")
    obs = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], other.predict(obs, deterministic=True)[0])
    assert other.learn(20, reset_num_timesteps=False).num_timesteps == 60
    with pytest.raises(ValueError, match=r"holds a RecurrentPPO model: load it with RecurrentPPO\.load"):
        PPO.load(tmp_path / "model")


def test_predict_takes_what_predict_returned():
    """Of its structure, and for as many observations."""
    model = PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"lstm_hidden_size": 4})
    obs = np.zeros((2, 4), np.float32)
    _, state = model.predict(obs)
    model.predict(obs, state=state, episode_start=np.zeros(2, bool))
    with pytest.raises(ValueError, match="state is not what predict returned"):
        model.predict(obs, state=(np.zeros((1, 2, 4)), np.zeros((1, 2, 4))))
    smaller = PPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"lstm_hidden_size": 3}).predict(obs)[1]
    with pytest.raises(ValueError, match=r"state has arrays \[\(2, 3\).* and this policy's \[\(2, 4\)"):
        model.predict(obs, state=smaller)
    with pytest.raises(ValueError, match="episode_start is of 3 environments, observation of 2: give one for each"):
        model.predict(obs, state=state, episode_start=np.zeros(3, bool))
