"""A2C, TRPO and REINFORCE: their updates against SB3's and sb3-contrib's, against each other, and by hand."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from advantage.algorithms import a2c, ppo, reinforce, trpo
from advantage.networks.actor_critic import Actor, ActorCritic, Architecture
from advantage.networks.features import Flatten
from advantage.networks.mlp import MLP, Linear
from advantage.networks.optimisers import named
from advantage.types import NONFINITE, Chunk, Space, Spec

FOLDER = Path(__file__).parents[1] / "oracles"
SB3, POLICY = np.load(FOLDER / "sb3.npz"), np.load(FOLDER / "sb3_policy.npz")
T, N = 16, 4
NET = Architecture((), (16, 16), (16, 16))
CASES = ["discrete", "box"]
KEY = jax.random.PRNGKey(0)
CONFIGS = {
    # Torch's RMSProp makes a first step that hardly depends on the gradient's size: nothing would be compared.
    "a2c": a2c.Config(net_arch=NET, n_steps=T, optimizer=named("rmsproptflike", (("alpha", 0.99), ("eps", 1e-5)))),
    "trpo": trpo.Config(net_arch=NET, n_steps=T, batch_size=T * N),
    "reinforce": reinforce.Config(net_arch=NET),
}
ALGORITHMS = {"a2c": a2c, "trpo": trpo, "reinforce": reinforce}


def spec_of(case):
    box, two = Space("box", (2,), low=-1.0, high=1.0), Space("discrete", (), "int32", n=(2,), start=(0,))
    return Spec(Space("box", (4,), low=-np.inf, high=np.inf), box if case == "box" else two)


def chunk_of(case):
    """The rollout that SB3 learned from, with ends of both kinds."""
    names = ("obs", "is_first", "actions", "rewards", "terminated", "truncated", "final_obs", "last_obs")
    data = {name: jnp.asarray(SB3[f"ppo/{case}/{name}"]) for name in names}
    action = data["actions"] if case == "box" else data["actions"].astype(jnp.int32)
    return Chunk(
        data["obs"], data["is_first"], None, action, data["rewards"], data["terminated"], data["truncated"],
        jnp.ones((T, N), bool), data["final_obs"], data["last_obs"],
    )  # fmt: skip


def network_of(case, source, prefix):
    """SB3's weights `[out, in]` as our network `[in, out]`."""

    def dense(name):
        weight, bias = (source[f"{prefix}/{name}.{part}"] for part in ("weight", "bias"))
        return Linear(jnp.asarray(weight.T), jnp.asarray(bias))

    spec = spec_of(case)
    log_std = jnp.asarray(source[f"{prefix}/log_std"]) if case == "box" else None
    policy, value = (
        MLP(tuple(dense(f"mlp_extractor.{net}_net.{i}") for i in (0, 2)), jnp.tanh) for net in ("policy", "value")
    )
    actor = Actor(Flatten(spec.observation), MLP((), jnp.tanh), policy, dense("action_net"), log_std, spec.action)
    return ActorCritic(actor, value, dense("value_net"))


def config_of(name, case):
    """What SB3's constructor was given."""
    prefix = f"{name}/{case}/settings/"
    given = {key.removeprefix(prefix): POLICY[key].item() for key in POLICY.files if key.startswith(prefix)}
    if (name, case) == ("trpo", "box"):
        # SB3-contrib's KL is a mean over an action's components and not their sum, so its bound is half of ours.
        given |= {"target_kl": 2 * given["target_kl"], "cg_damping": 2 * given["cg_damping"]}
    return dataclasses.replace(CONFIGS[name], **given)


def start(name, case, config):
    state = jax.jit(lambda key: ALGORITHMS[name].init(config, spec_of(case), key))(KEY)
    return state._replace(network=network_of(case, SB3, f"ppo/{case}/before"))


def updated(name, config, state, chunk):
    """`(state, metrics)`."""
    state, _, metrics = jax.jit(lambda state, chunk: ALGORITHMS[name].update(config, state, (), chunk))(state, chunk)
    return state, metrics


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


