"""Scores over several environments: returns brought to one scale, to be averaged (Agarwal et al., 2021).

Deep RL at the edge of the statistical precipice: https://arxiv.org/abs/2108.13264
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from advantage.experiments.results import Results

# From the return of uniformly random actions (benchmarks/results/random_returns.json, 1,000 episodes) to the highest
# that rl-baselines3-zoo publishes for any algorithm (benchmark.md at 22e3ff2; one run each).
SCALES: dict[str, tuple[float, float]] = {
    "CartPole-v1": (22.2, 500.0),
    "Acrobot-v1": (-499.09, -69.1),
    "MountainCar-v0": (-200.0, -100.8),
    "MountainCarContinuous-v0": (-33.33, 94.7),
    "Pendulum-v1": (-1230.65, -151.3),
}
OURS = "advantage/"
"""Our JAX environments are those of Gymnasium, under the same name after this."""


class Scale(NamedTuple):
    """What becomes 0 and 1. `known`: from `SCALES`, else from the compared runs themselves."""

    low: float
    high: float
    known: bool


class Tasks(NamedTuple):
    """Normalised scores of algorithms over the environments that all of them were trained on.

    Attributes:
        envs: the T environments.
        scales: of each.
        final: by algorithm, `[seeds, T]`: the last evaluation.
        curves: by algorithm, `[seeds, T, evaluations]`.
        left_out: what is not in here, and why; sentences.
    """

    envs: tuple[str, ...]
    scales: dict[str, Scale]
    final: dict[str, np.ndarray]
    curves: dict[str, np.ndarray]
    left_out: tuple[str, ...]


def tasks_of(results: Results) -> Tasks | None:
    """Normalise and align results; None where fewer than two environments were trained on by all algorithms.

    A seed counts where its algorithm has it on every one of these environments.
    """
    parts, names = {env: results.on(env) for env in results.envs}, results.algorithms
    envs = tuple(env for env in parts if {*parts[env].algorithms} == {*names})
    if len(envs) < 2:
        return None
    scales = {env: scale_of(parts[env]) for env in envs}
    left_out = [
        f"{env} is left out: {_missing(parts[env], names)} was not trained on it."
        for env in parts
        if env not in envs
    ]
    curves = {}
    for name in names:
        seeds = {env: parts[env].seeds(name) for env in envs}
        shared = sorted(functools.reduce(set.intersection, map(set, seeds.values())))
        if any(len(own) > len(shared) for own in seeds.values()):
            left_out.append(f"Of {name} only the {len(shared)} seeds count that were trained on all of them.")
        if not shared:
            return None
        rows = [
            _normalised(parts[env].returns(name), scales[env])[np.isin(seeds[env], shared)] for env in envs
        ]
        curves[name] = np.stack(rows, axis=1)
    final = {name: curve[:, :, -1] for name, curve in curves.items()}
    return Tasks(envs, scales, final, curves, tuple(left_out))


def scale_of(results: Results) -> Scale:
    """The scale of the only environment of some results: a known one, or the lowest and highest final return."""
    env = results.envs[0]
    if env.removeprefix(OURS) in SCALES:
        return Scale(*SCALES[env.removeprefix(OURS)], True)
    final = np.concatenate([results.final(name) for name in results.algorithms])
    low, high = float(final.min()), float(final.max())
    # Where all are equal, any width gives all of them 0.
    return Scale(low, high if high > low else low + 1.0, False)


def _normalised(returns: np.ndarray, scale: Scale) -> np.ndarray:
    return (returns - scale.low) / (scale.high - scale.low)


def _missing(results: Results, names: list[str]) -> str:
    return " and ".join(name for name in names if name not in results.algorithms)
