"""Seeds are an axis: each is the run it would be alone, and runs can be repeated bit by bit."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from advantage import DQN, PPO, make_vec_env
from advantage.drivers.common import environment_seeds, streams

SMALL = {
    PPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "policy_kwargs": {"net_arch": [4]}},
    DQN: {"learning_starts": 10, "buffer_size": 100, "batch_size": 4, "policy_kwargs": {"net_arch": [4]}},
}
CASES = ["PPO", "PPO, normalised", "DQN", "DQN, normalised"]
SCRIPT = """
import hashlib, json
import numpy as np
import advantage.drivers.fused as fused
from advantage import DQN, PPO

def bits(model, seed):
    arrays = [x for part in model.get_parameters(seed).values() for x in part.values()]
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()

out = {}
PPO_SMALL = dict(n_steps=8, batch_size=8, n_epochs=2)
DQN_SMALL = dict(learning_starts=10, buffer_size=100, batch_size=4, exploration_fraction=0.5)
for name, face, kwargs in (
    ("PPO", PPO, PPO_SMALL), ("PPO, normalised", PPO, dict(normalize=True, **PPO_SMALL)),
    ("DQN", DQN, DQN_SMALL), ("DQN, normalised", DQN, dict(normalize=True, **DQN_SMALL)),
):
    def trained(seed, seeds, seconds):
        fused.SEGMENT_SECONDS = seconds
        model = face("MlpPolicy", "advantage/ProbeEndings-v0", seed=seed, seeds=seeds, n_envs=2,
                     policy_kwargs={"net_arch": [4]}, **kwargs)
        return model.learn(403)
    among = trained(7, 3, 0.4)
    out[name] = {
        "among": [bits(among, s) for s in range(3)],
        "alone": [bits(trained(7 + s, 1, 0.4), 0) for s in range(3)],
        "segments": [bits(trained(7, 3, 1e-9), s) for s in range(3)],
    }
import jax
print(json.dumps({"devices": jax.local_device_count(), **out}))
"""


@pytest.fixture(scope="module")
def bits():
    """Hashes of all arrays of seeds trained among others, alone, and in segments of one update."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    environment.pop("NPROC")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_seed_among_three_is_bit_identical_to_it_alone(bits, name):
    """Two devices, three seeds in two groups, 403 steps (a cut chunk): no bit differs from three runs alone."""
    assert bits["devices"] == 2
    assert bits[name]["among"] == bits[name]["alone"]
    assert len(set(bits[name]["alone"])) == 3


@pytest.mark.parametrize("name", CASES)
def test_segments_lengths_change_no_bit(bits, name):
    """How many updates are compiled into one segment decides nothing."""
    assert bits[name]["segments"] == bits[name]["among"]


@pytest.mark.parametrize("face", [PPO, DQN])
def test_host_seeds_differ_and_repeat(toys, face):
    """Host seeds learn different agents; the same seed gives identical ones, another seed others."""

    def trained(seed, seeds):
        envs = make_vec_env(toys.EndingsGym, n_envs=2)
        model = face("MlpPolicy", envs, seed=seed, seeds=seeds, **SMALL[face]).learn(101)
        return [toys.leaves(model, s) for s in range(seeds)]

    first, second, other = trained(3, 2), trained(3, 2), trained(4, 2)
    for a, b in zip(first, second, strict=True):
        assert toys.same(a, b)
    assert not toys.same(first[0], first[1])
    assert not toys.same(first[0], other[0])


def test_a_run_without_seed_can_be_repeated(toys):
    """`seed=None` draws one and keeps it."""
    one = PPO("MlpPolicy", toys.EndingsGym(), **SMALL[PPO])
    two = PPO("MlpPolicy", toys.EndingsGym(), **SMALL[PPO])
    assert one.seed != two.seed
    again = PPO("MlpPolicy", toys.EndingsGym(), seed=one.seed, **SMALL[PPO])
    assert toys.same(toys.leaves(one.learn(16)), toys.leaves(again.learn(16)))


def test_every_seed_and_purpose_has_a_stream_of_its_own():
    """Three keys for each of a hundred seeds, none twice; none is a neighbour's environment seed."""
    keys = np.concatenate([streams(seed) for seed in range(100)])
    assert len(np.unique(keys, axis=0)) == 300
    hashed = np.concatenate([environment_seeds(seed, 8) for seed in range(100)])
    assert len(np.unique(hashed)) == 800
