"""How every test runs: on one CPU device, shapes and types checked, no silent broadcasting.

All variables below are defaults: set one outside to override it (`JAX_PLATFORMS=cuda pytest ...`). A test
that needs several devices starts a subprocess with its own `JAX_NUM_CPU_DEVICES`.
"""

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Before JAX is imported, which reads its variables once; subprocesses of tests inherit them.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # One device and one thread for each pytest worker: two workers share two cores.
    "JAX_NUM_CPU_DEVICES": "1",
    # Compiling is most of what tests take: two thirds of the time without these emitters, and a fifth less with the
    # library's own options but no loop strength reduction, which runs no faster, and a program in one piece.
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_backend_extra_options=xla_cpu_disable_loop_unrolling,"
    "xla_cpu_small_while_loop_byte_threshold=100000,-fast-isel=false,-disable-lsr",
    "NPROC": "1",  # the size of XLA's own thread pool
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Workers and subprocesses compile the same programs: compile each once.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    # No windows.
    "MPLBACKEND": "Agg",
    "SDL_VIDEODRIVER": "dummy",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

import equinox as eqx  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jaxtyping  # noqa: E402

assert "advantage" not in sys.modules, "advantage was imported before its type checks were switched on"
jaxtyping.install_import_hook("advantage", "beartype.beartype")

hypothesis.settings.register_profile(
    "advantage",
    deadline=None,  # the first example compiles
    derandomize=True,
    database=None,
    # `strict` and `rank_promotion` need no reset between two examples.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("advantage")


from advantage.types import NONFINITE  # noqa: E402


class MirrorConfig(eqx.Module):
    n_steps: int = eqx.field(static=True, default=4)
    gamma: float = 0.5

    @property
    def steps_per_update(self):
        return self.n_steps


class Mirror:
    """Acts what it sees, learns nothing, and remembers the last chunk as it saw it."""

    Config = MirrorConfig
    init = staticmethod(lambda config, spec, key: jnp.int32(0))
    initial_carry = staticmethod(lambda config, spec, num_envs: ())
    actor = staticmethod(lambda config, state: state)
    act = staticmethod(lambda config, actor, carry, observed, key, explore: (observed.obs, carry))
    schedules = staticmethod(lambda config: {})
    to_env = staticmethod(lambda space, action: action)

    @staticmethod
    def update(config, state, memory, chunk):
        return state + 1, chunk._replace(carry=()), {NONFINITE: jnp.float32(0.0)}


@pytest.fixture
def mirror():
    """An algorithm to be watched: what others wrap can be read off its memory."""
    return Mirror


def pytest_report_header() -> str:
    """The versions that decide about numbers."""
    packages = ("jax", "jaxlib", "equinox", "optax", "gymnasium", "numpy")
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
    return f"{versions}; JAX on {os.environ['JAX_PLATFORMS']}"


@pytest.fixture(autouse=True)
def rank_promotion():
    """`[B]` against `[B, 1]` is an error and not `[B, B]`, in the library and in what it calls."""
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def strict():
    """No implicit promotion of dtypes either: for our own functions (optax itself would raise).

    For a whole file: `pytestmark = pytest.mark.usefixtures("strict")`.
    """
    with jax.numpy_dtype_promotion("strict"):
        yield


# Where programs are many and run for moments. All else is optimised: what learns, and what is compared bit by bit with a
# process of its own.
NOT_OPTIMISED = ("algorithms/test_dqn.py", "drivers/test_failures.py", "experiments/test_ablate.py", "networks/")


@pytest.fixture(autouse=True, scope="module")
def optimised(request):
    """Whether XLA optimises: without, it compiles in half the time what then runs three times as long."""
    path = request.path.relative_to(ROOT / "tests").as_posix()
    jax.config.update("jax_disable_most_optimizations", path.startswith(NOT_OPTIMISED))


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Drop compiled programs before they fill the process: each takes maps of memory, of which Linux gives
    65,530, and XLA ends in a segmentation fault at the first it is refused."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
