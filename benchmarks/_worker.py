"""One measurement in one process: `python benchmarks/_worker.py LIBRARY RUN` prints one JSON line.

LIBRARY is `ours`, `sb3`, `sbx`, or `jax` (which can only be imported); RUN is a name in `jobs.RUNS`, or
`import` or `help`. Run by `speed.py`, which pins the process to its cores; all times are this process's own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import sys
import time
from typing import Any

import jobs

MODULES = {"ours": "advantage", "sb3": "stable_baselines3", "sbx": "sbx", "jax": "jax"}
CONTRIB = {"TQC", "CrossQ", "TRPO", "RecurrentPPO"}  # in SB3's sister package
DISTRIBUTIONS = {
    "ours": ("advantage", "jax", "jaxlib", "equinox", "numpy", "gymnasium"),
    "sb3": ("stable_baselines3", "torch", "numpy", "gymnasium"),
    "sbx": ("sbx-rl", "stable_baselines3", "jax", "jaxlib", "numpy", "gymnasium"),
    "jax": ("jax", "jaxlib", "numpy"),
}


class Clock:
    """CPU and wall seconds since its making; CPU counts every thread of the process, user and system."""

    def __init__(self) -> None:
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Both, rounded to microseconds."""
        return {
            "cpu": round(time.process_time() - self.cpu, 6),
            "wall": round(time.perf_counter() - self.wall, 6),
        }


class Compilations:
    """Counts JAX's compilations, and the seconds they took; nothing where JAX isn't used."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0
        if "jax" in sys.modules:
            sys.modules["jax"].monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += seconds
            self.count += event.endswith("backend_compile_duration")


def main(library: str, run: str) -> dict[str, Any]:
    """Measure and return what is printed."""
    if run == "import":
        result = measure_import(library)
    elif run == "help":
        result = measure_help()
    else:
        result = measure_training(library, jobs.RUNS[run])
    # Linux counts kilobytes, macOS bytes.
    unit = 1024.0**2 if sys.platform == "darwin" else 1024.0
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
    return {"library": library, "run": run, **result, "peak_mb": peak, "versions": versions(library)}


def versions(library: str) -> dict[str, str]:
    """Versions of what was measured."""
    found = {"python": sys.version.split()[0]}
    for name in DISTRIBUTIONS[library]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
            found[name] = str(getattr(sys.modules.get(name), "__version__", "source"))
    return found


def measure_import(library: str) -> dict[str, Any]:
    """The time until the library, and PPO in it, can be used."""
    clock = Clock()
    module = importlib.import_module(MODULES[library])
    package = clock.read()
    if library != "jax":
        module.PPO  # noqa: B018 - names are loaded lazily
    return {**clock.read(), "package_cpu": package["cpu"], "package_wall": package["wall"]}


def measure_help() -> dict[str, Any]:
    """The time in which `advantage --help` answers, without Python's own start."""
    sys.argv = ["advantage", "--help"]
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    clock = Clock()
    try:
        importlib.import_module("advantage.cli").main()
    except SystemExit as left:
        if left.code:
            raise
    finally:
        sys.stdout = stdout
    return clock.read()


def measure_training(library: str, run: jobs.Run) -> dict[str, Any]:
    """Time the third `learn`, when everything is compiled, and what came before.

    `compile_cpu` is the CPU time of making the model and of the first `learn`, less what as many steps cost
    in the third one: tracing, compiling and first use of everything. `compile_jax` is JAX's own clock for
    tracing, lowering and compiling, in wall seconds. Both are small but not zero for a library that
    compiles nothing (`compile_jax` is then zero).
    """
    total, clock = Clock(), Clock()
    algorithm = load(library, run.algorithm)
    imported = clock.read()
    compilations = Compilations()
    clock = Clock()
    model = build(library, algorithm, run)
    built = clock.read()
    clock = Clock()
    model.learn(run.warmup, progress_bar=run.progress_bar)
    first, ready = clock.read(), total.read()
    # SBX compiles a little in its second `learn` too: no clock runs in that one, for anybody.
    warm = model.num_timesteps
    model.learn(run.warmup, reset_num_timesteps=False)
    compiled, compile_seconds, begun = compilations.count, compilations.seconds, model.num_timesteps
    clock = Clock()
    model.learn(run.steps, reset_num_timesteps=False, progress_bar=run.progress_bar)
    timed = clock.read()
    # What was done, not what was asked for: SB3 finishes the rollout it began.
    steps = (model.num_timesteps - begun) * run.seeds
    per_step = {kind: timed[kind] / steps for kind in ("cpu", "wall")}
    warmup_cpu = per_step["cpu"] * warm * run.seeds
    return {
        "steps": steps,
        "timed_cpu": timed["cpu"],
        "timed_wall": timed["wall"],
        "cpu_per_step": per_step["cpu"],
        "wall_per_step": per_step["wall"],
        "steps_per_cpu_second": round(1 / per_step["cpu"], 1),
        "steps_per_second": round(1 / per_step["wall"], 1),
        "import_cpu": imported["cpu"],
        "import_wall": imported["wall"],
        "ready_wall": ready["wall"],
        "compile_cpu": round(built["cpu"] + first["cpu"] - warmup_cpu, 3),
        "compile_jax": round(compile_seconds, 3),
        "compilations": compiled,
        "compilations_while_timed": compilations.count - compiled,
        "compile_jax_while_timed": round(compilations.seconds - compile_seconds, 3),
    }


def load(library: str, algorithm: str) -> Any:
    """The class, with a thread for each core this is pinned to for peers that use torch."""
    module = "sb3_contrib" if library == "sb3" and algorithm in CONTRIB else MODULES[library]
    found = getattr(importlib.import_module(module), algorithm)
    if library in ("sb3", "sbx"):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
    return found


def build(library: str, algorithm: Any, run: jobs.Run) -> Any:
    """The model on its environments; both peers step theirs one by one in a `DummyVecEnv`."""
    policy = jobs.policy_of(run.algorithm, run.env)
    if library == "ours":
        options: dict[str, Any] = {"seed": 0, "seeds": run.seeds}
        if run.vectorised:
            import gymnasium

            mode = "vector_entry_point"
            env: Any = gymnasium.make_vec(run.env, num_envs=run.n_envs, vectorization_mode=mode)
        else:
            env = run.env
            options["n_envs"] = run.n_envs
        return algorithm(policy, env, **options, **run.settings)
    if run.seeds > 1 or run.vectorised:
        raise ValueError(f"{library} cannot run {run}: only one seed, no gymnasium.vector environments")
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env

    settings = dict(run.settings)
    if run.env.startswith("ALE/"):
        import ale_py
        import gymnasium
        from stable_baselines3.common.vec_env import VecFrameStack

        gymnasium.register_envs(ale_py)
        plain = {"frameskip": 1, "repeat_action_probability": 0.0}  # SB3's wrappers skip frames
        env = VecFrameStack(make_atari_env(run.env, run.n_envs, seed=0, env_kwargs=plain), 4)
    else:
        env = make_vec_env(run.env, run.n_envs, seed=0)
    if settings.pop("normalize", False):
        from stable_baselines3.common.vec_env import VecNormalize

        env = VecNormalize(env)
    return algorithm(policy, env, seed=0, device=run.device, **settings)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
