"""Both orders of importing JAX and this library, in processes of their own."""

import os
import subprocess
import sys

import pytest

from advantage.platform import CPU_COMPILER

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


def test_tests_compile_with_the_options_of_the_library():
    """`conftest.py` repeats them, since the library adds none where some are set."""
    assert CPU_COMPILER in os.environ["XLA_FLAGS"]


def test_importing_advantage_alone_does_not_import_jax():
    """Names load when first used, so that the command line's help stays instant."""
    out, said = ran("import advantage, sys\nprint('jax' in sys.modules, advantage.__version__)")
    assert out[0] == "False" and not said


UNOPTIMISED = """
import advantage.platform
import jax

jax.config.update("jax_disable_most_optimizations", True)
from advantage import SAC

SAC(
    "MlpPolicy", "advantage/Pendulum-v1", learning_starts=50, buffer_size=500, seed=0,
    policy_kwargs={"net_arch": [32, 32]},
).learn(200)
"""


def test_what_is_not_optimised_is_right(monkeypatch, tmp_path):
    """With LLVM's fast selection of instructions, on a processor with AVX, a gradient is NaN within 140 steps."""
    monkeypatch.chdir(tmp_path)
    ran(UNOPTIMISED)


FAULTS = """
import os, resource
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # other threads take memory elsewhere
import advantage.platform
import jax, jax.numpy as jnp

x = jnp.ones(2**24, jnp.float32)
program = jax.jit(lambda x: jnp.sum(jax.lax.optimization_barrier(jnp.sin(x)))).lower(x).compile()
assert program.memory_analysis().temp_size_in_bytes >= 2**26
program(x)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    program(x)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 4)
"""


def test_large_programs_keep_their_memory(monkeypatch):
    """64 MiB are found again in the next call; unless somebody else decides about the C library's memory."""
    (kept,), _ = ran(FAULTS)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    (anew,), _ = ran(FAULTS)
    assert int(anew) > 10_000  # pages of 4 KiB
    assert int(kept) < 1_000


def test_an_old_c_library_is_left_alone(monkeypatch):
    """Where the first setting is refused the second is not made: alone it would slow everything down."""
    from advantage import platform

    class Library:
        def mallopt(self, name, value):
            asked.append(name)
            return int(accepts)

    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform.ctypes, "CDLL", lambda name: Library())
    for accepts, expected in ((False, [platform.M_MMAP_THRESHOLD]), (True, [platform.M_MMAP_THRESHOLD, platform.M_TRIM_THRESHOLD])):
        asked = []
        platform.keep_memory()
        assert asked == expected


LINEAR_ALGEBRA = """
import jax, jax.numpy as jnp, os
from advantage import PPO
from advantage.envs.jax import Transition
from advantage.types import Space, Spec

class Decomposes:
    id, spec = "Decomposes", Spec(Space("box", (3,), low=-9.0, high=9.0), Space("discrete", n=(2,), start=(0,)))
    def reset(self, key):
        return jnp.int32(0), jnp.zeros(3)
    def step(self, steps, action, key):
        root = jnp.linalg.cholesky(2.0 * jnp.eye(3) + action)
        return steps + 1, Transition(jnp.diagonal(root), jnp.float32(1.0), jnp.bool_(False), steps >= 8)

settings = {"n_steps": 8, "batch_size": 8, "n_envs": 4, "seeds": 2, "policy_kwargs": {"net_arch": []}}
"""


def test_linear_algebra_gets_threads_to_spare():
    """With a thread for each device, decompositions side by side would wait for each other for ever."""
    train = 'PPO("MlpPolicy", Decomposes(), **settings).learn(64)\nprint(os.environ["NPROC"])\n'
    out, _ = ran("import os\nos.environ['JAX_NUM_CPU_DEVICES'] = '2'\n" + LINEAR_ALGEBRA + train)
    assert out == ["4"]


def test_linear_algebra_without_threads_is_refused():
    """Where JAX has made its threads already, the environment is named and the remedy too."""
    refused = (
        'PPO("MlpPolicy", "advantage/CartPole-v1", **settings).learn(32)\n'
        'try: PPO("MlpPolicy", Decomposes(), **settings).learn(64)\n'
        "except ValueError as error: print(error)\n"
    )
    out, _ = ran("import os\nos.environ['JAX_NUM_CPU_DEVICES'] = '2'\n" + LINEAR_ALGEBRA + refused)
    said = " ".join(out)
    assert "'Decomposes' uses linear algebra (cholesky)" in said and "NPROC=4" in said
