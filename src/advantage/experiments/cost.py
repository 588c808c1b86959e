"""What a training will cost: its first seconds are trained, the rest is extrapolated."""

from __future__ import annotations

import dataclasses
import io
import os
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advantage.envs.jax import JaxEnv
from advantage.envs.make import resolve_env
from advantage.envs.masking import spec_of
from advantage.models import ALGORITHMS, Model, replay_bytes
from advantage.training.callbacks import BaseCallback
from advantage.training.hyperparameters import whole
from advantage.types import Spec

TRIAL_SECONDS = 3.0
"""Of training, once it is compiled; two updates at least."""
TRIAL_ROWS = 4096
"""Rollouts longer than this are cut for the trial: a row costs the same in a shorter one."""
SHARE_OF_MEMORY = 0.25
"""A replay memory larger than this share of what is free is not filled for the trial."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """An estimate.

    Attributes:
        total_timesteps: environment steps of each seed, for which this is.
        seeds: agents trained side by side.
        seconds: wall clock from making the model to the end of `learn`.
        compile_seconds: the part of it that does not grow with the steps.
        steps_per_second: environment steps of all seeds, apart from that.
        memory: bytes of this process at most, what it held before included.
        replay: bytes of the replay memories among them.
        disk: bytes of the model file, with `checkpoint` also of the replay memories.
        device: what was timed.
    """

    total_timesteps: int
    seeds: int
    seconds: float
    compile_seconds: float
    steps_per_second: float
    memory: int
    replay: int
    disk: int
    device: str


def estimate(
    algorithm: str,
    env: str | JaxEnv,
    total_timesteps: int,
    settings: Mapping[str, Any] | None = None,
    *,
    seeds: int = 1,
    checkpoint: bool = False,
    seconds: float | int = TRIAL_SECONDS,
) -> Cost:
    """Train for a few seconds by these very settings and extrapolate.

    Nothing is kept of the trial. What this process compiled before, or finds in JAX's cache on disk, takes no time
    again: in a fresh process the estimate is that of a fresh process. Steps before `learning_starts` count as if
    there were learning.

    Args:
        algorithm: a name of `advantage.ALGORITHMS`.
        env: an id, or a JAX environment.
        total_timesteps: environment steps of each seed.
        settings: keywords of the algorithm, `n_envs` and `policy` among them.
        seeds: agents trained side by side.
        checkpoint: count a checkpoint's replay memory as disk space, too.
        seconds: of the trial, after compilation.

    Raises:
        ValueError, TypeError: as the algorithm raises them.
    """
    face, fields = ALGORITHMS[algorithm], dict(settings or {})
    total_timesteps = whole("total_timesteps", total_timesteps)
    began = time.perf_counter()
    policy, n_envs = fields.pop("policy", None), whole("n_envs", fields.pop("n_envs", 1))
    spec = spec_of(resolve_env(env, 1))
    policy = policy or policy_of(spec)
    real = face(policy, None, n_envs=n_envs, seeds=seeds, **fields)
    replay = seeds * _replay_of(real, spec)
    tried = {**fields, **_trial_settings(real, spec, replay)}
    looked = time.perf_counter() - began
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the agents that train are built
        model = face(policy, env, n_envs=n_envs, seeds=seeds, seed=0, **tried)
        clock = _Clock(seconds)
        model.learn(total_timesteps, callback=clock)
    took, done = time.perf_counter() - began, model.num_timesteps
    rate = clock.rate() or done / took
    if done < total_timesteps:
        # The time until the first update was through, without its steps, which took as long as later ones.
        compiling = clock.times[1] - began - clock.steps[1] / rate if len(clock.times) > 1 else 0.0
        took = max(compiling, 0.0) + total_timesteps / rate
    file = io.BytesIO()
    model.save(file)
    trial_replay = seeds * _replay_of(model, spec)
    return Cost(
        total_timesteps, seeds, looked + took, max(took - total_timesteps / rate, 0.0), rate * seeds,
        peak_memory() + replay - trial_replay, replay, file.tell() + checkpoint * replay,
        str(model.device.device_kind),
    )  # fmt: skip


class _Clock(BaseCallback):
    """Notes when each update was through, and stops a while after the first."""

    def __init__(self, seconds: float | int):
        super().__init__()
        self.seconds = seconds
        self.times: list[float] = []
        self.steps: list[int] = []

    def _on_rollout_start(self) -> None:
        # Host: after the first step of each chunk, so that what lies between two is a chunk and an update.
        self.times.append(time.perf_counter())
        self.steps.append(self.model.num_timesteps)

    def _on_step(self) -> bool:
        # The first is inside of compilation (host), or just after it; the second after the first update.
        return len(self.times) < 3 or time.perf_counter() - self.times[1] < self.seconds

    def rate(self) -> float | None:
        """Environment steps of one seed per second, after compilation; None where too few were made."""
        if len(self.times) < 3:
            return None
        return (self.steps[-1] - self.steps[1]) / (self.times[-1] - self.times[1])


def policy_of(spec: Spec) -> str:
    """The policy that takes such observations."""
    if spec.observation.is_image() and sorted(spec.observation.shape)[1] >= 36:  # the least that DQN's CNN takes
        return "CnnPolicy"
    return "MultiInputPolicy" if spec.observation.kind == "dict" else "MlpPolicy"


def _replay_of(model: Model, spec: Spec) -> int:
    return replay_bytes(model.algorithm, model._config, spec, model.n_envs, model._prioritised)


def _trial_settings(model: Model, spec: Spec, replay: int) -> dict[str, Any]:
    """What is different in the trial: it learns at once, and holds less where that is all the same for the time."""
    config, changed = model._config, {}
    if hasattr(config, "learning_starts"):
        changed["learning_starts"] = 0
    if replay > SHARE_OF_MEMORY * free_memory():
        changed["buffer_size"] = max(
            int(config.buffer_size * SHARE_OF_MEMORY * free_memory() / replay), 10_000
        )
    length = config.steps_per_update
    if not hasattr(model.algorithm, "learn") and getattr(config, "n_steps", None) == length:
        minibatch = getattr(config, "batch_size", 1)
        while (
            length * model.n_envs > TRIAL_ROWS
            and length % 2 == 0
            and length // 2 * model.n_envs % minibatch == 0
        ):
            length //= 2
        changed["n_steps"] = length
    return changed


def free_memory() -> int:
    """Bytes that the system could still give."""
    text = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """Bytes that this process held at most."""
    # Linux's own count begins with the process; `getrusage` inherits from the one that started it.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
