"""Both orders of importing JAX and this library, in processes of their own."""

import os
import subprocess
import sys

import pytest

WARNED = "JAX was used before advantage was imported"
TRAIN = """
import jax
from advantage import PPO
PPO("MlpPolicy", "advantage/ProbeMatch-v0", n_steps=8, batch_size=8, policy_kwargs={"net_arch": []}).learn(8)
print(jax.local_device_count())
"""


def ran(code):
    """`(output, warnings)` of a process that sees no setting of the tests' own."""
    ours = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize("first", ["", "import jax, jax.numpy\njax.config.jax_enable_x64\n"])
def test_advantage_before_jax_is_used(first):
    """Silent: one device for each core; importing JAX is not using it."""
    out, said = ran(first + TRAIN)
    assert "Warning" not in said
    assert out == [str(len(os.sched_getaffinity(0)))]


def test_jax_used_before_advantage():
    """One warning, once, and it works with what is there."""
    out, said = ran("import jax.numpy as jnp\njnp.zeros(1)\n" + TRAIN + "import advantage.platform, advantage.types\n")
    assert said.count(WARNED) == 1
    assert "import advantage first" in said
    assert out == ["1"]


def test_importing_advantage_alone_does_not_import_jax():
    """Names load when first used, so that the command line's help stays instant."""
    out, said = ran("import advantage, sys\nprint('jax' in sys.modules, advantage.__version__)")
    assert out[0] == "False" and not said
