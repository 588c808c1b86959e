"""Are the estimates of `advantage suggest` true? Predicted against actual wall clock and memory.

    python benchmarks/suggest.py [--job ppo-gym ...] [--rounds 3]     # results/suggest.json and suggest.md

Protocol: for each job of `jobs.py`, with more steps than there, one fresh process estimates it by
`advantage.experiments.cost.estimate` and another one trains it, from making the model to the end of `learn`; they
take turns, pinned to the job's number of cores, JAX's cache on disk off. Memory is the process's peak. The error is
that of the estimate relative to what was measured in the same round; the table has the median of the rounds and, as
the range, the lowest and highest.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import speed

RESULTS = Path(__file__).resolve().parent / "results"
# Environment steps of each seed: 10 to 30 s of training on one core.
STEPS = {
    "ppo-gym": 200_000,
    "ppo-fused": 600_000,
    "ppo-fused-8seeds": 300_000,
    "dqn-gym": 60_000,
    "dqn-gym-8seeds": 20_000,
    "dqn-fused": 400_000,
}


def main() -> None:
    """Measure, or be one of the measured processes."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--job", action="append", choices=list(STEPS), help="only this one; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("estimate", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.job or list(STEPS)
    if options.child:
        print(json.dumps({"estimate": estimate, "train": train}[options.child](names[0])), flush=True)
        return
    before, rounds = os.getloadavg(), []
    for number in range(options.rounds):
        rounds.append({name: {kind: child(kind, name) for kind in ("estimate", "train")} for name in names})
        print(f"round {number + 1}: {json.dumps(rounds[-1])}", file=sys.stderr, flush=True)
    data = {
        "command": " ".join(["python", "benchmarks/suggest.py", *sys.argv[1:]]),
        "machine": {**speed.machine(), "load_before": before, "load_after": os.getloadavg()},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "equinox", "gymnasium")},
        "rounds": rounds,
    }
    (RESULTS / "suggest.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "suggest.md").write_text(report(data), encoding="utf-8")
    print(report(data))


def child(kind: str, name: str) -> dict[str, Any]:
    """One process's numbers."""
    words = [*speed.pinned(jobs.RUNS[name].cores), sys.executable, __file__, "--child", kind, "--job", name]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false",
                   "PYTHONPATH": str(speed.ROOT / "src")}  # fmt: skip
    load = os.getloadavg()[0]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "load": round(load, 2)}


def estimate(name: str) -> dict[str, float]:
    """What is predicted, and how long that took."""
    from advantage.experiments.cost import estimate

    run, began = jobs.RUNS[name], time.perf_counter()
    found = estimate(
        run.algorithm, run.env, STEPS[name], {**run.settings, "n_envs": run.n_envs}, seeds=run.seeds
    )
    took = time.perf_counter() - began
    return {
        "seconds": found.seconds,
        "compile_seconds": found.compile_seconds,
        "memory": found.memory,
        "took": took,
    }


def train(name: str) -> dict[str, float]:
    """What is true."""
    import advantage
    from advantage.experiments.cost import peak_memory

    run = jobs.RUNS[name]
    face, began = getattr(advantage, run.algorithm), time.perf_counter()
    face("MlpPolicy", run.env, n_envs=run.n_envs, seed=0, seeds=run.seeds, **run.settings).learn(STEPS[name])
    return {"seconds": time.perf_counter() - began, "memory": peak_memory()}


def report(data: dict[str, Any]) -> str:
    """The table."""
    machine, rounds = data["machine"], data["rounds"]
    lines = [
        "# What `advantage suggest` estimates, against what is measured\n",
        f"`{data['command']}`, {len(rounds)} rounds; protocol in the head of that file. {machine['cores']} cores of"
        f" {machine['cpu']}, shared with other work: load {machine['load_before'][0]:.1f} before and"
        f" {machine['load_after'][0]:.1f} after. jax {data['versions']['jax']}, gymnasium"
        f" {data['versions']['gymnasium']}. Error: predicted over actual, less 1; median of the rounds (range).\n",
        "| job | steps | predicted s | actual s | error | of it compiling, s | predicted MB | actual MB | error |"
        " estimating took, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in rounds[0]:
        said, true = ([r[name][kind] for r in rounds] for kind in ("estimate", "train"))
        run = jobs.RUNS[name]
        steps = f"{STEPS[name]:,}" + (f" x {run.seeds}" if run.seeds > 1 else "")
        cells = [name, steps]
        for field, unit in (("seconds", 1), ("memory", 1e6)):
            cells += [f"{statistics.median(x[field] for x in each) / unit:.1f}" for each in (said, true)]
            errors = [a[field] / b[field] - 1 for a, b in zip(said, true, strict=True)]
            cells.append(f"{statistics.median(errors):+.0%} ({min(errors):+.0%} to {max(errors):+.0%})")
            if field == "seconds":
                cells.append(f"{statistics.median(x['compile_seconds'] for x in said):.1f}")
        lines.append(f"| {' | '.join([*cells, format(statistics.median(x['took'] for x in said), '.1f')])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
