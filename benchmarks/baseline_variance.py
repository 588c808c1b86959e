"""What a baseline is for: the variance of REINFORCE's gradient without one, with an average, with a value function.

    python benchmarks/baseline_variance.py             # trains, measures, writes table and pictures; some minutes
    python benchmarks/baseline_variance.py --report    # table and pictures anew, from what is committed

CartPole in JAX. First each baseline trains 5 seeds: their returns. Then the agents trained with the value function
stand still at several points of their training and play 400 rollouts of 4 environments and 128 steps each; from every
rollout the policy's gradient is computed with all three baselines. Variance is that of the whole vector,
`E |g|^2 - |E g|^2`; how far the baselines' mean gradients are apart is given beside what chance alone allows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DATA, TABLE = RESULTS / "baseline.json", RESULTS / "baseline.md"
CURVE, VARIANCE = RESULTS / "baseline-returns.png", RESULTS / "baseline-variance.png"
ENV, SEEDS, ROLLOUTS, BASELINES = "advantage/CartPole-v1", 5, 400, ("none", "average", "value")
SETTINGS = {"n_envs": 4, "train_freq": 128, "learning_rate": 3e-3, "gamma": 0.98, "seed": 0, "stats_window_size": 20}
LEAST = 1e-3  # variance drawn
POINTS = (0, 20_480, 40_960, 81_920, 163_840)


def model_of(baseline: str) -> Any:
    """All seeds, untrained."""
    from advantage import REINFORCE

    return REINFORCE("MlpPolicy", ENV, seeds=SEEDS, baseline=baseline, **SETTINGS)


def returns_of(model: Any) -> list[float]:
    """Each seed's mean return of its last episodes."""
    return [round(float(model._driver.recent(seed).returns.mean()), 1) for seed in range(SEEDS)]


