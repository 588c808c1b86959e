"""Endings and exact totals under every kind of environment: in the chunks themselves, and in what is learned.

`probes.Endings` (see there) mixes terminations, truncations and both at once; its values are known.
"""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage import DQN, SubprocVecEnv, make_vec_env
from advantage.algorithms import a2c, c51, crossq, ddpg, discrete_sac, dqn, iqn, ppo, qrdqn, reinforce, sac, td3, tqc, trpo
from advantage.algorithms.double_dqn import double_value
from advantage.drivers.fused import FusedDriver
from advantage.drivers.host import HostDriver
from advantage.envs.probes import Endings, TimeLimitLoop
from advantage.envs.vector import SyncEnvs
from advantage.equations.objectives import chosen
from advantage.memory import uniform
from advantage.networks.batch_norm import evaluated
from advantage.networks.continuous import Widths
from advantage.networks.discrete import discrete_critics
from advantage.networks.q_network import q_network
from advantage.types import Agent, Chunk, sanitise, successor

HOST = ["sync", "same", "next", "disabled"]
KINDS = [*HOST, "jax"]
GAMMA = 0.8
REPLAY = {
    "learning_rate": 0.03, "buffer_size": 600, "learning_starts": 50, "batch_size": 32, "train_freq": 8,
    "gradient_steps": 8, "gamma": GAMMA,
}  # fmt: skip
TARGETS = {"tau": 0.3, "n_steps": 2, "net_arch": Widths((4,), ())}
ON_POLICY = {"gamma": GAMMA, "net_arch": ppo.Architecture()}
LEARNERS = {
    "ppo": ppo.Config(
        n_steps=32, batch_size=32, n_epochs=8, learning_rate=0.03, gamma=GAMMA, gae_lambda=0.9, max_grad_norm=10.0,
        net_arch=ppo.Architecture(),
    ),
    "a2c": a2c.Config(n_steps=8, learning_rate=0.03, use_rms_prop=False, max_grad_norm=10.0, **ON_POLICY),
    "trpo": trpo.Config(n_steps=32, batch_size=32, learning_rate=0.03, **ON_POLICY),
    "reinforce": reinforce.Config(train_freq=8, learning_rate=0.03, max_grad_norm=10.0, **ON_POLICY),
    "dqn": dqn.Config(target_update_interval=64, net_arch=(), n_steps=2, **REPLAY),
    "double": dqn.Config(target_update_interval=64, net_arch=(), n_steps=2, bootstrap=double_value, **REPLAY),
    "c51": c51.Config(target_update_interval=64, net_arch=(), n_steps=2, v_min=-1.0, v_max=7.0, **REPLAY),
    "qrdqn": qrdqn.Config(target_update_interval=64, net_arch=(), n_steps=2, n_quantiles=5, **REPLAY),
    "iqn": iqn.Config(
        target_update_interval=64, net_arch=(32, 8), n_steps=2, n_tau_samples=4, n_tau_prime_samples=4, n_quantile_samples=8,
        quantile_embedding_dim=8, **REPLAY | {"learning_rate": 0.01},
    ),
    "sac": sac.Config(ent_coef=0.0, **TARGETS, **REPLAY),  # entropy would add to the values
    "td3": td3.Config(**TARGETS, **REPLAY),
    "ddpg": ddpg.Config(action_noise=0.5, **TARGETS, **REPLAY),
    "discrete_sac": discrete_sac.Config(ent_coef=0.0, **TARGETS, **REPLAY),
    "tqc": tqc.Config(ent_coef=0.0, n_quantiles=5, top_quantiles_to_drop_per_net=0, **TARGETS, **REPLAY),
    "crossq": crossq.Config(ent_coef=0.0, n_steps=2, net_arch=Widths((4,), (16,)), **REPLAY),
}  # fmt: skip
CONTINUOUS = ["sac", "td3", "ddpg", "tqc", "crossq"]
POLICY = ["ppo", "a2c", "trpo", "reinforce"]
STEPS = dict.fromkeys(LEARNERS, 1600) | {"qrdqn": 2400, "iqn": 4000, "ppo": 64 * 20, "a2c": 4000, "trpo": 64 * 40, "reinforce": 4000}
ZEROS = {"learning_rate": lambda left: 0.03 * left}  # the noise of the last updates averages out