LOGGED = {
    "a2c": ["policy_loss", "value_loss", "entropy_loss", "explained_variance"],
    "trpo": ["policy_objective", "value_loss", "is_line_search_success", "explained_variance"],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["a2c", "trpo"])
def test_update_is_that_of_sb3(name, case):
    """All weights after one update, and what is logged."""
    config = config_of(name, case)
    before = start(name, case, config)
    after, metrics = updated(name, config, before, chunk_of(case))
    expected = network_of(case, POLICY, f"{name}/{case}/after")
    assert_close(after.network, expected, 1e-4)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected, before.network)), strict=True)]
    assert min(moved) > 2e-3
    for key in LOGGED[name]:
        np.testing.assert_allclose(metrics[f"train/{key}"], POLICY[f"{name}/{case}/log/{key}"], rtol=1e-4, atol=1e-5)
    assert metrics[NONFINITE] == 0 and after.n_updates == 1


@pytest.mark.parametrize("case", CASES)
def test_the_divergence_is_sb3s_to_second_order(case):
    """We bound KL(old || new), as the paper; sb3-contrib KL(new || old): equal but for cubes of a small step."""
    config = config_of("trpo", case)
    _, metrics = updated("trpo", config, start("trpo", case, config), chunk_of(case))
    found, components = float(metrics["train/kl_divergence_loss"]), 2 if case == "box" else 1
    np.testing.assert_allclose(found, components * POLICY[f"trpo/{case}/log/kl_divergence_loss"], rtol=0.2)
    assert 0.2 * config.target_kl < found < config.target_kl


@pytest.mark.parametrize("normalize", [False, True])
def test_a2c_is_ppo_with_one_epoch_no_clip_and_the_whole_batch(normalize):
    """Then the ratio is 1 and its gradient that of the log-probability (Huang et al., 2022, arXiv 2205.09123)."""
    shared = {"learning_rate": 0.01, "ent_coef": 0.02, "gamma": 0.95, "gae_lambda": 0.9, "n_steps": T, "net_arch": NET}
    one = a2c.Config(use_rms_prop=False, normalize_advantage=normalize, **shared)
    other = ppo.Config(n_epochs=1, batch_size=T * N, clip_range=np.inf, normalize_advantage=normalize, **shared)
    before = start("a2c", "box", one)
    after, _ = updated("a2c", one, before, chunk_of("box"))
    theirs = ppo.init(other, spec_of("box"), KEY)._replace(network=before.network)
    theirs, _, _ = jax.jit(lambda state, chunk: ppo.update(other, state, (), chunk))(theirs, chunk_of("box"))
    assert_close(after.network, theirs.network, 1e-5)


def test_rmsprop_is_torchs_by_default():
    """`lr g / (sqrt(0.01 g^2) + eps)` at the first step, by hand: the mean square begins at 0, as in SB3's A2C."""
    config = a2c.Config(rms_prop_eps=0.25)
    gradient = jnp.array([0.5, -2.0])
    optimizer = a2c.optimiser(config)(0.1)
    moved, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_allclose(moved, [-0.1 * 0.5 / (0.05 + 0.25), 0.1 * 2.0 / (0.2 + 0.25)], rtol=1e-5)
    assert a2c.optimiser(dataclasses.replace(config, use_rms_prop=False)) is ppo.adam_ppo


# -- TRPO ------------------------------------------------------------------------------------------------


