"""Potential-based shaping: rewards by hand, and the theorem of Ng, Harada & Russell (1999) on a solved MDP."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import advantage
from advantage.envs import shaping
from advantage.envs.classic import CartPole
from advantage.envs.jax import Transition, is_jax_env, reset_envs, step_envs
from advantage.envs.shaping import PotentialShaping
from advantage.types import Space, Spec

BOX, TWO = Space("box", (1,), low=0.0, high=100.0), Space("discrete", n=(2,), start=(0,))


class Line(gymnasium.Env):
    """Observations 0, 1, 2, ...; rewards 10, 20, ...; ends as told after `length` steps."""

    observation_space, action_space = BOX.to_gymnasium(), TWO.to_gymnasium()

    def __init__(self, length, terminated, truncated):
        self.length, self.ends = length, (terminated, truncated)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        # One array for all observations, as some environments have it.
        self.obs = np.zeros(1, np.float32)
        return self.obs, {}

    def step(self, action):
        self.obs += 1.0
        ends = self.ends if self.obs[0] == self.length else (False, False)
        return self.obs, 10.0 * float(self.obs[0]), *ends, {"steps": int(self.obs[0])}


class JaxLine:
    """The same in JAX, with a mask and a picture, which wrappers have to pass on."""

    id, spec = "test/Line", Spec(BOX, TWO)

    def __init__(self, length, terminated, truncated):
        self.length, self.ends = length, (terminated, truncated)

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(1, jnp.float32)

    def step(self, env_state, action, key):
        steps = env_state + jnp.int32(1)
        over, cut = (jnp.asarray(end) & (steps == self.length) for end in self.ends)
        obs = steps.astype(jnp.float32)
        return steps, Transition(obs[None], 10.0 * obs, over, cut)

    def action_mask(self, env_state):
        return jnp.stack([env_state > 0, jnp.bool_(True)])

    def render(self, env_state):
        return np.full((1, 1, 3), int(env_state), np.uint8)


def square_plus(obs):
    """phi = 2, 3, 6, 11, ... for observations 0, 1, 2, 3: not 0 at the start, other at every step."""
    return obs[0] ** 2 + 2.0


# gamma = 0.5: 10 + 3/2 - 2, 20 + 6/2 - 3, and at the end 30 + (0 or 11/2) - 6.
BY_HAND = [
    (True, False, [9.5, 20.0, 24.0]),
    (False, True, [9.5, 20.0, 29.5]),
    (True, True, [9.5, 20.0, 24.0]),  # what terminates is over, cut or not
]


@pytest.mark.parametrize("terminated, truncated, rewards", BY_HAND)
def test_rewards_by_hand(terminated, truncated, rewards):
    env = PotentialShaping(Line(3, terminated, truncated), square_plus, 0.5)
    for _ in range(2):
        env.reset(seed=0)
        steps = [env.step(0) for _ in range(3)]
        assert [reward for _, reward, *_ in steps] == rewards
        assert [info["true_reward"] for *_, info in steps] == [10.0, 20.0, 30.0]
        assert [info["steps"] for *_, info in steps] == [1, 2, 3]
        assert steps[-1][2:4] == (terminated, truncated)


@pytest.mark.parametrize("terminated, truncated, rewards", BY_HAND)
def test_jax_rewards_by_hand(strict, terminated, truncated, rewards):
    env = PotentialShaping(JaxLine(3, terminated, truncated), square_plus, 0.5)
    assert is_jax_env(env) and env.id == "test/Line" and env.spec == JaxLine.spec
    state, observed = reset_envs(env, jax.random.split(jax.random.PRNGKey(0), 4))
    step = jax.jit(lambda *args: step_envs(env, *args))
    for t in range(6):  # two episodes, the second after the reset within the third step
        key = jax.random.PRNGKey(t)
        state, ts = step(state, observed, jnp.zeros(4, jnp.int32), key)
        observed = ts.observed
        np.testing.assert_array_equal(ts.reward, [rewards[t % 3]] * 4)
        np.testing.assert_array_equal(ts.final_obs[:, 0], [t % 3 + 1] * 4)
        ends = (terminated, truncated) if t % 3 == 2 else (False, False)
        assert (bool(ts.terminated[0]), bool(ts.truncated[0])) == ends
    assert step._cache_size() == 1


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("terminated", [True, False])
def test_discounted_returns_telescope(gamma, terminated):
    """The shaped return is the true one less phi(s_0), plus the discounted phi of a final observation."""
    env = PotentialShaping(Line(7, terminated, not terminated), square_plus, gamma)
    env.reset()
    steps = [env.step(0) for _ in range(7)]
    discounts = gamma ** np.arange(7)
    shaped = discounts @ [reward for _, reward, *_ in steps]
    true = discounts @ [info["true_reward"] for *_, info in steps]
    left = 0.0 if terminated else gamma**7 * (7**2 + 2)
    np.testing.assert_allclose(shaped - true, left - 2.0)


# -- the theorem -----------------------------------------------------------------------------------------


def random_mdp(rng, states=6, actions=3):
    """`P [s, a, s']` and `R [s, a, s']`; the last state ends the episode."""
    transitions = rng.dirichlet(np.full(states, 0.3), (states, actions))
    return transitions, rng.normal(size=(states, actions, states))


def best_actions(transitions, rewards, gamma):
    """The best action of every state but the terminal one, and by how much, by value iteration."""
    running = np.ones(len(rewards))
    running[-1] = 0.0
    value = np.zeros(len(rewards))
    for _ in range(600):
        q = np.sum(transitions * (rewards + gamma * running * value), axis=-1)
        value = q.max(axis=1)
    ordered = np.sort(q[:-1], axis=1)
    return q[:-1].argmax(axis=1), (ordered[:, -1] - ordered[:, -2]).min()


class Table(gymnasium.Env):
    """A tabular MDP whose every transition can be asked for: `reset` to a state, `step` to a chosen next."""

    def __init__(self, rewards):
        self.rewards = rewards
        self.observation_space = gymnasium.spaces.Discrete(len(rewards))
        self.action_space = gymnasium.spaces.MultiDiscrete(rewards.shape[1:])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = options["state"]
        return self.state, {}

    def step(self, action):
        reward = self.rewards[self.state, action[0], action[1]]
        self.state = int(action[1])
        return self.state, reward, self.state == len(self.rewards) - 1, False, {}


def shaped_table(rewards, potential, gamma):
    """Every reward `[s, a, s']` as the wrapper gives it."""
    env, shaped = PotentialShaping(Table(rewards), lambda s: potential[s], gamma), np.zeros_like(rewards)
    for state, action, following in np.ndindex(rewards.shape):
        env.reset(options={"state": state})
        shaped[state, action, following] = env.step((action, following))[1]
    return shaped


def test_the_best_policy_stays_the_best():
    """For random potentials; adding phi(s') alone changes it, and so does a potential kept at the end."""
    gamma, rng = 0.9, np.random.default_rng(0)
    naive_changed = kept_changed = 0
    for _ in range(20):
        transitions, rewards = random_mdp(rng)
        best, margin = best_actions(transitions, rewards, gamma)
        assert margin > 1e-6  # else "the" best policy means nothing
        potential = rng.normal(scale=5.0, size=len(rewards))  # not 0 in the terminal state either
        shaped = shaped_table(rewards, potential, gamma)
        np.testing.assert_array_equal(best_actions(transitions, shaped, gamma)[0], best)
        naive = best_actions(transitions, rewards + potential, gamma)[0]
        kept = rewards + gamma * potential - potential[:, None, None]
        naive_changed += (naive != best).any()
        kept_changed += (best_actions(transitions, kept, gamma)[0] != best).any()
    assert naive_changed > 10 and kept_changed > 5


# -- what is refused ---------------------------------------------------------------------------------------

BAD = {
    "nan": (lambda obs: obs[0] * np.nan, "potential <lambda> gave nan for the observation"),
    "infinite": (lambda obs: obs[0] + np.inf, "gave inf for the observation.*return a finite number"),
    "vector": (lambda obs: obs, r"gave an array of shape \(1,\): return one number"),
    "text": (lambda obs: "high", "gave a value of type <U4, not a number"),
    "nothing": (lambda obs: None, "gave a value of type object, not a number"),
    "raises": (lambda obs: obs["goal"], "potential <lambda> raised .*: it has to take one observation"),
}


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_bad_potentials_are_named(name, host):
    potential, message = BAD[name]
    env = (Line if host else JaxLine)(3, True, False)
    with pytest.raises(ValueError, match=message) as error:
        PotentialShaping(env, potential, 0.9).reset(seed=0)
    assert "\n" not in str(error.value)


def test_a_potential_that_turns_bad_stops_at_its_step():
    env = PotentialShaping(Line(9, True, False), lambda obs: np.inf if obs[0] == 2 else 1.0, 0.9)
    env.reset()
    env.step(0)
    with pytest.raises(ValueError, match=r"gave inf for the observation array\(\[2.\]"):
        env.step(0)


def test_the_potential_of_a_terminal_observation_is_not_asked_for():
    env = PotentialShaping(Line(1, True, False), lambda obs: 1.0 if obs[0] == 0 else np.nan, 0.9)
    env.reset()
    assert env.step(0)[1] == 9.0


@pytest.mark.parametrize("gamma", [0.0, 1.1, -0.5, float("nan")])
def test_bad_gammas(gamma):
    with pytest.raises(ValueError, match="gamma=.* cannot be used: give the algorithm's discount"):
        PotentialShaping(CartPole(), square_plus, gamma)


def test_bad_environments():
    with pytest.raises(ValueError, match="potential=3 cannot be called"):
        shaping._check_callable(3)  # the public function's types are checked before, in tests
    with pytest.raises(ValueError, match=r"env is 'CartPole-v1', not a .*: give gymnasium.make\(id\) or make_jax"):
        PotentialShaping("CartPole-v1", square_plus, 0.9)
    with pytest.raises(ValueError, match="a DummyVecEnv.*make_vec_env.*wrapper_class=PotentialShaping"):
        PotentialShaping(advantage.make_vec_env("CartPole-v1"), square_plus, 0.9)

    class Unhashable:
        __hash__ = None

        def __call__(self, obs):
            return obs[0]

    with pytest.raises(ValueError, match="potential=Unhashable cannot be hashed.*put it into a function"):
        PotentialShaping(CartPole(), Unhashable(), 0.9)


def test_masks_and_pictures_pass_through():
    env = PotentialShaping(JaxLine(3, True, False), square_plus, 0.9)
    state, observed = reset_envs(env, jax.random.split(jax.random.PRNGKey(0), 2))
    np.testing.assert_array_equal(observed.action_mask, [[False, True]] * 2)
    assert env.render(jax.tree.map(lambda x: x[0], state)).shape == (1, 1, 3)
    plain = PotentialShaping(CartPole(), square_plus, 0.9)
    assert not hasattr(plain, "action_mask") and callable(plain.render)
    with pytest.raises(AttributeError, match="has no attribute 'potental'"):
        _ = plain.potental


def test_spare_threads_are_for_linear_algebra_alone():
    """A potential may decompose a matrix, for which XLA needs more threads than a small environment should take."""
    assert PotentialShaping(CartPole(), square_plus, 0.9).is_ours
    assert not PotentialShaping(CartPole(), lambda obs: jnp.linalg.inv(jnp.eye(2) * (2 + obs[0]))[0, 0], 0.9).is_ours
    assert not PotentialShaping(JaxLine(3, True, False), square_plus, 0.9).is_ours


def upright(obs):
    return -abs(obs[2])


@pytest.mark.parametrize("driver", ["fused", "host"])
@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_it_trains_under_both_drivers_with_seeds(name, driver):
    env = CartPole() if driver == "fused" else gymnasium.make("CartPole-v1")
    settings = {"n_steps": 16, "batch_size": 16} if name == "PPO" else {"learning_starts": 16, "buffer_size": 500}
    env = PotentialShaping(env, upright, 0.99)
    assert hash(env) == hash(env)
    model = getattr(advantage, name)("MlpPolicy", env, seeds=2, seed=0, **settings).learn(64)
    assert model.num_timesteps == 64
