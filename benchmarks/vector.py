"""Vector environments: what a step costs and how many there are decide which kind is fastest; and what N does to PPO.

    python benchmarks/vector.py             # measures: ten minutes on two quiet cores; then table and picture
    python benchmarks/vector.py --speed     # steps/s alone
    python benchmarks/vector.py --returns   # PPO's returns alone
    python benchmarks/vector.py --report    # no measurement: results/vector.md and docs/images/vector.png

Speed. `HostEnvs.step` with actions drawn beforehand, no policy. An environment is Gymnasium's CartPole (about
0.01 ms a step), one that computes for 0.1, 1 or 5 ms (a loop of Python arithmetic whose length is calibrated in CPU
time at the start: a simulator), or one that sleeps for 5 ms (waits for a device, or for a simulator elsewhere). The
kinds take turns, and the fastest of three rounds counts, since other work on the machine only ever slows. Before
and after, as many processes as there are cores compute for a moment: how much faster they are together than one alone
says how many cores were free. Where it was less than 80% of them, the measurement is made once more.

Returns. PPO with its defaults on `advantage/CartPole-v1`, 100,000 steps, ten seeds side by side; then 20 episodes of
each seed's deterministic policy. Once with `n_steps=2048` whatever N, so that 64 environments leave no complete
update, and once with rollouts of 2,048 rows in all, as long as those of one environment. How environments are stepped
changes no bit of this, so it is measured on the fastest.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import this file

ROOT = Path(__file__).resolve().parents[1]
DATA, TABLE = (ROOT / "benchmarks" / "results" / f"vector.{suffix}" for suffix in ("json", "md"))
PICTURE = ROOT / "docs" / "images" / "vector.png"
COUNTS = (1, 2, 4, 8, 16, 32, 64)
MOST_PROCESSES = 16
SECONDS = 0.3  # of one measurement, at least two vector steps
QUIET, ATTEMPTS = 0.8, 2  # the part of all cores that has to be free, and how often it is tried
NAMES = {
    "cartpole": "CartPole: 0.01 ms", "compute-0.1": "computes for 0.1 ms", "compute-1": "computes for 1 ms",
    "compute-5": "computes for 5 ms", "sleep-5": "waits for 5 ms",
}  # fmt: skip
KINDS = {
    "sync": "sync",
    "async": "async, a process per core",
    "async-each": "async, a process per environment",
    "native": "native",
}
PROTOCOLS = {"n_steps=2048": "n_steps=2048 (default)", "2048 rows": "n_steps=2048 / environments"}


class Costly(gymnasium.Env):
    """Four numbers observed, 200 steps an episode; a step computes `loops` times, or sleeps for `seconds`."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, loops: int, seconds: float):
        self.loops, self.seconds, self.steps = loops, seconds, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple:
        compute(self.loops)
        if self.seconds:
            time.sleep(self.seconds)
        self.steps += 1
        return np.zeros(4, np.float32), 1.0, False, self.steps == 200, {}


def compute(loops: int) -> float:
    """Plain Python arithmetic, which holds the interpreter as most environments do."""
    x = 0.5
    for _ in range(loops):
        x = 3.7 * x * (1.0 - x)
    return x


def loops_per_millisecond() -> float:
    """Calibrated in CPU time, which other work on the machine changes little; the fastest of some tries."""
    costs = []
    for _ in range(20):
        began = time.process_time()
        compute(20_000)
        costs.append((time.process_time() - began) * 1e3)
    return 20_000 / min(costs)


def cores_free() -> float:
    """How much faster `os.cpu_count()` processes compute than one: less than that where others use the machine."""
    loop = "x = 0.5\nfor _ in range(1_500_000): x = 3.7 * x * (1.0 - x)\n"
    code = f"import time; began = time.perf_counter(); {loop}print(time.perf_counter() - began)"

    def seconds(count: int) -> float:
        command = [sys.executable, "-c", code]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in running)

    count = os.cpu_count() or 1
    return round(count * min(seconds(1) for _ in range(3)) / seconds(count), 2)


def maker(name: str, rate: float) -> Callable[[], gymnasium.Env]:
    """A function that makes one environment."""
    if name == "cartpole":
        return functools.partial(gymnasium.make, "CartPole-v1", disable_env_checker=True)
    how, milliseconds = name.split("-")
    if how == "sleep":
        return functools.partial(Costly, 0, float(milliseconds) / 1e3)
    return functools.partial(Costly, round(rate * float(milliseconds)), 0.0)


def host(kind: str, name: str, count: int, rate: float, num_workers: int | None = None) -> Any:
    """Host environments of a kind, reset."""
    from advantage.envs.make import host_envs
    from advantage.envs.vec_env import make_vec_env

    make = "CartPole-v1" if kind == "native" else maker(name, rate)
    workers = {"num_workers": count if kind == "async-each" else num_workers} if kind.startswith("async") else None
    venv = make_vec_env(make, count, vec_env=kind.split("-")[0], vec_env_kwargs=workers)
    envs = host_envs(venv, 1)
    envs.reset(np.arange(count)[None])
    return envs


