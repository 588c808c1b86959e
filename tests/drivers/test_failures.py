"""Environments that go wrong in mid-training: the error says where, and the model is as good as before."""

import io

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from advantage import DQN, PPO, make_vec_env
from advantage.envs.jax import Transition
from advantage.envs.vector import EnvironmentFailure
from advantage.training.loop import TrainingFailure
from advantage.types import Space, Spec

SMALL = {
    "PPO": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
    "DQN": {"learning_starts": 4, "buffer_size": 100, "batch_size": 4, "train_freq": 8, "n_steps": 2},
}
FACES = {"PPO": PPO, "DQN": DQN}


def model_on(name, env, **kwargs):
    return FACES[name]("MlpPolicy", env, seed=1, policy_kwargs={"net_arch": [4]}, **SMALL[name], **kwargs)


@pytest.fixture(scope="module")
def trained(toys):
    """A model on two environments that can be armed, one for each face; tests continue it."""
    models = {}
    for name in FACES:
        envs = make_vec_env(toys.Faulty, n_envs=2)
        models[name] = model_on(name, envs).learn(32), envs.envs
    return models


def still_works(toys, model, before):
    """It predicts, saves, loads and learns on; nothing it had learned is lost or spoilt."""
    after = toys.leaves(model)
    assert all(np.isfinite(x).all() for x in after.values())
    if before is not None:
        assert toys.same(before, after)
    action, _ = model.predict(np.zeros(model.observation_space.shape, np.float32))
    assert model.action_space.contains(int(action))
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert toys.same(toys.leaves(type(model).load(file)), after)
    steps = model.num_timesteps
    model.learn(16, reset_num_timesteps=False)
    assert model.num_timesteps == steps + 16
    assert all(np.isfinite(x).all() for x in toys.leaves(model).values())


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize(
    "fault,at,step", [("step", 3, 6), ("step", 4, 8), ("obs", 3, 6), ("obs", 4, 8), ("obs", 8, 16), ("reward", 3, 6)]
)
def test_a_fault_in_a_step_is_named(toys, trained, name, fault, at, step):
    """An exception, NaN or infinity in the k-th step of env 1 names that env and step; the model lives on."""
    model, envs = trained[name]
    model.learn(8)  # new episodes
    before = toys.leaves(model)
    envs[1].arm(fault, at)
    with pytest.raises(EnvironmentFailure, match=r"env 1\b") as caught:
        model.learn(160)
    assert f"at step {step:,}" in str(caught.value)
    if fault == "step":
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        cause = caught.value.__cause__.__traceback__
        while cause.tb_next:
            cause = cause.tb_next
        assert cause.tb_frame.f_code.co_name == "step" and cause.tb_frame.f_code.co_filename.endswith("conftest.py")
    else:
        assert fault in str(caught.value)
    still_works(toys, model, before if step <= 16 and name == "PPO" else None)


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_fault_in_reset_is_named(toys, trained, name, at):
    """A reset that raises, at the beginning or after an episode, is named with its step and its cause."""
    model, envs = trained[name]
    envs[0].arm("reset", at)
    with pytest.raises(EnvironmentFailure, match=r"at step \d+: env 0 raised ZeroDivisionError.*reset") as caught:
        model.learn(160)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    still_works(toys, model, None)


@pytest.mark.parametrize("fault", ["obs", "reward"])
@pytest.mark.parametrize("name", FACES)
def test_a_fault_in_the_very_last_step_is_found(toys, name, fault):
    """What the last step of a partial chunk gave is checked too: it is a successor in the memory."""
    env = toys.Faulty(length=100)
    model = model_on(name, env)
    before = toys.leaves(model)
    env.arm(fault, 5)
    with pytest.raises(EnvironmentFailure, match=f"{fault}.*at step 5:"):
        model.learn(5)
    still_works(toys, model, before)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("fault,at", [("step", 3), ("reset", 1), ("reset", 2), ("obs", 5)])
def test_faults_inside_a_vector_env(toys, mode, fault, at):
    """A `gymnasium.vector` environment's faults are named the same way, in every autoreset mode."""
    envs = SyncVectorEnv([toys.Faulty] * 2, autoreset_mode=mode)
    model = model_on("PPO", envs)
    envs.envs[1].arm(fault, at)
    with pytest.raises(EnvironmentFailure, match="at step") as caught:
        model.learn(64)
    if fault != "obs":
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    still_works(toys, model, None)


