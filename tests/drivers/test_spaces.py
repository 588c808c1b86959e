"""Every kind of observation and action: environments assert that what they receive lies in their spaces."""

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from advantage import DQN, PPO, make_vec_env
from advantage.envs.jax import Transition
from advantage.types import Space, Spec, to_env

OBSERVATIONS = {
    "box": spaces.Box(-1.0, 1.0, (2, 3)),
    "discrete": spaces.Discrete(4, start=-2),
    "multi_discrete": spaces.MultiDiscrete([3, 4], start=[5, -1]),
    "multi_binary": spaces.MultiBinary(3),
    "dict": spaces.Dict({"z": spaces.Discrete(3, start=1), "a": spaces.Box(0, 255, (2,), np.uint8)}),
    "tuple": spaces.Tuple([spaces.MultiBinary(2), spaces.Dict({"x": spaces.Box(-5.0, 5.0, (1,))})]),
}
ACTIONS = {
    "discrete_from_5": spaces.Discrete(3, start=5),
    "discrete_below_0": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([2, 5]),
    "multi_discrete_from_1": spaces.MultiDiscrete([2, 3], start=[1, 10]),
    "multi_discrete_square": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi_binary_square": spaces.MultiBinary((2, 2)),
    "box_lopsided": spaces.Box(np.float32([0.1, -3.0]), np.float32([0.3, 5.0])),
    "box_double": spaces.Box(-0.1, 0.1, (3,), np.float64),
    "box_square": spaces.Box(2.0, 4.0, (2, 2)),
    "box_half_open": spaces.Box(0.0, np.inf, (1,)),
}


class Asserting(gymnasium.Env):
    """Random observations; asserts that every action lies in its space, and changes the array it was given."""

    def __init__(self, observation="box", action="discrete_from_5"):
        self.observation_space, self.action_space = OBSERVATIONS[observation], ACTIONS[action]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        reward = float(np.sum(action))
        if isinstance(action, np.ndarray):
            action[...] = 0  # as some environments do, in place
        return self.observation_space.sample(), reward, bool(self.np_random.random() < 0.2), False, {}


def small(face):
    kwargs = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}
    return kwargs if face is PPO else {"learning_starts": 2, "buffer_size": 99, "batch_size": 4, "n_steps": 2}


def policy_for(observation):
    return "MultiInputPolicy" if observation == "dict" else "MlpPolicy"


@pytest.mark.parametrize(
    "face,observation", [*((PPO, name) for name in OBSERVATIONS), (DQN, "dict"), (DQN, "multi_discrete")]
)
def test_observations_of_every_kind(toys, face, observation):
    """They train on two environments, and `predict` takes one or a batch of them."""
    envs = make_vec_env(lambda: Asserting(observation), n_envs=2)
    model = face(policy_for(observation), envs, policy_kwargs={"net_arch": [4]}, seed=1, **small(face)).learn(40)
    assert all(np.isfinite(x).all() for x in toys.leaves(model).values())
    space = model.observation_space
    assert space == Space.from_gymnasium(OBSERVATIONS[observation]).to_gymnasium()
    single = space.sample()
    action, state = model.predict(single, deterministic=True)
    assert isinstance(action, np.ndarray) and action.shape == () and state is None
    batch = gymnasium.vector.utils.batch_space(space, 3).sample()
    actions, _ = model.predict(batch, deterministic=True)
    assert actions.shape == (3,)
    # A row of the batch gets the action that it gets alone.
    first = gymnasium.vector.utils.iterate(gymnasium.vector.utils.batch_space(space, 3), batch)
    alone = [model.predict(obs, deterministic=True)[0] for obs in first]
    assert [int(x) for x in alone] == actions.tolist()


