"""Scores over several environments, by hand: scales, alignment, and the report about all of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from advantage.experiments.report import verdict, write_report
from advantage.experiments.results import Line, Protocol, Results
from advantage.experiments.statistics import aggregate, chance_if_equal, probability_of_improvement
from advantage.experiments.tasks import SCALES, tasks_of

ROOT = Path(__file__).parents[2]
CART, PENDULUM, OTHER = "CartPole-v1", "advantage/Pendulum-v1", "Other-v0"


def results(scores):
    """`{env: {algorithm: {seed: final score}}}`; the first of two evaluations gives half of the last."""
    lines = []
    for env, algorithms in scores.items():
        for name, seeds in algorithms.items():
            for seed, score in seeds.items():
                lines += [
                    Line(env, name, {}, seed, k, 500 * (k + 1), (score * (k + 1) / 2,), 1.0, 1, "cpu", "0")
                    for k in range(2)
                ]
    return Results(Protocol(1000, 2, 1, 0, True), tuple(lines))


def numbered(scores):
    return dict(enumerate(scores))


def test_known_scales_are_those_of_the_files():
    measured = json.loads((ROOT / "benchmarks/results/random_returns.json").read_text(encoding="utf-8"))[
        "returns"
    ]
    assert {env: low for env, (low, _) in SCALES.items()} == {env: x["mean"] for env, x in measured.items()}
    assert all(low < high for low, high in SCALES.values())


def test_normalised_by_hand():
    low, high = SCALES["Pendulum-v1"]
    made = results({
        CART: {"A": numbered([22.2, 261.1, 500.0])},
        PENDULUM: {"A": numbered([low, high, 2 * low - high])},
        OTHER: {"A": numbered([-4.0, 0.0, 4.0])},
    })  # fmt: skip
    tasks = tasks_of(made)
    assert tasks.envs == (CART, PENDULUM, OTHER) and tasks.left_out == ()
    expected = [[0, 0, 0], [0.5, 1, 0.5], [1, -1, 1]]
    np.testing.assert_allclose(tasks.final["A"], expected, atol=1e-12)
    assert tasks.curves["A"].shape == (3, 3, 2)
    np.testing.assert_allclose(tasks.curves["A"][:, 2, 0], [(x / 2 + 4) / 8 for x in (-4, 0, 4)])
    assert tasks.scales[CART].known and not tasks.scales[OTHER].known


def test_an_unknown_scale_is_that_of_all_compared_runs():
    tasks = tasks_of(results({
        CART: {"A": numbered([500.0]), "B": numbered([22.2])},
        OTHER: {"A": numbered([10.0]), "B": numbered([30.0])},
    }))  # fmt: skip
    assert tasks.scales[OTHER] == (10.0, 30.0, False)
    np.testing.assert_allclose(tasks.final["A"], [[1, 0]])
    np.testing.assert_allclose(tasks.final["B"], [[0, 1]])
    equal = tasks_of(results({CART: {"A": numbered([500.0])}, OTHER: {"A": numbered([7.0])}}))
    np.testing.assert_allclose(equal.final["A"], [[1, 0]])


def test_only_what_is_complete_counts(tmp_path):
    made = results({
        CART: {"A": numbered([22.2, 500.0, 500.0]), "B": numbered([22.2, 22.2, 22.2])},
        OTHER: {"A": {1: 10.0, 2: 20.0, 3: 0.0}, "B": numbered([0.0, 10.0, 20.0])},
        PENDULUM: {"A": numbered([-200.0, -200.0, -200.0])},
    })  # fmt: skip
    tasks = tasks_of(made)
    assert tasks.envs == (CART, OTHER)
    np.testing.assert_allclose(tasks.final["A"], [[1, 0.5], [1, 1]], err_msg="seeds 1 and 2 are on both")
    assert tasks.left_out == (
        f"{PENDULUM} is left out: B was not trained on it.",
        "Of A only the 2 seeds count that were trained on all of them.",
    )
    report = write_report(made, tmp_path)
    assert (
        all(said in report.text for said in tasks.left_out)
        and f"## Final return on {PENDULUM}" in report.text
    )
    assert "Scales taken from the runs themselves change with every run" in report.text


def test_one_environment_is_no_aggregate():
    assert tasks_of(results({CART: {"A": numbered([1.0, 2.0])}})) is None
    assert tasks_of(results({CART: {"A": numbered([1.0])}, OTHER: {"B": numbered([1.0])}})) is None
    assert tasks_of(results({CART: {"A": {0: 1.0}}, OTHER: {"A": {1: 1.0}}})) is None


def test_report(tmp_path):
    pytest.importorskip("matplotlib")
    made = results({
        CART: {"A": numbered([22.2, 261.1, 500.0, 500.0]), "B": numbered([22.2, 22.2, 261.1, 261.1])},
        OTHER: {"A": numbered([4.0, 6.0, 8.0, 10.0]), "B": numbered([0.0, 2.0, 4.0, 6.0])},
    })  # fmt: skip
    report, tasks = write_report(made, tmp_path), tasks_of(made)
    value, low, high = aggregate(tasks.final["A"])
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in report.text.splitlines() if "|" in line]
    over_all = {row[0]: row[1] for row in rows}
    assert over_all["IQM over all"] == f"{value:.2f} ({low:.2f} to {high:.2f})"
    assert over_all[f"IQM on {CART}"].startswith(f"{aggregate(tasks.final['A'][:, 0]).value:.2f} (")
    assert over_all["mean over all"].startswith(f"{tasks.final['A'].mean():.2f} (")
    assert [said.split(":")[0] for said in report.verdicts] == [
        "Over 2 environments",
        f"On {CART}",
        f"On {OTHER}",
    ]
    assert report.verdicts[0].endswith(verdict("A", tasks.final["A"], "B", tasks.final["B"]))
    assert "Each pair is judged alone" in report.text
    names = {path.name for path in report.files}
    assert {"intervals.png", "sample_efficiency.png", "performance_profile.svg", "report.md"} <= names
    assert {"sample_efficiency_CartPole-v1.png", "performance_profile_Other-v0.svg"} <= names
    assert all((tmp_path / name).stat().st_size > 500 for name in names)


def test_a_verdict_over_tasks():
    """Each task alone is undecided at three seeds; both together are not."""
    x, y = (
        np.array([[4.0, 40.0], [5.0, 50.0], [6.0, 60.0]]),
        np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]),
    )
    assert "not distinguishable" in verdict("X", x[:, 0], "Y", y[:, 0])
    said = verdict("X", x, "Y", y)
    assert said.startswith("X > Y with probability 1.00")
    # Of the 20 x 20 ways to deal, the two extremes.
    assert chance_if_equal(x, y) == pytest.approx(2 / 400, abs=0.003)
    assert verdict("X", x[:2], "Y", y[:2]).startswith("X and Y: no verdict, 2 seeds are too few")


def test_tasks_are_dealt_apart():
    """A task of another scale does not drown the others, and a win on one does not become two."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 2))
    scaled = np.array([1.0, 1000.0])
    assert chance_if_equal(x, y) == chance_if_equal(x * scaled, y * scaled)
    assert chance_if_equal(x, y) == pytest.approx(chance_if_equal(y, x), abs=0.02)
    one_sided = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert chance_if_equal(one_sided, one_sided[:, ::-1]) == 1.0
    assert probability_of_improvement(one_sided, one_sided[:, ::-1]).value == 0.5
