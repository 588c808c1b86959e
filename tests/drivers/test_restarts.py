"""A worker process that dies in mid-training: what was lost reaches no algorithm, and steps are counted exactly."""

import os
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest

from advantage import PPO, SubprocVecEnv
from advantage.drivers.host import HostDriver
from advantage.envs.vector import EnvironmentFailure

cloudpickle.register_pickle_by_value(sys.modules[__name__])
LENGTH, DEATH = 7, 5


def dying(marker):
    """A function that makes environments that observe their step; the first to reach step DEATH ends its process."""

    def make():
        class Dying(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0.0, 1000.0, (1,))
            action_space = gymnasium.spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                super().reset(seed=seed)
                self.steps = 0
                return np.zeros(1, np.float32), {}

            def step(self, action):
                self.steps += 1
                if self.steps == DEATH and not os.path.exists(marker):
                    if os.path.isdir(os.path.dirname(marker)):
                        open(marker, "w").close()
                    os._exit(1)
                return np.full(1, self.steps, np.float32), 1.0, self.steps >= LENGTH, False, {}

        return Dying()

    return make


def lasting():
    """An environment that does not die."""
    return dying("/")()


@pytest.fixture
def venv(tmp_path):
    made = SubprocVecEnv([lasting, dying(str(tmp_path / "died"))], num_workers=2, max_restarts=1)
    yield made
    made.close()


def test_no_transition_of_the_lost_step(toys, venv):
    """The row is invalid and the next begins an episode; the return of the lost episode is nobody's."""
    driver = HostDriver(toys.recorder, venv.host, seed=0)
    config = toys.RecorderConfig(n_steps=8)
    driver.init(config)
    with pytest.warns(RuntimeWarning, match=r"env 1 ended with exit code 1 in step\(\) of env 1"):
        reports = driver.run(config, {}, 0, 41)
        first = next(reports)
        chunk = driver.memory
        steps = [first.steps, *(report.steps for report in reports)]
    assert steps[0] == 15 and steps[-1] == 41 and int(driver.state.seen[0]) == 41
    valid, is_first, obs = (np.asarray(x)[0] for x in (chunk.valid, chunk.is_first, chunk.obs))
    assert valid[:, 0].all() and valid[:, 1].tolist() == [t != DEATH - 1 for t in range(8)]
    assert obs[:, 1, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert is_first[:, 1].tolist() == [True, False, False, False, False, True, False, False]
    assert not np.asarray(chunk.terminated)[0, :, 1].any()
    recent = driver.recent(0)
    assert recent.total > 2 and set(recent.returns) == {LENGTH} and set(recent.lengths) == {LENGTH}


def test_what_callbacks_see(venv):
    """The environment is done, its info says why, and no episode is made up."""
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=16, seed=0, policy_kwargs={"net_arch": [4]})
    seen = {}

    def watch(locals, _):
        seen[locals["self"].num_timesteps] = (locals["dones"].tolist(), locals["infos"])

    with pytest.warns(RuntimeWarning, match="exit code 1"):
        model.learn(15, callback=watch)
    assert seen[9] == ([False, True], [{}, {"worker_restarted": True}])
    assert seen[8][0] == seen[11][0] == [False, False] and seen[13][1][0]["episode"] == {"r": 7.0, "l": 7}


def test_training_stops_with_it(tmp_path, venv):
    """Beyond the limit `learn` raises with the process's fate; the model can be saved and given other environments."""
    doomed = SubprocVecEnv([dying(str(tmp_path / "no" / "folder"))] * 2, max_restarts=0)
    model = PPO("MlpPolicy", doomed, n_steps=8, batch_size=16, seed=0, policy_kwargs={"net_arch": [4]})
    with pytest.raises(EnvironmentFailure, match=r"at step 10: .*after 0 restarts"):
        model.learn(64)
    model.save(tmp_path / "model")
    model.set_env(SubprocVecEnv([lasting] * 2))
    model.learn(32)
    assert model.num_timesteps == 32
    model.get_env().close()
    doomed.close()
