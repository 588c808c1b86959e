"""`compare` with ten seeds of PPO against one seed of Stable-Baselines3: the same settings, steps and evaluations.

    python benchmarks/many_seeds.py [--python-sb3 PATH] [--rounds 3]     # results/many_seeds.json and many_seeds.md

Protocol: PPO's preset for CartPole-v1, 100,000 steps of each seed. Ours is one process that calls `compare` with ten
seeds: ten evaluations of 20 episodes of each seed, the report and its pictures. SB3's is one process that trains one
seed on eight environments in a `DummyVecEnv`, torch with one thread (the faster way for networks of this size), and
evaluates that seed as often, by `evaluate_policy`. Both may use all cores. The two take turns. `training` counts
neither evaluations nor imports; `all` is everything from after the imports on. Ratios are formed within a round; the
table has the median of the rounds and, as the range, the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jobs
import speed

RESULTS = Path(__file__).resolve().parent / "results"
JOB, SEEDS = jobs.LEARNING["ppo-cartpole"], 10  # which is the preset
EVALUATIONS, EPISODES = 10, 20


def main() -> None:
    """Measure, or be one of the measured processes."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--python-sb3", metavar="PATH", help="an interpreter that has sb3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("ours", "sb3"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps({"ours": ours, "sb3": sb3}[options.child]()), flush=True)
        return
    before, rounds = os.getloadavg(), []
    pythons = {name: speed.python_of(name, options) for name in ("sb3", "ours")}
    for number in range(options.rounds):
        rounds.append({name: child(name, python) for name, python in pythons.items()})
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    data = {
        "command": f"python benchmarks/many_seeds.py --rounds {options.rounds}",
        "machine": {**speed.machine(), "load_before": before, "load_after": os.getloadavg()},
        "rounds": rounds,
    }
    (RESULTS / "many_seeds.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "many_seeds.md").write_text(report(data), encoding="utf-8")
    print(report(data))


def child(name: str, python: str) -> dict[str, Any]:
    """One process's numbers."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false",
                   "PYTHONPATH": str(speed.ROOT / "src") if name == "ours" else ""}  # fmt: skip
    load = os.getloadavg()[0]
    words = [python, __file__, "--child", name]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "load": round(load, 2)}


def ours() -> dict[str, Any]:
    """Ten seeds: train, evaluate, store, report, draw."""
    import advantage
    from advantage.experiments.compare import compare

    preset = advantage.preset(JOB.algorithm, JOB.env)
    with tempfile.TemporaryDirectory() as folder:
        cpu, began = time.process_time(), time.perf_counter()
        found = compare(
            [JOB.algorithm], JOB.env, out=folder, seeds=SEEDS, total_timesteps=JOB.steps, presets=True,
            evaluations=EVALUATIONS, n_eval_episodes=EPISODES,
        )  # fmt: skip
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert preset.settings == found.results.settings(JOB.algorithm)
    final = found.results.final(JOB.algorithm).round(1).tolist()
    return {"training": found.results.seconds(JOB.algorithm), "all": took, "cpu": cpu, "final": final}


def sb3() -> dict[str, Any]:
    """One seed: train and evaluate."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    torch.set_num_threads(1)
    returns, spent = [], [0.0]
    other = make_vec_env(JOB.env, 1, seed=10_000)

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps >= JOB.steps * (len(returns) + 1) / EVALUATIONS:
                began = time.perf_counter()
                returns.append(float(evaluate_policy(self.model, other, n_eval_episodes=EPISODES)[0]))
                spent[0] += time.perf_counter() - began
            return True

    cpu, began = time.process_time(), time.perf_counter()
    model = PPO("MlpPolicy", make_vec_env(JOB.env, JOB.n_envs, seed=0), seed=0, device="cpu", **JOB.settings)
    model.learn(JOB.steps, callback=Evaluate())
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"training": took - spent[0], "all": took, "cpu": cpu, "final": [returns[-1]]}


def report(data: dict[str, Any]) -> str:
    """The table."""
    machine, rounds = data["machine"], data["rounds"]
    lines = [
        "# Ten seeds by `compare`, against one of Stable-Baselines3\n",
        f"`{data['command']}`; protocol in the head of that file. {machine['cores']} cores of {machine['cpu']}, shared"
        f" with other work: load {machine['load_before'][0]:.1f} before and {machine['load_after'][0]:.1f} after."
        f" PPO on {JOB.env}, {JOB.steps:,} steps of each seed.\n",
        f"| seconds, median of {len(rounds)} | {SEEDS} seeds, ours | 1 seed, SB3 | ratio (range) | target |",
        "|---|---:|---:|---:|---|",
    ]
    labels = {"training": "training", "all": "all, with evaluations and report", "cpu": "CPU time of all"}
    for field, label in labels.items():
        a, b = ([r[name][field] for r in rounds] for name in ("ours", "sb3"))
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        target = "≤ 2" if field == "all" else ""
        lines.append(
            f"| {label} | {statistics.median(a):.1f} | {statistics.median(b):.1f} | {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f}) | {target} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