def speed(envs: Any) -> float:
    """Environment steps a second."""
    actions = np.random.default_rng(0).integers(0, 2, (64, 1, envs.num_envs)).astype(np.int32)
    envs.step(actions[0])
    steps, began = 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - began < SECONDS:
        envs.step(actions[steps % 64])
        steps += 1
    return steps * envs.num_envs / (time.perf_counter() - began)


def kinds_of(name: str, count: int) -> list[str]:
    """What is compared: a process for each environment where these wait, Gymnasium's own CartPole."""
    each = ["async-each"] if name.startswith("sleep") and os.cpu_count() < count <= MOST_PROCESSES else []
    return ["sync", "async", *each, *(["native"] if name == "cartpole" else [])]


def in_turns(all_envs: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Steps/s of each in each round; of several attempts that with the most free cores. Closes them."""
    best: dict[str, list[float]] = {"cores_free": [0.0]}
    for _ in range(ATTEMPTS):
        before, measured = cores_free(), {kind: [] for kind in all_envs}
        for _ in range(rounds):
            for kind, envs in all_envs.items():
                measured[kind].append(round(speed(envs), 1))
        free = min(before, cores_free())
        best = max(best, {**measured, "cores_free": [free]}, key=lambda block: block["cores_free"][0])
        if best["cores_free"][0] > QUIET * (os.cpu_count() or 1):
            break
    for envs in all_envs.values():
        envs.close()
    return best


def measure_speed(rounds: int) -> dict[str, Any]:
    """All kinds, and for 8 environments all numbers of workers."""
    rate = loops_per_millisecond()
    by_count: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        for count in COUNTS:
            envs = {kind: host(kind, name, count, rate) for kind in kinds_of(name, count)}
            by_count.setdefault(name, {})[str(count)] = in_turns(envs, rounds)
            show(f"{name}, {count} environments", by_count[name][str(count)])
    by_workers = {}
    for name in ("cartpole", "compute-1", "sleep-5"):
        envs = {str(w): host("async", name, 8, rate, w) for w in (1, 2, 4, 8)} | {"sync": host("sync", name, 8, rate)}
        by_workers[name] = in_turns(envs, rounds)
        show(f"{name}, 8 environments by workers", by_workers[name])
    return {
        "by_count": by_count, "by_workers": by_workers, "rounds": rounds, "loops_per_millisecond": round(rate),
        "cores": os.cpu_count(),
    }  # fmt: skip


def show(what: str, measured: dict[str, list[float]]) -> None:
    """Medians on the terminal."""
    print(what, {kind: round(statistics.median(values), 1) for kind, values in measured.items()}, flush=True)


def measure_returns(seeds: int, steps: int) -> dict[str, Any]:
    """`{protocol: {N: returns [seeds]}}`, each the mean over 20 episodes."""
    from advantage import PPO
    from advantage.training.evaluation import evaluate_seeds

    results: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        for count in COUNTS:
            n_steps = 2048 if protocol == "n_steps=2048" else 2048 // count
            model = PPO("MlpPolicy", "advantage/CartPole-v1", n_envs=count, n_steps=n_steps, seeds=seeds, seed=0)
            model.learn(steps)
            returns = evaluate_seeds(model, "advantage/CartPole-v1", 20).mean(axis=1).round(1).tolist()
            results.setdefault(protocol, {})[str(count)] = returns
            print(protocol, count, round(statistics.mean(returns)), flush=True)
    return {"returns": results, "steps": steps, "seeds": seeds}


# -- what is shown ------------------------------------------------------------------------------------


def ratio(measured: dict[str, list[float]], kind: str) -> str:
    """A kind's speed by that of sync, the fastest rounds of both."""
    return f"{max(measured[kind]) / max(measured['sync']):.2f}"


def table(data: dict[str, Any]) -> str:
    """Markdown."""
    measured, versions = data["speed"], data["versions"]
    lines = [
        f"# Vector environments\n\n`{data['command']}` on {data['machine']} with {measured['cores']} cores, Python"
        f" {versions['python']}, Gymnasium {versions['gymnasium']}, JAX {versions['jax']}; environment steps/s,"
        f" the fastest of {measured['rounds']} rounds. The last column says how many cores other work left free.",
        "",
        "| environment | envs | sync | async | async / sync | a process each / sync | native / sync | cores |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, counts in measured["by_count"].items():
        for count, block in counts.items():
            cells = [f"{max(block[kind]):,.0f}" for kind in ("sync", "async")]
            cells += [ratio(block, kind) if kind in block else "" for kind in ("async", "async-each", "native")]
            cells.append(str(block["cores_free"][0]))
            lines.append(f"| {NAMES[name]} | {count} | {' | '.join(cells)} |")
    lines += ["", "## Eight environments, by the number of workers", "", "Against sync.", ""]
    lines += ["| environment | 1 | 2 | 4 | 8 |", "|---|--:|--:|--:|--:|"]
    for name, block in measured["by_workers"].items():
        lines.append(f"| {NAMES[name]} | {' | '.join(ratio(block, workers) for workers in ('1', '2', '4', '8'))} |")
    returns, steps, seeds = (data["returns"][key] for key in ("returns", "steps", "seeds"))
    lines += ["", f"## PPO on CartPole after {steps:,} steps", ""]
    lines += [f"Interquartile mean of {seeds} seeds, with a 95% interval.", ""]
    lines += [f"| envs | {' | '.join(PROTOCOLS.values())} |", "|--:|--:|--:|"]
    for count in COUNTS:
        estimates = [estimate(returns[protocol][str(count)]) for protocol in PROTOCOLS]
        cells = [f"{middle:.0f} ({low:.0f} to {high:.0f})" for middle, low, high in estimates]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def estimate(returns: list[float]) -> tuple[float, float, float]:
    """`(interquartile mean, low, high)`."""
    from advantage.experiments.statistics import bootstrap_interval, iqm

    return (iqm(returns), *bootstrap_interval(returns))


def draw(data: dict[str, Any]) -> None:
    """A panel for each environment, and one for the returns."""
    from matplotlib.figure import Figure

    colours = dict(zip(KINDS, ("#555555", "#2563eb", "#0d9488", "#d97706"), strict=True))
    figure = Figure(figsize=(11, 6.4), dpi=160, layout="constrained", facecolor="white")
    panels = figure.subplots(2, 3).ravel()
    for axes, (name, counts) in zip(panels, data["speed"]["by_count"].items(), strict=False):
        for kind, label in KINDS.items():
            places = [int(count) for count in counts if kind in counts[count]]
            rounds = [counts[str(count)][kind] for count in places]
            if places:
                axes.plot(places, list(map(max, rounds)), color=colours[kind], label=label, marker="o", markersize=4)
        fastest = max(max(speeds) for block in counts.values() for kind, speeds in block.items() if kind in KINDS)
        if name == "cartpole":
            axes.set_yscale("log")
            axes.set_ylim(3e3, 6 * fastest)
        else:
            axes.set_ylim(0, 1.4 * fastest)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        style(axes, f"{NAMES[name]} a step" if name == "cartpole" else f"A step {NAMES[name]}", "steps/s")
    axes = panels[-1]
    for (protocol, by), colour in zip(data["returns"]["returns"].items(), ("#dc2626", "#7c3aed"), strict=True):
        middle, low, high = np.transpose([estimate(by[str(count)]) for count in COUNTS])
        axes.plot(COUNTS, middle, color=colour, marker="o", markersize=4, label=PROTOCOLS[protocol])
        axes.fill_between(COUNTS, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(0, 520)
    style(axes, f"PPO, CartPole, {data['returns']['steps']:,} steps", "return")
    figure.savefig(PICTURE)


def style(axes: Any, title: str, what: str) -> None:
    """Title, axes and legend of a panel."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("environments", fontsize=9.5)
    axes.set_ylabel(what, fontsize=9.5)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9, length=0, which="both")
    axes.legend(fontsize=8, framealpha=0.85, edgecolor="none", loc="lower left" if what == "return" else "upper left")


def main() -> None:
    """Measure or draw, as the command line says."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement of speed (3)")
    parser.add_argument("--seeds", type=int, default=10, help="agents of each number of environments (10)")
    parser.add_argument("--total-timesteps", type=int, default=100_000, help="of each agent (100,000)")
    parser.add_argument("--speed", action="store_true", help="measure steps/s only")
    parser.add_argument("--returns", action="store_true", help="measure returns only")
    parser.add_argument("--report", action="store_true", help="no measurement: table and picture of what is committed")
    options = parser.parse_args()
    data = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else {}
    both = not (options.speed or options.returns or options.report)
    if options.speed or both:
        data["speed"] = measure_speed(options.rounds)
    if options.returns or both:
        data["returns"] = measure_returns(options.seeds, options.total_timesteps)
    if not options.report:
        versions = {package: importlib.metadata.version(package) for package in ("jax", "gymnasium", "numpy")}
        data |= {"command": "python benchmarks/vector.py", "machine": f"{platform.system()} {platform.machine()}",
                 "versions": {"python": platform.python_version(), **versions}}  # fmt: skip
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if {"speed", "returns"} <= data.keys():
        TABLE.write_text(table(data), encoding="utf-8")
        draw(data)


if __name__ == "__main__":
    main()
