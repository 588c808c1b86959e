"""MountainCar without shaping, with a bonus that gets hacked, and with the same function as a potential.

    python benchmarks/shaping.py             # trains: results/shaping.json, then the picture
    python benchmarks/shaping.py --report    # the picture alone, docs/images/shaping.png

Protocol: PPO, five seeds side by side on `MountainCar-v0` from Gymnasium, 100,000 environment steps each. Every
5,000 steps each seed plays ten whole episodes of the deterministic policy on the environment without any
shaping; a return is their mean. All three arms have the same settings; only the reward differs. `SCALE` is the
only number that was chosen after looking: of the two tried, a tenth of it let nobody hack the naive bonus in time.
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
SCALE, GAMMA = 30.0, 0.99
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
    """Train one arm: steps, true returns `[seeds, points]` and seconds."""
    from advantage import PPO, ScaleReward, make_vec_env
    from advantage.training.evaluation import evaluate_seeds

    def make() -> gymnasium.Env:
        return ScaleReward(scaled(shape(gymnasium.make("MountainCar-v0"))), 0.1)

    model = PPO("MlpPolicy", make_vec_env(make, n_envs=8), seed=0, seeds=seeds, **SETTINGS)
    true, returns, seconds = scaled(gymnasium.make("MountainCar-v0")), [], 0.0
    for _ in range(POINTS):
        began = time.perf_counter()
        model.learn(steps // POINTS, reset_num_timesteps=False)
        seconds += time.perf_counter() - began
        returns.append(evaluate_seeds(model, true, n_eval_episodes=EPISODES).mean(axis=1).round(1).tolist())
    at = [steps // POINTS * (k + 1) for k in range(POINTS)]
    return {"steps": at, "returns": np.transpose(returns).tolist(), "seconds": round(seconds, 1)}


def report(data: dict[str, Any]) -> None:
    """The picture."""
    from advantage.experiments.plots import learning_curve

    curves = {name: (arm["steps"], arm["returns"]) for name, arm in data["arms"].items()}
    learning_curve(curves, PICTURE, "PPO on MountainCar-v0: the true return")
    for name, (_, returns) in curves.items():
        print(f"{name:16} return after training {np.mean(np.array(returns)[:, -1]):7.1f}")


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
            "settings": {**SETTINGS, "n_envs": 8, "potential_scale": SCALE, "reward_scale": 0.1},
            "arms": trained,
        }
        text = json.dumps(data, indent=1)
        DATA.write_text(text + "\n", encoding="utf-8")
    report(json.loads(DATA.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
