"""Answers of rliable, stored for our tests: writes `rliable.npz` beside itself.

    python -m venv .bench/rliable && .bench/rliable/bin/pip install rliable==1.2.0 "pandas<3"
    .bench/rliable/bin/python tests/oracles/make_rliable.py

Run by hand, never by the tests. Read the file with `numpy.load(path, allow_pickle=False)`.

`x`, `y`: scores `[10,5]` and `[7,5]`, rounded so that some tie.
`aggregate/{iqm,mean,median,optimality_gap}/{value,interval}`: of x, `[]` and `[2]` (low, high).
`profile/{thresholds,value,interval}`: of x, `[K]`, `[K]`, `[2,K]`.
`improvement/{value,interval}`: P(X > Y) over tasks, `[]` and `[2]`.
`curve/{scores,value,interval}`: IQM of `[10,5,P]` at each point, `[P]` and `[2,P]`.

Intervals are 95% percentile ones from `SAMPLES` resamples: two libraries agree up to chance.
"""

from pathlib import Path

import numpy as np
from rliable import library, metrics

SAMPLES = 20_000


def main() -> None:
    """Ask everything and write the file."""
    rng = np.random.default_rng(0)
    task = np.linspace(0.2, 1.2, 5)
    x = np.round(task + 0.3 * rng.normal(size=(10, 5)), 1)
    y = np.round(task - 0.1 + 0.3 * rng.normal(size=(7, 5)), 1)
    curve = (task[:, None] * np.linspace(0.1, 1.0, 4)) + 0.2 * rng.normal(size=(10, 5, 4))
    thresholds = np.linspace(-0.2, 1.8, 9)
    arrays = {"x": x, "y": y, "profile/thresholds": thresholds, "curve/scores": curve}

    def ask(name: str, scores: object, function: object) -> None:
        # rliable draws from NumPy's global generator.
        np.random.seed(0)
        value, interval = library.get_interval_estimates({"x": scores}, function, reps=SAMPLES)
        arrays[f"{name}/value"], arrays[f"{name}/interval"] = value["x"], interval["x"]

    for name in ("iqm", "mean", "median", "optimality_gap"):
        function = getattr(metrics, f"aggregate_{name}")
        ask(f"aggregate/{name}", x, lambda scores, f=function: np.array([f(scores)]))
    ask("profile", x, lambda scores: library.score_distributions(scores, thresholds))
    ask("improvement", [x, y], lambda a, b: np.array([metrics.probability_of_improvement(a, b)]))
    iqm = metrics.aggregate_iqm
    ask("curve", curve, lambda scores: np.array([iqm(scores[..., point]) for point in range(4)]))
    arrays = {name: np.squeeze(np.asarray(value)) for name, value in arrays.items()}
    np.savez_compressed(Path(__file__).with_name("rliable.npz"), **arrays)


if __name__ == "__main__":
    main()
