"""Where the time of a step on Gymnasium environments goes, and the memory: one table for each job.

    taskset -c 0 python benchmarks/budget.py            # all jobs: a minute
    taskset -c 0 python benchmarks/budget.py dqn-gym

Each part is timed by a clock around it, inside a real run on one core: so with the caches as cold as training
leaves them. "environments alone" is Gymnasium's own `step` and `reset` in a loop that does nothing else.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _worker
import gymnasium
import jobs
import numpy as np

JOBS = ("ppo-gym", "ppo-gymvec", "dqn-gym")


class Clocks:
    """Seconds spent in functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def around(self, name: str, function: Callable) -> Callable:
        """The function with a clock around it."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            return out

        return timed


def profile(job: str) -> dict[str, float]:
    """Microseconds for each vector step, by part."""
    from advantage.drivers import host

    run, clocks = jobs.RUNS[job], Clocks()
    model = _worker.build("ours", _worker.load("ours", run.algorithm), run)
    model.learn(2 * run.warmup)
    compiled = host._programs

    def programs(*setting: Any) -> host.Programs:
        found = compiled(*setting)
        timed = {name: clocks.around(name, getattr(found, name)) for name in ("act", "update")}
        return found._replace(**timed)

    envs = model._driver.envs
    step, envs.step, host._programs = envs.step, clocks.around("environments", envs.step), programs
    began = time.perf_counter()
    model.learn(run.steps, reset_num_timesteps=False)
    total = time.perf_counter() - began
    envs.step, host._programs = step, compiled
    steps = run.steps / run.n_envs
    parts = {name: seconds / steps * 1e6 for name, seconds in clocks.seconds.items()}
    return {**parts, "the rest": total / steps * 1e6 - sum(parts.values()), "together": total / steps * 1e6}


def environments_alone(job: str, steps: int = 5_000) -> float:
    """Microseconds for each vector step of random actions."""
    run = jobs.RUNS[job]
    actions = np.random.default_rng(0).integers(0, 2, (steps, run.n_envs))
    if run.vectorised:
        vector = gymnasium.make_vec(run.env, num_envs=run.n_envs, vectorization_mode="vector_entry_point")
        vector.reset(seed=0)
        began = time.perf_counter()
        for row in actions:
            vector.step(row)
        return (time.perf_counter() - began) / steps * 1e6
    envs = [gymnasium.make(run.env, disable_env_checker=True) for _ in range(run.n_envs)]
    for env in envs:
        env.reset(seed=0)
    began = time.perf_counter()
    for row in actions:
        for env, action in zip(envs, row, strict=True):
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
    return (time.perf_counter() - began) / steps * 1e6


def memory() -> dict[str, int]:
    """Resident megabytes, at most, after each stage of a PPO run."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    stages = {"Python and NumPy": peak()}
    ppo = _worker.load("ours", "PPO")
    stages["advantage imported"] = peak()
    import jax

    jax.numpy.zeros(1).block_until_ready()
    stages["JAX's backend made"] = peak()
    run = jobs.RUNS["ppo-gym"]
    model = _worker.build("ours", ppo, run)
    stages["the networks' initialisation compiled and run"] = peak()
    model.learn(run.warmup)
    stages["acting and learning compiled and run"] = peak()
    return stages


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", nargs="*", choices=[*JOBS, []], help="only these")
    chosen = parser.parse_args().job or JOBS
    lines = ["# Budget", "", f"`{Path(__file__).name}`, on one core.", "", "| resident MB, at most | |", "| --- | ---: |"]
    lines += [f"| {stage} | {megabytes} |" for stage, megabytes in memory().items()]
    for job in chosen:
        parts = {"environments alone": environments_alone(job), **profile(job)}
        lines += ["", f"| {job}: microseconds for each vector step | |", "| --- | ---: |"]
        lines += [f"| {name} | {microseconds:.0f} |" for name, microseconds in parts.items()]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
