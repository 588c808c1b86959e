"""JAX's process-wide settings, made before its backend exists: imported first by `advantage.types`.

On a CPU: synchronous dispatch (acting in a training loop 285 -> 121 us), one XLA device per core, for seeds
side by side, small programs that compile and start quickly, and memory that is kept from one call to the next. On a
GPU: memory is taken as it is needed, not most of it at once.
"""

import contextlib
import ctypes
import os
import warnings
from typing import Any

import jax


# XLA's CPU compiler unrolls the loops of every kernel: a fifth of PPO's compile time, and no faster to run. A
# loop over little data (a random draw, advantages, a small environment) becomes one kernel instead of a dozen
# started in turn: DQN on a JAX CartPole 46,000 -> 67,000 steps/s. What is compiled without optimising goes past LLVM's
# fast selection of instructions, by which SAC's update gave NaN with AVX; it takes no longer.
CPU_COMPILER = "xla_cpu_disable_loop_unrolling,xla_cpu_small_while_loop_byte_threshold=100000,-fast-isel=false"
# mallopt's names for the size from which a block is the kernel's own, and for how much free memory is kept.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
KEPT = 512 * 2**20


def room_on(device: Any) -> float:
    """Bytes of memory that a `jax.Device` has in all; infinite where it does not say."""
    if device.platform == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else float("inf")
    return float((device.memory_stats() or {}).get("bytes_limit", float("inf")))


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _backend_exists() -> bool:
    """Whether JAX has been used."""
    now = jax.config.jax_num_cpu_devices
    try:
        # How JAX tells: it refuses another number then (the same one never).
        jax.config.update("jax_num_cpu_devices", max(now, 0) + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", now)
    return False


def keep_memory() -> None:
    """Keep what programs compute in, up to half a GiB, for their next call.

    The C library gives blocks of more than 32 MiB back to the kernel, which fills them with zeros, page by page, each time
    they are wanted again: DQN's update from Atari's pixels takes 57 ms so, and 38 ms with memory that is kept.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return  # somebody has decided
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library than glibc
        c_library = ctypes.CDLL(None)
        # Older ones take no threshold so high, and the other alone would make all blocks the kernel's own.
        if c_library.mallopt(M_MMAP_THRESHOLD, KEPT):
            c_library.mallopt(M_TRIM_THRESHOLD, KEPT)


def prepare() -> None:
    """Set what can still be set; warn once where JAX was used before `advantage` was imported."""
    keep_memory()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options={CPU_COMPILER}".strip()
    forced = "xla_force_host_platform_device_count" in flags
    chosen = jax.config.jax_num_cpu_devices
    devices = chosen if chosen > 0 else _cores()
    if _backend_exists():
        warnings.warn(
            "JAX was used before advantage was imported: it works, but slower on a CPU (asynchronous dispatch,"
            f" {jax.local_device_count()} device(s)); import advantage first",
            UserWarning,
            stacklevel=2,
        )
        return
    jax.config.update("jax_num_cpu_devices", chosen if forced else devices)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def spare_threads() -> bool:
    """Give XLA's pool two threads for each device, where linear algebra needs them; False: it is too late.

    XLA's batched decompositions wait, in a thread of its pool, for work that they gave to the others. With a
    thread for each core, as by default, two at once wait for ever. Spare threads are not for everybody: they
    take the work of those that run (8 seeds of PPO on two cores: 130,000 steps/s, and 95,000 with them).
    """
    devices = max(jax.config.jax_num_cpu_devices, 1)
    threads = os.environ.get("NPROC", "")
    if devices == 1 or (threads.isdigit() and int(threads) >= 2 * devices):
        return True
    if _backend_exists():
        return False
    os.environ["NPROC"] = str(2 * devices)
    return True


prepare()
