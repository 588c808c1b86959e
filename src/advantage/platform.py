"""JAX's process-wide settings, made before its backend exists: imported first by `advantage.types`.

On a CPU: synchronous dispatch (acting in a training loop 285 -> 121 us) and one XLA device per core,
for seeds side by side. On a GPU: memory is taken as it is needed, not most of it at once.
"""

import os
import warnings

import jax


def _cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Set what can still be set; warn once where JAX was used before `advantage` was imported."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    chosen = jax.config.jax_num_cpu_devices
    devices = chosen if chosen > 0 else _cores()
    if devices > 1 and int(os.environ.get("NPROC", "0")) < 2 * devices:
        # XLA's thread pool has a thread per core, and each device's program may wait in one for work it
        # split among the others: with none to spare they wait for ever (two devices, a batched QR).
        os.environ["NPROC"] = str(2 * devices)
    try:
        # Assigning is how JAX tells whether its backend exists already: then it refuses.
        jax.config.update("jax_num_cpu_devices", chosen if forced else devices)
    except RuntimeError:
        warnings.warn(
            "JAX was used before advantage was imported: it works, but slower on a CPU (asynchronous dispatch,"
            f" {jax.local_device_count()} device(s)); import advantage first",
            UserWarning,
            stacklevel=2,
        )
        return
    jax.config.update("jax_cpu_enable_async_dispatch", False)


prepare()