def train(baseline: str, points: int = 40) -> dict[str, Any]:
    """Returns while one baseline learns."""
    model, steps, returns = model_of(baseline), [], []
    for _ in range(points):
        model.learn(POINTS[-1] // points, reset_num_timesteps=False)
        steps.append(model.num_timesteps)
        returns.append(returns_of(model))
    return {"steps": steps, "returns": np.transpose(returns).tolist()}


def variances() -> list[dict[str, Any]]:
    """At each point of training, for each baseline: variance `[seeds]`, and how far the means are apart."""
    model, found = model_of("value"), []
    for point in POINTS:
        if point > model.num_timesteps:
            model.learn(point - model.num_timesteps, reset_num_timesteps=False)
        found.append({"steps": model.num_timesteps, **gradients(model)})
        print(found[-1], flush=True)
    return found


def gradients(model: Any) -> dict[str, Any]:
    """Moments of the policy's gradient over rollouts of an agent that stands still."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    from advantage.algorithms import reinforce
    from advantage.drivers.fused import FusedDriver
    from advantage.envs.jax import make_jax
    from advantage.types import Agent, sanitise

    def gradient(config: Any, state: Any, chunk: Any) -> Any:
        rows = reinforce.prepare(config, state, chunk)
        whole = jax.grad(lambda network: reinforce.loss(config, network, rows)[0])(state.network)
        return ravel_pytree(whole.actor)[0]

    def measure(config: Any, state: Any, memory: Any, chunk: Any) -> tuple[Any, Any, dict[str, Any]]:
        one = {name: gradient(dataclasses.replace(config, baseline=name), state, sanitise(chunk)) for name in BASELINES}
        # The same rollouts serve all three: what chance can do to a difference is the difference's own variance.
        one |= {f"{name} - none": one[name] - one["none"] for name in BASELINES[1:]}
        added = {name: (g, jnp.sum(jnp.square(g))) for name, g in one.items()}
        return state, jax.tree.map(jnp.add, memory, added), {"train/nonfinite": jnp.float32(0.0)}

    def nothing(config: Any, spec: Any, num_envs: int) -> Any:
        state = jax.eval_shape(lambda: reinforce.init(config, spec, jax.random.PRNGKey(0)))
        size = sum(x.size for x in jax.tree.leaves(state.network.actor))
        names = (*BASELINES, *(f"{name} - none" for name in BASELINES[1:]))
        return {name: (jnp.zeros(size), jnp.float32(0.0)) for name in names}

    config, per_rollout = model._config, SETTINGS["n_envs"] * SETTINGS["train_freq"]
    driver = FusedDriver(Agent(reinforce, measure, nothing), make_jax(ENV), 1, SEEDS, SETTINGS["n_envs"])
    driver.init(config)
    if model.num_timesteps:
        driver.state = jax.tree.map(np.array, model._driver.state)
    list(driver.run(config, {}, 0, ROLLOUTS * per_rollout))
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64) / ROLLOUTS, driver.memory)
    variance = {name: square - np.sum(mean**2, axis=-1) for name, (mean, square) in sums.items()}
    answer = {name: {"variance": np.round(variance[name], 4).tolist()} for name in BASELINES}
    for name in BASELINES[1:]:
        apart = np.linalg.norm(sums[f"{name} - none"][0], axis=-1)
        chance = np.sqrt(variance[f"{name} - none"] / ROLLOUTS)
        answer[name] |= {"means_apart": np.round(apart, 4).tolist(), "by_chance": np.round(chance, 4).tolist()}
    return answer


def report(data: dict[str, Any]) -> None:
    """Table and pictures."""
    from matplotlib import pyplot

    from advantage.experiments.plots import COLOURS, learning_curve

    learning_curve(
        {name: (curve["steps"], curve["returns"]) for name, curve in data["curves"].items()}, CURVE,
        "REINFORCE on CartPole: what is taken off returns", 500.0,
    )  # fmt: skip
    figure, axes = pyplot.subplots(figsize=(8, 4.8), dpi=200)
    steps = [row["steps"] for row in data["variances"]]
    for name, colour in zip(BASELINES, COLOURS, strict=False):
        each = np.array([row[name]["variance"] for row in data["variances"]])
        each = np.maximum(each, LEAST)  # a gradient that has become exactly alike would leave the picture
        axes.plot(steps, np.median(each, axis=1), marker="o", color=colour, label=f"baseline: {name}")
        axes.fill_between(steps, each.min(axis=1), each.max(axis=1), color=colour, alpha=0.15, linewidth=0)
    axes.set(yscale="log", xlabel="environment steps trained", ylabel="variance of the gradient of one rollout")
    axes.set_title(f"The noise that a baseline takes away (median and range of {SEEDS} agents)", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(VARIANCE)
    lines = [
        "# What a baseline is for", "",
        f"`python benchmarks/baseline_variance.py`; {data['machine']}. What is measured: the head of that file.", "",
        "| steps trained | variance: none | average | value | value / none | means apart (value), by chance |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in data["variances"]:
        none, average, value = (float(np.median(row[name]["variance"])) for name in BASELINES)
        apart, chance = (float(np.median(row["value"][key])) for key in ("means_apart", "by_chance"))
        lines.append(
            f"| {row['steps']:,} | {none:.3g} | {average:.3g} | {value:.3g} | {value / none:.3f} |"
            f" {apart:.3g}, {chance:.3g} |"
        )
    lines += ["", "| baseline | mean return of the last 20 episodes, each seed |", "|---|---|"]
    lines += [f"| {name} | {', '.join(f'{x[-1]:.0f}' for x in c['returns'])} |" for name, c in data["curves"].items()]
    lines += ["", f"![Variance of the gradient]({VARIANCE.name})", "", f"![Returns while training]({CURVE.name})"]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="no training: table and pictures from the results")
    if not parser.parse_args().report:
        data = {
            "machine": f"{platform.system()}, {os.cpu_count()} cores, JAX on a CPU",
            "variances": variances(),
            "curves": {name: train(name) for name in BASELINES},
        }
        DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    report(json.loads(DATA.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
