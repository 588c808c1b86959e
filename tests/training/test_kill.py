"""`kill -9` at random moments while checkpoints are written: the newest one always loads, and the run can end.

Five kills here; `KILLS=50 python -m pytest tests/training/test_kill.py` (`make kill`) does fifty.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np

from advantage import DQN
from advantage.training.checkpoints import complete, find, read

KILLS = int(os.environ.get("KILLS", "5"))
TOTAL = 1_000_000  # more than is reached
EVERY = 500  # steps: several checkpoints a second, so that most kills hit one being written

TRAINING = f"""
import pathlib, sys
from advantage import DQN

folder = pathlib.Path(sys.argv[1])
if list(folder.glob("step_*")):
    model = DQN.resume(folder)
    model.learn()
else:
    model = DQN(
        "MlpPolicy", "CartPole-v1", buffer_size=50_000, learning_starts=100, seed=1,
        policy_kwargs={{"net_arch": [16]}},
    )
    model.learn({TOTAL}, checkpoint_dir=folder, checkpoint_every={EVERY})
"""


def killed(folder, chance):
    """Train in a process of its own until it has written something new, and a random moment longer."""
    before = max(complete(folder), default=0)
    process = subprocess.Popen([sys.executable, "-c", TRAINING, folder], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while max(complete(folder), default=0) <= before:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.6))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def test_the_newest_checkpoint_loads_after_a_kill(tmp_path):
    chance, steps = random.Random(0), []
    for _ in range(KILLS):
        killed(tmp_path, chance)
        header, kept = read(find(tmp_path, None))
        model = DQN.resume(tmp_path)
        assert model.num_timesteps == header["steps"] == max(complete(tmp_path))
        assert len(complete(tmp_path)) <= 4  # three, and one that was not yet dropped
        assert np.isfinite(kept.arrays["memory.reward"]).all()
        steps.append(header["steps"])
    assert steps == sorted(set(steps)) and all(step % EVERY == 0 for step in steps)