def test_fisher_products_are_those_of_the_hessian():
    """On a small network the whole Hessian of the divergence is formed, and solved directly."""
    config = dataclasses.replace(CONFIGS["trpo"], net_arch=Architecture((), (3,), (3,)), cg_damping=0.1)
    state = trpo.init(config, spec_of("box"), KEY)
    rows = trpo.prepare(config, state.network, chunk_of("box"))
    parameters, actor_of = jax.flatten_util.ravel_pytree(state.network.actor)
    parameters = parameters + 0.3 * jax.random.normal(KEY, parameters.shape)
    old = trpo.distribution_of(actor_of(parameters), rows)
    divergence = lambda x: trpo.divergence(actor_of(x), old, rows)
    gradient = jax.grad(lambda x: trpo.surrogate(actor_of(x), rows))(parameters)
    hessian = np.asarray(jax.hessian(divergence)(parameters), np.float64) + 0.1 * np.eye(parameters.size)
    assert np.linalg.eigvalsh(hessian).min() > 0.09
    direction = np.linalg.solve(hessian, np.asarray(gradient, np.float64))
    expected = np.sqrt(2 * 0.02 / (direction @ hessian @ direction)) * direction
    found = trpo.natural_step(divergence, parameters, gradient, 0.02, 0.1, 200)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-4)
    # Half the quadratic form of the step is the bound.
    np.testing.assert_allclose(0.5 * np.asarray(found) @ hessian @ np.asarray(found), 0.02, rtol=1e-3)


@pytest.mark.parametrize(
    ("case", "bound", "damping"),
    [("discrete", 0.05, 0.1), ("box", 0.05, 0.1), ("discrete", 0.6, 1e-3), ("box", 1.0, 1e-3)],
)
def test_the_constraint_holds_and_the_surrogate_rises(case, bound, damping):
    """Recomputed from the networks before and after, not read from the metrics; also where squares say too little."""
    config = dataclasses.replace(CONFIGS["trpo"], target_kl=bound, cg_damping=damping)
    before = start("trpo", case, config)
    after, metrics = updated("trpo", config, before, chunk_of(case))
    rows = trpo.prepare(config, before.network, chunk_of(case))
    rows = rows._replace(advantage=trpo.normalised(rows.advantage, rows.weight))
    old = trpo.distribution_of(before.network.actor, rows)
    kl = float(trpo.divergence(after.network.actor, old, rows))
    assert 0.01 < kl < bound and metrics["train/is_line_search_success"] == 1
    np.testing.assert_allclose(kl, metrics["train/kl_divergence_loss"], rtol=1e-4)
    assert trpo.surrogate(after.network.actor, rows) > trpo.surrogate(before.network.actor, rows) + 0.005


def test_where_no_step_is_good_the_policy_stays():
    """A bound of zero cannot be kept: the policy is as it was, and the value function learns all the same."""
    config = dataclasses.replace(CONFIGS["trpo"], target_kl=0.0)
    before = start("trpo", "discrete", config)
    after, metrics = updated("trpo", config, before, chunk_of("discrete"))
    assert_close(after.network.actor, before.network.actor, 0.0)
    assert metrics["train/is_line_search_success"] == 0 and metrics["train/kl_divergence_loss"] == 0
    assert np.abs(after.network.head.bias - before.network.head.bias).max() > 1e-4


def test_the_value_function_leaves_shared_layers_alone():
    """What the policy is made of moves by the natural step only."""
    config = dataclasses.replace(CONFIGS["trpo"], net_arch=Architecture((8,), (4,), (4,)), target_kl=0.0)
    before = trpo.init(config, spec_of("discrete"), KEY)
    after, _ = updated("trpo", config, before, chunk_of("discrete"))
    assert_close(after.network.actor, before.network.actor, 0.0)


def test_sub_sampling_reads_every_kth_step():
    """The policy's step is that of a rollout of only these steps, of all environments; the value function reads all."""
    config = dataclasses.replace(CONFIGS["trpo"], sub_sampling_factor=4, normalize_advantage=False)
    before = start("trpo", "discrete", config)
    after, _ = updated("trpo", config, before, chunk_of("discrete"))
    kept = np.arange(T * N).reshape(T, N)[::4].reshape(-1)
    rows = jax.tree.map(lambda x: x[kept], trpo.prepare(config, before.network, chunk_of("discrete")))
    expected, _ = trpo._improve(dataclasses.replace(config, sub_sampling_factor=1), before.network, rows)
    assert_close(after.network.actor, expected.actor, 1e-6)


