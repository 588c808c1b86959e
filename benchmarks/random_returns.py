"""The return of uniformly random actions: where normalised scores begin.

    python benchmarks/random_returns.py      # results/random_returns.json; `experiments/tasks.py` holds the numbers

1,000 whole episodes of each environment, the k-th reset with seed k, its action space seeded with 0.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import gymnasium
import numpy as np

FILE = Path(__file__).resolve().parent / "results" / "random_returns.json"
ENVS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1")
EPISODES = 1_000


def random_returns(env_id: str) -> list[float]:
    """The return of each episode."""
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    returns = []
    for episode in range(EPISODES):
        env.reset(seed=episode)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def main() -> None:
    """Play and write."""
    entries = {}
    for env_id in ENVS:
        returns = random_returns(env_id)
        error = np.std(returns) / np.sqrt(EPISODES)
        entries[env_id] = {
            "mean": round(float(np.mean(returns)), 2),
            "standard_error": round(float(error), 2),
        }
        print(env_id, entries[env_id], flush=True)
    version = importlib.metadata.version("gymnasium")
    data = {
        "command": "python benchmarks/random_returns.py",
        "gymnasium": version,
        "episodes": EPISODES,
        "returns": entries,
    }
    FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
