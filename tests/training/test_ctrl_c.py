"""Ctrl-C at any moment leaves a model that predicts, saves and goes on, under both drivers."""

import io
import signal
import threading

import numpy as np
import pytest

from advantage import DQN, PPO
from advantage.drivers import fused

OBS = np.array([0.1, -0.2, 0.03, 0.4], np.float32)
SMALL = {
    PPO: {"n_steps": 32, "batch_size": 16, "n_epochs": 2},
    DQN: {"learning_starts": 4, "buffer_size": 200, "batch_size": 4},
}


@pytest.fixture(scope="module", params=["PPO-host", "PPO-fused", "DQN-host", "DQN-fused"])
def model(request):
    """A model whose programs are compiled."""
    name, driver = request.param.split("-")
    patch = pytest.MonkeyPatch()
    patch.setattr(fused, "SEGMENT_SECONDS", 0.01)  # the fused driver stops between segments
    request.addfinalizer(patch.undo)
    face, env = {"PPO": PPO, "DQN": DQN}[name], {"host": "CartPole-v1", "fused": "advantage/CartPole-v1"}[driver]
    return face("MlpPolicy", env, seed=1, policy_kwargs={"net_arch": [4]}, **SMALL[face]).learn(128)


def test_fifty_random_moments(model):
    """After each press `learn` ends with KeyboardInterrupt; parameters are finite and no step is lost or twice."""
    rng, begun = np.random.default_rng(0), model.num_timesteps
    handler = signal.getsignal(signal.SIGINT)
    for press in range(50):
        timer = threading.Timer(rng.uniform(0.0, 0.03), lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            model.learn(10**7, reset_num_timesteps=False)
        timer.join()
        assert signal.getsignal(signal.SIGINT) is handler
        assert model.action_space.contains(int(model.predict(OBS)[0]))
        if press % 10 == 0:
            file = io.BytesIO()
            model.save(file)
            file.seek(0)
            back = type(model).load(file)
            assert back.num_timesteps == model.num_timesteps
            assert back.predict(OBS, deterministic=True)[0] == model.predict(OBS, deterministic=True)[0]
    assert model.num_timesteps > begun
    model.learn(64 - model.num_timesteps % 64, reset_num_timesteps=False)
    arrays = {name: x for part in model.get_parameters().values() for name, x in part.items()}
    assert all(np.isfinite(x).all() for x in arrays.values())
    if isinstance(model, DQN):
        assert arrays[".steps"] == model.num_timesteps
    elif model.get_env() is not None and hasattr(model.get_env(), "num_envs"):
        # Every rollout is of 32 steps, however often it was interrupted (an update each, and one at the very end).
        assert arrays[".n_updates"] == 2 * model.num_timesteps / 32


def test_the_message_tells_how_far_it_got(model):
    """The exception names the steps done."""
    timer = threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match=r"stopped at [\d,]+ steps.*go on, predict and save"):
        timer.start()
        model.learn(10**7)
    timer.join()
