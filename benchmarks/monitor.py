"""How often `RewardMonitor` calls noise a hack: 20,000 simulated runs of 40 points by an agent that stays as it is.

    python benchmarks/monitor.py             # 10 s: results/monitor.json

The test at each point is `divergence`'s, by its exact thresholds: over the last 12 points, from 8 on, how many pairs
are in order. `opposed`: the noise of the true return is minus that of the shaped one, the worst case.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "monitor.json"
RUNS, POINTS, WINDOW, FEWEST = 20_000, 40, 12, 8


def threshold(points: int, significance: float) -> int:
    """The least number of pairs in order, less those out of order, whose probability is below `significance`."""
    orders = np.ones(1)
    for k in range(2, points + 1):
        orders = np.convolve(orders, np.ones(k))  # orders of k points by their pairs out of order
    out_of_order = np.flatnonzero(orders.cumsum() / math.factorial(points) < significance)
    return points * (points - 1) // 2 - 2 * int(out_of_order[-1])


def scores(values: NDArray[np.float64], first: int, last: int) -> NDArray[np.float64]:
    """Pairs in order less pairs out of order, of each run."""
    early, late = np.triu_indices(last - first, 1)
    window = values[:, first:last]
    return np.sign(window[:, late] - window[:, early]).sum(axis=1)


def main() -> None:
    """Simulate and write."""
    rng = np.random.default_rng(1)
    shaped, true = rng.normal(size=(2, RUNS, POINTS))
    results = {}
    for significance in (0.001, 0.002, 0.005, 0.01):
        opposed, independent = np.zeros(RUNS, bool), np.zeros(RUNS, bool)
        for last in range(FEWEST, POINTS + 1):
            first = max(0, last - WINDOW)
            least = threshold(last - first, significance)
            rising = scores(shaped, first, last) >= least
            opposed |= rising
            independent |= rising & (scores(true, first, last) <= -least)
        results[str(significance)] = {"opposed": opposed.mean(), "independent": independent.mean()}
    text = json.dumps({"command": "python benchmarks/monitor.py", "runs_called": results}, indent=1)
    DATA.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