def driver_of(toys, kind, agent, config, num_seeds, num_envs, env=None):
    """A driver of one kind of environment, ready to run; without `env` of `Endings`, with actions that fit."""
    continuous = "box" in getattr(agent.algorithm, "ACTION_SPACES", ()) and "discrete" not in agent.algorithm.ACTION_SPACES
    if kind == "jax":
        env = env or Endings(continuous)
        driver = FusedDriver(agent, env, 5, num_seeds, num_envs, devices=jax.local_devices()[:1])
    else:
        make = toys.EndingsBoxGym if continuous else toys.EndingsGym
        driver = HostDriver(agent, toys.vector_envs(kind, num_seeds, num_envs, make), 5)
    driver.init(config)
    return driver


def collected(driver, config, targets):
    """Chunks `[S, T, N, ...]` up to each of the targets."""
    chunks, at = [], 0
    for target in targets:
        while at < target:
            # One chunk at a time; the fused driver may do several before it reports.
            to = min(at + config.n_steps * driver.num_envs, target)
            for report in driver.run(config, {}, at, to):
                chunks.append(jax.tree.map(np.array, driver.memory))
                at = report.steps
    return chunks


def check_rows(toys, chunks, seed, env):
    """One environment's valid rows against the rules of `Endings`; returns how many there are."""
    rows = []
    for chunk in chunks:
        one = jax.tree.map(lambda x: jnp.asarray(x[seed]), chunk)
        following = np.asarray(successor(sanitise(one)))
        rows += [
            (np.asarray(one.obs)[t, env], following[t, env], *(np.asarray(x)[t, env] for x in one[1:2] + one[4:7]))
            for t in np.flatnonzero(np.asarray(one.valid)[:, env])
        ]
    steps, ended, expected = 0, True, None
    for obs, after, is_first, reward, terminated, truncated in rows:
        place = int(np.argmax(obs))
        assert np.array_equal(obs, np.eye(5)[place])
        assert is_first or not ended, "an episode began without is_first"
        if not is_first:
            assert place == expected, "a row does not follow the one before"
        steps = 1 if is_first else steps + 1
        assert reward == toys.REWARDS[place]
        assert terminated == (place == 2)
        assert truncated == (steps == toys.LIMIT)
        assert np.argmax(after) == toys.FOLLOWING[place], "the successor is not the true one"
        expected, ended = toys.FOLLOWING[place], bool(terminated | truncated)
    return len(rows)


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_hold_every_step_and_its_true_successor(toys, kind, num_seeds):
    """Rows follow each other, start where is_first says and end with their own final observation."""
    config = toys.RecorderConfig(n_steps=8)
    driver = driver_of(toys, kind, toys.recorder, config, num_seeds, 3)
    chunks = collected(driver, config, [96])
    for seed in range(num_seeds):
        counts = [check_rows(toys, chunks, seed, env) for env in range(3)]
        assert sum(counts) == 96
        assert int(driver.seed_state(seed).seen) == 96
        recent = driver.recent(seed)
        assert recent.total > 20 and set(recent.lengths.tolist()) <= {1, 2, 3}
        assert len(recent.returns) == min(recent.total, 100)