@pytest.mark.parametrize(
    "action,seeds", [*((name, 1) for name in ACTIONS), ("multi_discrete_from_1", 2), ("box_lopsided", 2)]
)
def test_actions_of_every_kind_lie_in_their_space(toys, action, seeds):
    """PPO's actions reach the environment inside its space, with its start, bounds, shape and writable."""
    envs = make_vec_env(lambda: Asserting(action=action), n_envs=2)
    model = PPO("MlpPolicy", envs, policy_kwargs={"net_arch": [4], "log_std_init": 1.0}, seed=1, seeds=seeds,
                **small(PPO)).learn(64)  # fmt: skip
    assert all(np.isfinite(x).all() for x in toys.leaves(model).values())
    space, obs = ACTIONS[action], model.observation_space.sample()
    for deterministic in (False, True):
        for _ in range(4):
            chosen, _ = model.predict(obs, deterministic=deterministic)
            assert space.contains(int(chosen) if isinstance(space, spaces.Discrete) else chosen), chosen
        batch, _ = model.predict(np.stack([obs] * 5), deterministic=deterministic)
        assert batch.shape == (5, *space.shape)


@pytest.mark.parametrize("action", [name for name in ACTIONS if name.startswith("discrete")])
def test_dqn_actions_lie_in_their_space(toys, action):
    """DQN's actions start where the space starts, random ones and greedy ones."""
    model = DQN("MlpPolicy", Asserting(action=action), policy_kwargs={"net_arch": [4]}, **small(DQN)).learn(40)
    for deterministic in (False, True):
        chosen, _ = model.predict(model.observation_space.sample(), deterministic=deterministic)
        assert ACTIONS[action].contains(int(chosen))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("observation", ["dict", "tuple", "discrete", "multi_binary"])
def test_vector_envs_with_structured_observations(toys, mode, observation):
    """Final observations of Dict and Tuple spaces are found in every autoreset mode."""
    make = lambda: Asserting(observation, "multi_discrete_from_1")
    model = PPO(policy_for(observation), SyncVectorEnv([make] * 2, autoreset_mode=mode), seed=1,
                policy_kwargs={"net_arch": [4]}, **small(PPO)).learn(64)  # fmt: skip
    assert model._driver.episodes() > 3
    assert all(np.isfinite(x).all() for x in toys.leaves(model).values())


class AssertingJax:
    """A JAX environment whose reward says whether the action lay in its space."""

    def __init__(self, observation, action):
        self.id = "test/Asserting"
        self.spec = Spec.from_gymnasium(OBSERVATIONS[observation], ACTIONS[action])
        space = self.spec.observation.to_gymnasium()
        space.seed(0)
        self.obs = space.sample()

    def reset(self, key):
        return jnp.int32(0), self.obs

    def step(self, env_state, action, key):
        space = self.spec.action
        if space.kind == "box":
            low, high = space.bounds()
        else:
            start = np.reshape(space.start or np.zeros(space.shape), space.shape)
            low, high = start, start + np.reshape(space.n or np.full(space.shape, 2), space.shape) - 1
        inside = jnp.all((action >= low) & (action <= high)) & (action.shape == space.shape)
        return env_state, Transition(self.obs, inside.astype(jnp.float32), jnp.bool_(True), jnp.bool_(False))


@pytest.mark.parametrize("observation,action", [
    ("dict", "discrete_from_5"), ("tuple", "box_double"), ("discrete", "multi_discrete_from_1"),
    ("multi_binary", "multi_binary_square"),
])  # fmt: skip
def test_jax_environments_of_every_kind(toys, observation, action):
    """The fused driver hands out actions inside the space too."""
    env = AssertingJax(observation, action)
    model = PPO(policy_for(observation), env, n_envs=2, seed=1,
                policy_kwargs={"net_arch": [4], "log_std_init": 1.0}, **small(PPO)).learn(64)  # fmt: skip
    recent = model._driver.recent(0)
    assert recent.total == 64 and (recent.returns == 1.0).all()


def test_an_integer_box_is_no_action_space_to_explore(toys):
    """A Gaussian cannot act in a Box of integers: refused, with what to use instead."""

    class Whole(Asserting):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(0, 10, (2,), np.int32)

    with pytest.raises(ValueError, match="int32.*MultiDiscrete"):
        PPO("MlpPolicy", Whole())


@pytest.mark.parametrize("action", [name for name in ACTIONS if "box" in name])
def test_clipping_keeps_to_bounds_of_more_digits(action):
    """Bounds in float64 are rounded inwards: no float32 action lies outside of them."""
    space = ACTIONS[action]
    spec = Spec.from_gymnasium(OBSERVATIONS["box"], space)
    for value in (-1e9, 1e9):
        assert space.contains(to_env(spec.action, np.full(space.shape, value, np.float32)))
