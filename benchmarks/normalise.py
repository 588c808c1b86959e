"""What normalisation costs, and what it brings on badly scaled observations.

    python benchmarks/normalise.py speed        # two minutes; on one core: taskset -c 0 python ...
    python benchmarks/normalise.py scales       # a few minutes
    python benchmarks/normalise.py report       # the table and the picture anew, from what is committed

`speed`: PPO on 8 Gymnasium CartPoles with the settings of `jobs.py`: plain, with `normalize=True`, with a CSV log at
every update, and with both. Four models in one process take turns, so that whatever else the machine does falls on
all; the ratio of CPU time to the plain model's in the same round, median over rounds.

`scales`: PPO on two JAX environments whose observations are multiplied component by component, with and without
`normalize=True`, and on the environments as they are. Five seeds in one process; every seed plays 20 whole episodes
(the best action, raw returns) ten or twenty times over training. All arms have the same settings; none was tuned.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jobs
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA, TABLE, PICTURE = RESULTS / "normalise.json", RESULTS / "normalise.md", ROOT / "docs" / "images" / "normalise.png"
SEEDS, EPISODES = 5, 20
# Short rounds in turn: what other programs take, they take from all arms.
ROUNDS, ROUND_STEPS = 41, 8_192


# -- what it costs ------------------------------------------------------------------------------------------


def speed() -> dict[str, Any]:
    """CPU and wall microseconds for each step and round, by arm."""
    from advantage import PPO
    from advantage.training.loggers import configure

    run, rounds = jobs.RUNS["ppo-gym"], {}
    arms = {"neither": (False, False), "normalize": (True, False), "csv": (False, True), "both": (True, True)}
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for name, (normalize, log) in arms.items():
            models[name] = PPO("MlpPolicy", run.env, n_envs=run.n_envs, seed=0, normalize=normalize, **run.settings)
            if log:
                models[name].set_logger(configure(f"{folder}/{name}", ["csv"]))
            # Until episodes are long: resets cost time too, and all arms shall have few.
            models[name].learn(2 * run.steps)
            rounds[name] = {"cpu": [], "wall": []}
        for k in range(ROUNDS):
            for name in list(arms)[:: 1 if k % 2 else -1]:
                cpu, wall = time.process_time(), time.perf_counter()
                models[name].learn(ROUND_STEPS, reset_num_timesteps=False)
                rounds[name]["cpu"].append(round((time.process_time() - cpu) / ROUND_STEPS * 1e6, 3))
                rounds[name]["wall"].append(round((time.perf_counter() - wall) / ROUND_STEPS * 1e6, 3))
        lengths = {name: float(np.mean(model._driver.recent(0).lengths)) for name, model in models.items()}
    return {"rounds": rounds, "episode_lengths": lengths, "load": round(os.getloadavg()[0], 1)}


# -- what it brings -----------------------------------------------------------------------------------------


def rescaled(env_id: str, scale: tuple[float, ...]) -> Any:
    """The JAX environment with its observations multiplied by `scale`."""
    import jax.numpy as jnp

    from advantage.envs.jax import make_jax
    from advantage.envs.wrapping import JaxWrapper
    from advantage.types import Space

    @dataclasses.dataclass(frozen=True)
    class Rescaled(JaxWrapper):
        scale: tuple[float, ...]

        @property
        def spec(self) -> Any:
            space = Space("box", (len(self.scale),), low=-np.inf, high=np.inf)
            return dataclasses.replace(self.env.spec, observation=space)

        def reset(self, key: Any) -> tuple:
            state, obs = super().reset(key)
            return state, obs * jnp.asarray(self.scale, jnp.float32)

        def step(self, env_state: Any, action: Any, key: Any) -> tuple:
            inner, out = self.env.step(env_state.inner, action, key)
            obs = out.obs * jnp.asarray(self.scale, jnp.float32)
            return env_state._replace(inner=inner), out._replace(obs=obs)

    return Rescaled(make_jax(env_id), scale)


TASKS: dict[str, dict[str, Any]] = {
    "CartPole": {
        "env": "advantage/CartPole-v1", "scale": (1e-3, 1e-2, 1e2, 1e3), "n_envs": 8, "steps": 200_000, "points": 20,
        "settings": {"n_steps": 64, "batch_size": 256, "n_epochs": 10}, "threshold": 475.0,
    },
    "Pendulum": {
        "env": "advantage/Pendulum-v1", "scale": (1e-3, 1e3, 1.0), "n_envs": 8, "steps": 400_000, "points": 20,
        "settings": {"n_steps": 128, "batch_size": 256, "n_epochs": 10, "gamma": 0.95, "learning_rate": 1e-3},
        "threshold": -300.0,
    },
}  # fmt: skip


def scales() -> dict[str, Any]:
    """Returns `[seeds, points]` of every arm of every task."""
    done = {}
    for name, task in TASKS.items():
        ones = (1.0,) * len(task["scale"])
        arms = {
            "as it is": (ones, False), "as it is, normalize=True": (ones, True),
            "badly scaled": (task["scale"], False), "badly scaled, normalize=True": (task["scale"], True),
            "badly scaled, observations only": (task["scale"], {"norm_reward": False}),
        }  # fmt: skip
        done[name] = {arm: train(task, *given) for arm, given in arms.items()}
        for arm, curve in done[name].items():
            print(f"{name}: {arm}: {np.mean(curve['returns'], axis=0).round(0)[-1]}, {curve['seconds']} s", flush=True)
    return done


def train(task: dict[str, Any], scale: tuple[float, ...], normalize: Any) -> dict[str, Any]:
    """One arm."""
    from advantage import PPO
    from advantage.training.evaluation import evaluate_seeds

    env, returns, began = rescaled(task["env"], scale), [], time.perf_counter()
    options = {"n_envs": task["n_envs"], "seeds": SEEDS, "seed": 0, "normalize": normalize}
    model = PPO("MlpPolicy", env, **options, **task["settings"])
    # Whole updates: the steps of one divide those of a part.
    part = task["steps"] // task["points"]
    part -= part % (task["settings"]["n_steps"] * task["n_envs"])
    for _ in range(task["points"]):
        model.learn(part, reset_num_timesteps=False)
        returns.append(evaluate_seeds(model, env, EPISODES).mean(axis=1).round(1).tolist())
    at = [part * (k + 1) for k in range(task["points"])]
    seconds = round(time.perf_counter() - began, 1)
    return {"steps": at, "returns": np.transpose(returns).tolist(), "seconds": seconds}


# -- what is written ----------------------------------------------------------------------------------------


def report(data: dict[str, Any]) -> None:
    """The table and the picture."""
    lines = ["# Normalisation", "", "Made by `python benchmarks/normalise.py speed` and `... scales`.", ""]
    if "speed" in data:
        lines += speed_table(data["speed"])
    if "scales" in data:
        for task, arms in data["scales"].items():
            lines += scales_table(task, arms)
        picture(data["scales"])
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def speed_table(speed: dict[str, Any]) -> list[str]:
    """Rows of the costs."""
    lines = [
        "## Cost", "",
        (f"PPO, 8 Gymnasium CartPoles, medians of {len(speed['rounds']['neither']['cpu'])} rounds"
        f" of {ROUND_STEPS:,} steps; load of the machine {speed['load']}."), "",
        "| | CPU us a step | CPU time / neither | wall time / neither | episode length |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    base = speed["rounds"]["neither"]
    for name, times in speed["rounds"].items():
        ratios = [np.median(np.divide(times[kind], base[kind])) for kind in ("cpu", "wall")]
        length = speed["episode_lengths"][name]
        lines.append(f"| {name} | {np.median(times['cpu']):.1f} | {ratios[0]:.3f} | {ratios[1]:.3f} | {length:.0f} |")
    return [*lines, ""]


def scales_table(task: str, arms: dict[str, Any]) -> list[str]:
    """Rows of the returns."""
    threshold = TASKS[task]["threshold"]
    lines = [
        f"## {task}: observations times {', '.join(f'{x:g}' for x in TASKS[task]['scale'])}", "",
        f"Steps to {threshold:g}: the first evaluation at which a seed's mean return reached it; median over seeds.", "",
        "| | steps to it | seeds that reached it | return at the end, mean over seeds | worst seed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for name, arm in arms.items():
        returns, steps = np.array(arm["returns"]), np.array(arm["steps"])
        first = np.where((returns >= threshold).any(axis=1), steps[(returns >= threshold).argmax(axis=1)], np.inf)
        median = np.median(first)
        end = returns[:, -1]
        lines.append(
            f"| {name} | {f'{median:,.0f}' if np.isfinite(median) else 'not reached'} | {np.isfinite(first).sum()}"
            f" of {len(returns)} | {end.mean():.0f} | {end.min():.0f} |"
        )
    return [*lines, ""]


def picture(tasks: dict[str, Any]) -> None:
    """Learning curves of both tasks side by side: the mean over seeds, and each seed as a thin line."""
    from matplotlib.figure import Figure

    from advantage.experiments.plots import COLOURS

    figure = Figure(figsize=(10, 4.2), dpi=160, layout="constrained", facecolor="white")
    for axes, (task, arms) in zip(figure.subplots(1, len(tasks)), tasks.items(), strict=True):
        shown = ("as it is", "badly scaled", "badly scaled, normalize=True")
        for colour, name in zip(("#8a8a8a", COLOURS[1], COLOURS[0]), shown, strict=True):
            steps, returns = np.array(arms[name]["steps"]) / 1000, np.array(arms[name]["returns"])
            axes.plot(steps, returns.T, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps, returns.mean(axis=0), color=colour, linewidth=2.2, label=name)
        scale = ", ".join(f"{x:g}" for x in TASKS[task]["scale"])
        axes.set_title(f"{task}, observations times {scale}", fontsize=10.5, loc="left")
        axes.set_xlabel("environment steps, thousands", fontsize=9.5)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("episode return", fontsize=9.5)
    handles = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    figure.savefig(PICTURE)


def main() -> None:
    """Measure or report, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["speed", "scales", "report"])
    chosen = parser.parse_args().what
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    for name, measure in (("speed", speed), ("scales", scales)):
        if name in chosen:
            data[name] = measure()
            packages = ("jax", "equinox", "gymnasium")
            data["versions"] = {package: importlib.metadata.version(package) for package in packages}
            DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    report(data)


if __name__ == "__main__":
    main()