@pytest.mark.parametrize("num_seeds,num_envs", [(1, 1), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_totals_are_exact(toys, kind, num_seeds, num_envs):
    """Every seed gets exactly the steps asked for, however they divide, and every call continues rightly."""
    config = toys.RecorderConfig(n_steps=4)
    driver = driver_of(toys, kind, toys.recorder, config, num_seeds, num_envs)
    at, chunks = 0, []
    for more in (1, 7, 12, 25, 2, 5, 6):
        for report in driver.run(config, {}, at, at + more):
            chunks.append(jax.tree.map(np.array, driver.memory))
        at += more
        assert report.steps == at
        for seed in range(num_seeds):
            assert int(driver.seed_state(seed).seen) == at
            if kind != "jax":  # which hands out only a segment's last chunk
                counts = [check_rows(toys, chunks, seed, env) for env in range(num_envs)]
                assert sum(counts) == at


def test_a_seed_that_waits_for_others_begins_anew(toys):
    """Next-step autoreset: a seed without dummy rows is done first; its uncounted steps leave no hidden gap."""
    mode = toys.AutoresetMode.NEXT_STEP
    make = lambda length: toys.SyncVectorEnv([lambda: toys.Counting(length)], autoreset_mode=mode)
    driver = HostDriver(toys.recorder, toys.VectorEnvs([make(2), make(60)]), 5)
    config = toys.RecorderConfig(n_steps=4)
    driver.init(config)
    rows = []
    for start, stop in ((0, 10), (10, 20)):
        for _ in driver.run(config, {}, start, stop):
            chunk = jax.tree.map(lambda x: np.array(x)[1, :, 0], driver.memory._replace(carry=(), last_obs=()))
            rows += zip(chunk.obs[chunk.valid, 0], chunk.is_first[chunk.valid], strict=True)
    assert len(rows) == 20
    for (before, _), (obs, is_first) in itertools.pairwise(rows):
        assert is_first or obs == before + 1


def test_seeds_stopped_apart_still_reach_the_same_total(toys):
    """A run stopped in mid-chunk where seeds have done different numbers of steps gives each its exact total."""
    config = toys.RecorderConfig(n_steps=8)
    driver = driver_of(toys, "next", toys.recorder, config, 3, 1)
    at = []
    list(driver.run(config, {}, 0, 60, lambda step: at.append(step.steps) or step.steps < 21))
    assert at[-1] == 21
    report = next(driver.run(config, {}, 21, 60))  # stopped between two chunks
    list(driver.run(config, {}, report.steps, 60))
    assert [int(driver.seed_state(s).seen) for s in range(3)] == [60] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_last_vector_step_counts_the_lowest_environments(toys, kind):
    """Where N does not divide the total, environments of lower index get the odd steps."""
    config = toys.RecorderConfig(n_steps=4)
    driver = driver_of(toys, kind, toys.recorder, config, 1, 3)
    list(driver.run(config, {}, 0, 5))
    valid = np.asarray(driver.memory.valid)[0]
    if kind != "next":  # which has dummy rows in between
        assert valid.tolist() == [[True] * 3, [True, True, False], [False] * 3, [False] * 3]
    assert valid.sum() == 5


@pytest.mark.parametrize("kind", ["next"])
def test_dummy_rows_are_invalid_and_alone(toys, kind):
    """Next-step autoreset: exactly the row after each end is invalid, and the row after that begins anew."""
    config = toys.RecorderConfig(n_steps=40)
    driver = driver_of(toys, kind, toys.recorder, config, 1, 2)
    driver_run = driver.run(config, {}, 0, 60)
    next(driver_run)
    chunk = jax.tree.map(lambda x: np.array(x)[0], driver.memory._replace(carry=()))
    written = np.cumsum(chunk.valid.sum(axis=1)) < 60
    for env in range(2):
        done = (chunk.terminated | chunk.truncated)[written, env] & chunk.valid[written, env]
        assert (~chunk.valid[written, env])[1:].tolist() == done[:-1].tolist()
        assert chunk.is_first[written, env][1:][~chunk.valid[written, env][:-1]].all()


def learned(driver, name, seed, obs=None, action=None):
    """The values of the five places, or of other observations; of action values those of an `action` for each."""
    state, obs = jax.tree.map(jnp.asarray, driver.seed_state(seed)), jnp.eye(5) if obs is None else obs
    if name in CONTINUOUS:
        # Where the policy acts: critics that have seen nothing else are nowhere else right.
        actor, critics = state.actor, state.critics
        if name == "crossq":
            actor, critics = evaluated(actor, state.running.actor), evaluated(critics, state.running.critics)
        action = actor(obs) if name in ("td3", "ddpg") else actor.distribution(actor.latent(obs)).mode()
        values = critics(obs, action)  # of each critic, and of TQC's quantiles
        return np.asarray(values.mean(axis=(0, 2)) if name == "tqc" else values.mean(axis=0))
    if name == "discrete_sac":
        return np.asarray(chosen(state.critics(obs).mean(axis=0), state.actor(obs).mode() if action is None else action))
    if name in POLICY:
        return np.asarray(state.network.value(obs))
    return np.asarray(state.network(obs).mean(axis=-1) if action is None else chosen(state.network(obs), action))


LEARNED = [
    *itertools.product([*((kind, 3) for kind in KINDS), ("sync", 1)], ["ppo", "dqn"]),
    *(((kind, 3), "sac") for kind in KINDS),
    *itertools.product([("sync", 1), ("jax", 3)], ["td3", "ddpg"]),
    *itertools.product([("jax", 3)], ["discrete_sac", "tqc", "crossq", "a2c", "trpo", "reinforce", "c51", "qrdqn", "iqn"]),
]


@pytest.mark.parametrize("kind,num_seeds,name", [(*which, name) for which, name in LEARNED])
def test_learned_values_are_the_true_ones(toys, kind, num_seeds, name):
    """Terminations end a return, truncations do not: the learned values are those in closed form."""
    config = LEARNERS[name]
    driver = driver_of(toys, kind, getattr(toys, name), config, num_seeds, 2)
    total = STEPS[name] + 1  # a last, partial chunk
    list(driver.run(config, ZEROS | getattr(toys, name).algorithm.schedules(config), 0, total))
    truth = Endings().value(np.eye(5), GAMMA)
    for seed in range(num_seeds):
        np.testing.assert_allclose(learned(driver, name, seed), truth, atol=0.2)


class MaskedEndings(Endings):
    """The only legal action is the place's parity; another costs more than any return."""

    def action_mask(self, env_state):
        return jnp.arange(2) == env_state.place % 2

    def step(self, env_state, action, key):
        state, transition = super().step(env_state, action, key)
        fine = self.action_mask(env_state)[action]
        return state, transition._replace(reward=jnp.where(fine, transition.reward, -100.0))


def optimistic(make):
    """Networks to which what is never tried, and never may be, is worth 20: more than anything is."""
    illegal = jnp.arange(5)[:, None] % 2 != jnp.arange(2)

    def made(*arguments, **options):
        network = make(*arguments, **options)
        return eqx.tree_at(lambda x: x.head.weight, network, jnp.where(illegal, 20.0, network.head.weight))

    return made


MASKED = {name: LEARNERS[name] for name in POLICY} | {
    "dqn": dataclasses.replace(LEARNERS["dqn"], network=optimistic(q_network)),
    "double": dataclasses.replace(LEARNERS["double"], network=optimistic(q_network)),
    "discrete_sac": dataclasses.replace(LEARNERS["discrete_sac"], critics=optimistic(discrete_critics)),
}


@pytest.mark.parametrize("kind,name", [*itertools.product(["sync", "jax"], MASKED), ("async", "ppo"), ("async", "dqn")])
def test_masks_fit_at_every_ending(toys, kind, name):
    """An action legal in the first state of an episode may not be so in the last one of the episode before."""
    config, agent = MASKED[name], getattr(toys, name)
    if kind == "async":
        driver = HostDriver(agent, SubprocVecEnv([toys.MaskedEndingsGym] * 2).host, 5)
        driver.init(config)
    elif kind == "sync":
        driver = HostDriver(agent, SyncEnvs([[toys.MaskedEndingsGym() for _ in range(2)]]), 5)
        driver.init(config)
    else:
        driver = driver_of(toys, kind, agent, config, 1, 2, MaskedEndings())
    list(driver.run(config, ZEROS | agent.algorithm.schedules(config), 0, STEPS[name] + 1))
    found, truth = learned(driver, name, 0, action=jnp.arange(5) % 2), Endings().value(np.eye(5), GAMMA)
    np.testing.assert_allclose(found, truth, atol=0.2)


@pytest.mark.parametrize("name", ["ppo", "dqn", "sac"])
def test_truncation_taken_for_termination_misses_the_values(toys, name):
    """The test above can tell: with the wrong update the ring's values are far too low."""
    right, config = getattr(toys, name), LEARNERS[name]

    def wrong(config, state, memory, chunk: Chunk):
        return right.update(config, state, memory, chunk._replace(terminated=chunk.terminated | chunk.truncated))

    agent = Agent(right.algorithm, wrong, right.init_memory)
    driver = driver_of(toys, "jax", agent, config, 1, 2)
    list(driver.run(config, ZEROS | right.algorithm.schedules(config), 0, STEPS[name] + 1))
    truth = Endings().value(np.eye(5), GAMMA)
    assert (truth - learned(driver, name, 0))[3:].min() > 0.4


@pytest.mark.parametrize("name", LEARNERS)
def test_a_time_limit_does_not_lower_the_value(toys, name):
    """Reward 1 for ever, cut every five steps, is worth 1 / (1 - gamma) = 5; taken for the end, 2.3."""
    config, env = LEARNERS[name], TimeLimitLoop(continuous=name in CONTINUOUS)
    driver = driver_of(toys, "jax", getattr(toys, name), config, 1, 2, env)
    list(driver.run(config, ZEROS | getattr(toys, name).algorithm.schedules(config), 0, STEPS[name]))
    value = learned(driver, name, 0, jnp.zeros((1, 1)))
    np.testing.assert_allclose(value, env.value(np.zeros((1, 1)), GAMMA), atol=0.6)


def chunk_with_garbage(config, garbage, continuous=False):
    """A chunk of `Endings` whose invalid rows hold zeros, or garbage."""
    rng = np.random.default_rng(0)
    lead = (config.steps_per_update, 2)
    valid = np.ones(lead, bool)
    valid[3, 0] = valid[5:, 1] = False
    flags = rng.random((3, *lead)) < 0.2
    flags[0, 4, 0] = True
    obs = np.eye(5, dtype=np.float32)[rng.integers(0, 5, lead)]
    actions = rng.integers(0, 2, lead).astype(np.int32)
    chunk = Chunk(
        obs, flags[0], None, actions[..., None].astype(np.float32) if continuous else actions, rng.random(lead).astype(np.float32),
        flags[1], flags[2], valid, obs[::-1].copy(), obs[0],
    )  # fmt: skip
    if not garbage:
        return chunk
    bad = ~valid
    after = np.concatenate([np.zeros_like(bad[:1]), valid[:-1]])  # holds a valid row's successor
    chunk.obs[bad & ~after] = np.nan
    chunk.reward[bad] = np.inf
    chunk.final_obs[bad] = np.nan
    chunk.action[bad] = np.nan if continuous else 10**6
    for flag in (chunk.terminated, chunk.truncated, chunk.is_first):
        flag[bad] = ~flag[bad]
    last = chunk.last_obs.copy()
    last[~valid[-1]] = np.nan
    return chunk._replace(last_obs=last)


@pytest.mark.parametrize("name", LEARNERS)
def test_garbage_in_invalid_rows_changes_no_bit(toys, name):
    """NaN, infinities and illegal actions in rows that do not count reach nothing; none valid: the identity."""
    agent, config, continuous = getattr(toys, name), LEARNERS[name], name in CONTINUOUS
    if name not in POLICY:
        config = dataclasses.replace(config, buffer_size=40, learning_starts=0, batch_size=8, gradient_steps=3)
    spec = Endings(continuous).spec
    state = agent.algorithm.init(config, spec, jax.random.PRNGKey(0))
    memory = agent.init_memory(config, spec, 2)
    update = jax.jit(agent.update, static_argnums=0)
    clean, dirty = (
        update(config, state, memory, jax.tree.map(jnp.asarray, chunk_with_garbage(config, garbage, continuous)))
        for garbage in (False, True)
    )
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(np.asarray(a, np.float64)).all()
    nothing = chunk_with_garbage(config, True, continuous)
    nothing = nothing._replace(valid=np.zeros_like(nothing.valid), obs=nothing.obs * np.nan)
    after = update(config, *clean[:2], jax.tree.map(jnp.asarray, nothing))
    for a, b in zip(jax.tree.leaves(clean[:2]), jax.tree.leaves(after[:2]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:learning_starts=1000 is not reached")
def test_a_chunk_begun_goes_on_after_a_reset(toys):
    """Stopped on an uneven last step, environments begin anew inside a chunk: no row's successor is theirs."""
    env = make_vec_env(lambda: toys.Counting(50), 4)
    model = DQN("MlpPolicy", env, learning_starts=1000, train_freq=8, buffer_size=400, seed=0)
    model.learn(10, callback=lambda local, _: local["self"].num_timesteps < 10)
    model.learn(40, reset_num_timesteps=False)
    memory = model._driver.memory
    obs, following = (np.asarray(x)[0].reshape(4, 100) for x in (memory.obs, memory.next_obs))
    truncated, size = (np.asarray(memory.flags)[0] & uniform.TRUNCATED).reshape(4, 100), np.asarray(memory.size)[0]
    cut = [n for n in range(4) for i in range(size[n]) if truncated[n, i]]
    assert cut == [0, 1]  # of the others the last row did not count: a gap, which ends sums too
    for n in range(4):
        np.testing.assert_array_equal(following[n, : size[n]], obs[n, : size[n]] + 1)