# -- REINFORCE ---------------------------------------------------------------------------------------------


def values_of(network, obs):
    return np.asarray(network.value(jnp.asarray(obs)), np.float64)


@pytest.mark.parametrize("baseline", list(reinforce.BASELINES))
def test_rewards_to_go_by_hand(baseline):
    """A loop in NumPy: sums stop at ends; at cuts, also of the rollout, the value function stands for the rest."""
    config = dataclasses.replace(CONFIGS["reinforce"], baseline=baseline, gamma=0.9)
    chunk = chunk_of("discrete")
    state = start("reinforce", "discrete", config)._replace(average=jnp.float32(1.5))
    rows = reinforce.prepare(config, state, chunk)
    expected = np.zeros((T, N))
    for n in range(N):
        following = values_of(state.network, chunk.last_obs)[n]
        for t in reversed(range(T)):
            if chunk.terminated[t, n]:
                following = 0.0
            elif chunk.truncated[t, n]:
                following = values_of(state.network, chunk.final_obs[t])[n]
            expected[t, n] = following = chunk.reward[t, n] + 0.9 * following
    np.testing.assert_allclose(rows.returns.reshape(T, N), expected, rtol=1e-4, atol=1e-5)
    offset = {"none": 0.0, "average": 1.5, "value": values_of(state.network, chunk.obs)}[baseline]
    np.testing.assert_allclose(rows.advantage.reshape(T, N), expected - offset, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_log_likelihood():
    """`sum (pi - onehot) (G - b) / rows` at the logits of a policy without hidden layers, by hand."""
    config = dataclasses.replace(CONFIGS["reinforce"], net_arch=Architecture(), vf_coef=0.0, baseline="none")
    config = dataclasses.replace(config, net_arch=Architecture((), (), ()))
    state = reinforce.init(config, spec_of("discrete"), KEY)
    rows = reinforce.prepare(config, state, chunk_of("discrete"))
    gradients = jax.grad(lambda network: reinforce.loss(config, network, rows)[0])(state.network)
    logits = np.asarray(rows.obs) @ np.asarray(state.network.actor.head.weight)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (p - np.eye(2)[np.asarray(rows.action)]) * np.asarray(rows.advantage)[:, None] / len(p)
    np.testing.assert_allclose(gradients.actor.head.bias, error.sum(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradients.actor.head.weight, np.asarray(rows.obs).T @ error, rtol=1e-4, atol=1e-6)


def test_the_average_follows_the_returns():
    """The first rollout's mean, then a tenth of the way to each next one's; never before it was used."""
    config = dataclasses.replace(CONFIGS["reinforce"], baseline="average", learning_rate=0.0)
    chunk, state = chunk_of("discrete"), start("reinforce", "discrete", CONFIGS["reinforce"])
    mean = float(reinforce.prepare(config, state, chunk).returns.mean())
    state, _ = updated("reinforce", config, state, chunk)
    np.testing.assert_allclose(state.average, mean, rtol=1e-4)
    later = chunk._replace(reward=chunk.reward + 1.0)
    rows = reinforce.prepare(config, state, later)
    np.testing.assert_allclose(rows.advantage, rows.returns - mean, rtol=1e-4, atol=1e-5)
    state, _ = updated("reinforce", config, state, later)
    np.testing.assert_allclose(state.average, mean + 0.1 * (float(rows.returns.mean()) - mean), rtol=1e-4)


# -- all three ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_rollout_that_is_not_finite_changes_nothing(name):
    """Neither policy nor value function, and it is counted."""
    chunk, before = chunk_of("box"), start(name, "box", CONFIGS[name])
    after, metrics = updated(name, CONFIGS[name], before, chunk._replace(reward=chunk.reward.at[3, 1].set(jnp.nan)))
    assert_close(after.network, before.network, 0.0)
    assert metrics[NONFINITE] > 0