def test_a_fault_names_the_seed(toys):
    """With several seeds the error says whose environment it was, counted within that seed."""
    model = model_on("PPO", make_vec_env(lambda: toys.Faulty(), n_envs=2), seeds=2)
    model._driver.envs.envs[3].unwrapped.arm("step", 3)
    with pytest.raises(EnvironmentFailure, match="env 1 of seed index 1 raised ZeroDivisionError"):
        model.learn(64)
    model._driver.envs.envs[2].unwrapped.arm("reward", 3)
    with pytest.raises(EnvironmentFailure, match="env 0 of seed 2 gave a reward"):
        model.learn(64)


class FaultyJax:
    """Gives NaN in the step that a seed-dependent counter reaches `at`; episodes of 20 steps."""

    def __init__(self, fault, at):
        self.id, self.fault, self.at = "test/Faulty", fault, at
        self.spec = Spec(Space("box", (2,), low=-1.0, high=1.0), Space("discrete", dtype="int32", n=(2,), start=(0,)))

    def reset(self, key):
        return jnp.int32(0), jnp.zeros(2, jnp.float32)

    def step(self, env_state, action, key):
        steps = env_state + 1
        bad = jnp.where(steps == self.at, jnp.nan, 0.0)
        obs = jnp.full(2, 0.1, jnp.float32) + (bad if self.fault == "obs" else 0.0)
        reward = jnp.float32(1.0) + (bad if self.fault == "reward" else 0.0)
        return steps, Transition(obs, reward, jnp.bool_(False), steps >= 20)


@pytest.mark.parametrize("fault", ["obs", "reward"])
@pytest.mark.parametrize("name", FACES)
def test_a_jax_environment_that_gives_nan(toys, name, fault):
    """The fused driver names env and step, and keeps NaN out of parameters, memory and statistics."""
    model = model_on(name, FaultyJax(fault, 5), n_envs=2)
    with pytest.raises(EnvironmentFailure, match=r"env 0 of seed 1 gave.*at step 10:"):
        model.learn(64)
    assert np.isfinite(model._driver.recent(0).returns).all()
    arrays = toys.leaves(model)
    assert all(np.isfinite(x).all() for x in arrays.values())
    assert model.action_space.contains(int(model.predict(np.zeros(2, np.float32))[0]))
    file = io.BytesIO()
    model.save(file)
    with pytest.raises(EnvironmentFailure):
        model.learn(64)
    model.set_env(FaultyJax(fault, -1))
    model.learn(32)
    assert all(np.isfinite(x).all() for x in toys.leaves(model).values())


@pytest.mark.parametrize("name", FACES)
@pytest.mark.parametrize("jax_env", [False, True])
def test_gradients_that_overflow_stop_training_and_leave_the_model(toys, name, jax_env):
    """A learning rate that makes parameters infinite is reported; the model keeps the last finite ones."""
    env = "advantage/ProbeEndings-v0" if jax_env else toys.EndingsGym()
    model = model_on(name, env, learning_rate=1e38, max_grad_norm=1e30)
    with pytest.raises(TrainingFailure, match="learning_rate"):
        model.learn(400)
    model.predict(np.zeros(5, np.float32))
    model.save(io.BytesIO())


def test_infinities_that_cancel_are_found():
    """Their sum is NaN, which NumPy warns of; the error is ours. Numbers whose sum overflows are no error."""

    class Wild(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self, obs):
            self.obs = np.float32(obs)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.t = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.t += 1
            return self.obs if self.t == 5 else np.zeros(2, np.float32), 0.0, False, self.t >= 6, {}

    settings = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "policy_kwargs": {"net_arch": [4]}}
    with pytest.raises(EnvironmentFailure, match="gave an obs that is NaN or infinite, at step 5"):
        PPO("MlpPolicy", Wild([np.inf, -np.inf]), **settings).learn(16)
    PPO("MlpPolicy", Wild([3e38, 3e38]), learning_rate=0.0, **settings).learn(16)
