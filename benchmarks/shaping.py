"""MountainCar without shaping, with a bonus that gets hacked, and with the same function as a potential.

    python benchmarks/shaping.py             # trains: results/shaping.json, then the picture
    python benchmarks/shaping.py --report    # the picture alone, docs/images/shaping.png

Protocol: PPO, five seeds side by side on `MountainCar-v0` from Gymnasium (the true reward: -1 per step until the
goal, cut after 200 steps), 100,000 environment steps each. Every 5,000 steps `RewardMonitor` notes the mean shaped
and true return of the training episodes that ended since, and each seed plays ten whole episodes of the
deterministic policy on the environment without any shaping (`greedy`). All three arms have the same settings; only
the reward differs. `SCALE` is the only number that was chosen after looking: of the two tried, a tenth of it let
nobody hack the naive bonus in time. What is trained on is a tenth of the shaped reward, in all arms; returns are
given without that factor.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA, PICTURE = ROOT / "benchmarks" / "results" / "shaping.json", ROOT / "docs" / "images" / "shaping.png"
SCALE, GAMMA, FACTOR = 30.0, 0.99, 0.1
STEPS, POINTS, EPISODES = 100_000, 20, 10
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3, "n_steps": 128, "batch_size": 256, "n_epochs": 6, "gamma": GAMMA, "gae_lambda": 0.95,
    "ent_coef": 0.01,
}  # fmt: skip


def energy(obs: np.ndarray) -> float:
    """Height and speed: what a car needs to leave the valley. 0 to about `1.5 * SCALE`."""
    position, velocity = obs
    return SCALE * (0.45 * np.sin(3 * position) + 0.55 + 100 * velocity**2)


class Bonus(gymnasium.Wrapper):
    """The naive way: `potential(s')` is added to the reward."""

    def step(self, action: Any) -> tuple:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward) + energy(obs), terminated, truncated, info


def arms() -> dict[str, Callable[[gymnasium.Env], gymnasium.Env]]:
    """What is done to the reward, by the names in the picture."""
    from advantage import PotentialShaping

    return {
        "no shaping": lambda env: env,
        "naive bonus": Bonus,
        "potential-based": lambda env: PotentialShaping(env, energy, GAMMA),
    }


def scaled(env: gymnasium.Env) -> gymnasium.Env:
    """Observations in -1..1, which networks like; returns do not change."""
    return gymnasium.wrappers.RescaleObservation(env, np.float32(-1), np.float32(1))


def train(shape: Callable[[gymnasium.Env], gymnasium.Env], seeds: int, steps: int) -> dict[str, Any]:
    """Train one arm: steps, shaped, true and greedy returns `[seeds, points]`, and seconds."""
    from advantage import PPO, EvalCallback, Monitor, RewardMonitor, ScaleReward, make_vec_env

    def make() -> gymnasium.Env:
        return ScaleReward(scaled(shape(Monitor(gymnasium.make("MountainCar-v0")))), FACTOR)

    every = steps // POINTS
    monitor = RewardMonitor(check_freq=every, verbose=1)
    evaluation = EvalCallback(
        scaled(gymnasium.make("MountainCar-v0")), n_eval_episodes=EPISODES, eval_freq=every, verbose=0
    )
    model = PPO("MlpPolicy", make_vec_env(make, n_envs=8), seed=0, seeds=seeds, **SETTINGS)
    began = time.perf_counter()
    model.learn(steps, callback=[monitor, evaluation])
    seconds = time.perf_counter() - began
    shaped, true = np.transpose(monitor.shaped_returns) / FACTOR, np.transpose(monitor.true_returns)
    greedy = np.mean(evaluation.evaluations_results, axis=-1).reshape(POINTS, seeds).T
    return {
        "steps": monitor.timesteps, "shaped": shaped.round(1).tolist(), "true": true.round(1).tolist(),
        "greedy": greedy.round(1).tolist(), "seconds": round(seconds, 1),
    }  # fmt: skip


def warned(arm: dict[str, Any]) -> tuple[int, int] | None:
    """The first and the last step of the window in which `RewardMonitor` warns, or None."""
    from advantage.experiments.reward_monitor import divergence

    shaped, true = np.mean(arm["shaped"], axis=0), np.mean(arm["true"], axis=0)
    for last in range(len(true)):
        found = divergence(shaped[: last + 1], true[: last + 1])
        if found is not None:
            return arm["steps"][last + 1 - found.points], arm["steps"][last]
    return None


def report(data: dict[str, Any]) -> None:
    """The picture."""
    from advantage.experiments.plots import paid_and_true

    arms = data["arms"]
    runs = {name: (arm["steps"], arm["shaped"], arm["true"]) for name, arm in arms.items()}
    windows = {name: warned(arm) for name, arm in arms.items()}
    marked = {name: window for name, window in windows.items() if window is not None}
    paid_and_true(runs, PICTURE, "PPO on MountainCar-v0", marked)
    for name, arm in arms.items():
        ends = {kind: np.mean(np.array(arm[kind])[:, -1]) for kind in ("shaped", "true", "greedy")}
        said = ", ".join(f"{kind} {mean:.1f}" for kind, mean in ends.items())
        print(f"{name:16} at the end: {said}; the monitor warns of {windows[name]}")


def main() -> None:
    """Train or draw, as the command line says."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--seeds", type=int, default=5, help="agents of each arm (5)")
    parser.add_argument("--total-timesteps", type=int, default=STEPS, help="of each agent (100,000)")
    parser.add_argument("--report", action="store_true", help="no training: draw what is committed")
    options = parser.parse_args()
    if not options.report:
        trained = {name: train(shape, options.seeds, options.total_timesteps) for name, shape in arms().items()}
        packages = ("jax", "equinox", "gymnasium")
        data = {
            "command": "python benchmarks/shaping.py",
            "versions": {package: importlib.metadata.version(package) for package in packages},
            "settings": {**SETTINGS, "n_envs": 8, "potential_scale": SCALE, "reward_scale": FACTOR},
            "arms": trained,
        }
        text = json.dumps(data, indent=1)
        DATA.write_text(text + "\n", encoding="utf-8")
    report(json.loads(DATA.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
