"""Verdicts and tables of made-up results, by hand."""

import sys

import numpy as np
import pytest

from advantage.experiments.report import verdict, write_report
from advantage.experiments.results import Line, Protocol, Results
from advantage.experiments.statistics import aggregate

PROTOCOL = Protocol(1000, 2, 3, 7, True)


def results(**final):
    """Two evaluations of three episodes: the first gives half of the last."""
    lines = []
    for name, scores in final.items():
        for seed, score in enumerate(scores):
            for k in range(2):
                last = score * (k + 1) / 2
                returns, steps = (last - 1, last, last + 1), 500 * (k + 1)
                lines.append(Line("CartPole-v1", name, {}, seed, k, steps, returns, 2.0 * (k + 1), len(scores), "cpu", "0"))
    return Results(PROTOCOL, tuple(lines))


def test_a_clear_verdict():
    x, y = np.arange(10) + 4.0, np.arange(10.0)
    assert verdict("PPO", x, "DQN", y).startswith("PPO > DQN with probability 0.")
    # The better one is named first.
    assert verdict("DQN", y, "PPO", x) == verdict("PPO", x, "DQN", y)
    assert "(interval 0." in verdict("PPO", x, "DQN", y)


def test_complete_separation_is_told_with_its_chance():
    said = verdict("PPO", [5, 6, 7, 8], "DQN", [1, 2, 3, 4])
    assert said == (
        "PPO > DQN with probability 1.00 (interval 1.00 to 1.00); every run of the one is above every run of"
        " the other, by chance in 2.9% of comparisons"
    )


def test_three_seeds_cannot_decide():
    said = verdict("PPO", [5, 6, 7], "DQN", [1, 2, 3])
    assert said.startswith("PPO and DQN: not distinguishable at 3 seeds; about 4 would be needed.")
    assert said.endswith("but equal algorithms differ as much in 10.0% of comparisons")


def test_no_verdict_names_the_seeds_needed():
    x = np.random.default_rng(0).normal(size=10)
    said = verdict("PPO", x, "DQN", x - 0.5)
    assert said.startswith("PPO and DQN: not distinguishable at 10 seeds; about ")
    assert 10 < int(said.split("about ")[1].split()[0]) < 200
    assert "more than 1,000 would be needed" in verdict("PPO", x, "DQN", x)
    assert "not distinguishable at 5 and 10 seeds" in verdict("PPO", x[:5], "DQN", x)


def test_too_few_seeds_are_said_in_words():
    assert verdict("PPO", [5, 6], "DQN", [1, 2]) == (
        "PPO and DQN: no verdict, 2 seeds are too few for an interval; give at least 3, better 10"
    )
    assert "1 and 5 seeds are too few for an interval" in verdict("A", [1.0], "B", [1, 2, 3, 4, 5])
    assert "1 seed is too few for an interval" in verdict("A", [1.0], "B", [2.0])


def test_numbers_of_results():
    made = results(PPO=[10, 20, 30], DQN=[2, 4])
    assert made.algorithms == ["PPO", "DQN"] and made.seeds("DQN") == [0, 1]
    np.testing.assert_array_equal(made.returns("PPO"), [[5, 10], [10, 20], [15, 30]])
    np.testing.assert_array_equal(made.final("DQN"), [2, 4])
    # Three seeds side by side took 4 s for 1,000 steps each.
    assert made.seconds("PPO") == pytest.approx(4) and made.speed("PPO") == pytest.approx(750)
    assert PROTOCOL.steps().tolist() == [500, 1000]
    assert Protocol(10, 3, 1, 0, True).steps().tolist() == [3, 6, 10]


def test_report(tmp_path):
    report = write_report(results(PPO=[10, 20, 30, 40], DQN=[2, 4]), tmp_path)
    bounds = "{1:,.1f} to {2:,.1f}".format(*aggregate([10, 20, 30, 40]))
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == report.text + "\n"
    assert str(report) == report.text and "nan" not in report.text.lower()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in report.text.splitlines() if "|" in line
    ]
    assert ["PPO", "4", "25.0", bounds, "25.0", "10.0", "40.0", "1,000", "4.0 s"] in rows
    assert [
        "DQN",
        "2",
        "3.0",
        "none: 2 seeds, at least 3 needed",
        "3.0",
        "2.0",
        "4.0",
        "500",
        "4.0 s",
    ] in rows
    halves = "{0:,.1f} ({1:,.1f} to {2:,.1f})".format(*aggregate([5, 10, 15, 20]))
    assert ["500", halves, "1.5"] in rows
    assert ["1", "20.0", "4.0"] in rows and ["2", "30.0", "-"] in rows
    assert len(report.verdicts) == 1 and report.verdicts[0] in report.text
    assert "judged alone" not in report.text


def test_report_of_one_algorithm_and_of_three(tmp_path):
    report = write_report(results(PPO=[10.0]), tmp_path / "one")
    assert report.verdicts == () and "none: 1 seed, at least 3 needed" in report.text
    assert "## Verdict" not in report.text
    report = write_report(results(A=[1, 2, 3], B=[1, 2, 3], C=[1, 2, 3]), tmp_path / "three")
    assert len(report.verdicts) == 3 and "Each pair is judged alone" in report.text


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    files = write_report(results(PPO=[10, 20, 30], DQN=[2, 4]), tmp_path).files
    assert sorted(file.name for file in files) == [
        "performance_profile.png", "performance_profile.svg", "report.md",
        "sample_efficiency.png", "sample_efficiency.svg",
    ]  # fmt: skip
    assert all(
        (tmp_path / file.name).read_bytes()[:8].startswith((b"\x89PNG", b"<?xml", b"# PPO")) for file in files
    )


def test_without_matplotlib_there_is_a_report(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report = write_report(results(PPO=[10, 20, 30]), tmp_path)
    assert 'pip install "advantage[plot]"' in report.text and [file.name for file in report.files] == [
        "report.md"
    ]


def test_no_results_no_report(tmp_path):
    with pytest.raises(ValueError, match="holds no results: train some first"):
        write_report(Results(None, ()), tmp_path)
