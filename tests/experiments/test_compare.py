"""Comparisons from end to end, with budgets of seconds; adding to what is stored; refusals."""

import json

import numpy as np
import pytest

from advantage import PPO, preset
from advantage.experiments.compare import Evaluations, compare
from advantage.experiments.report import Report
from advantage.experiments.results import Line, Protocol, add_results, read_results
from advantage.training.evaluation import evaluate_seeds

ENV = "advantage/CartPole-v1"
SETTINGS = {
    "PPO": {"n_envs": 2, "n_steps": 16, "batch_size": 32, "n_epochs": 2},
    "DQN": {"buffer_size": 200, "learning_starts": 20, "batch_size": 8},
}
TINY = {"total_timesteps": 96, "evaluations": 3, "n_eval_episodes": 2}


def small(algorithms, out, **changes):
    settings = {name: SETTINGS[name] for name in algorithms}
    return compare(algorithms, ENV, out=out, **{"seeds": 3, "settings": settings, **TINY, **changes})


def test_compare_and_add_to_it(tmp_path):
    first = small(["PPO"], tmp_path / "a", seeds=2)
    stored = (tmp_path / "a" / "results.jsonl").read_text(encoding="utf-8")
    assert "none: 2 seeds, at least 3 needed" in str(first) and first.verdicts == ()
    report = small(["PPO", "DQN"], tmp_path / "a")
    text = (tmp_path / "a" / "results.jsonl").read_text(encoding="utf-8")
    assert text.startswith(stored), "what is stored is not trained again"
    assert report.results == read_results(tmp_path / "a") and report.results.algorithms == ["PPO", "DQN"]
    for name in ("PPO", "DQN"):
        assert report.results.seeds(name) == [0, 1, 2]
        assert report.results.returns(name).shape == (3, 3)
        assert report.results.settings(name) == SETTINGS[name]
        assert report.results.speed(name) > 0
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 2 * 3 * 3
    assert [line["steps"] for line in lines[:3]] == [32, 64, 96]
    assert all(len(line["returns"]) == 2 and line["env"] == ENV for line in lines)
    assert len(report.verdicts) == 1
    assert report.verdicts[0] in (tmp_path / "a" / "report.md").read_text(encoding="utf-8")
    # A seed gives the same whether trained beside others or added later.
    at_once = small(["PPO"], tmp_path / "b").results
    np.testing.assert_array_equal(at_once.returns("PPO"), report.results.returns("PPO"))


def test_what_is_stored_is_only_reported(tmp_path, monkeypatch):
    protocol = Protocol(96, 3, 2, 0, True)
    for name in ("PPO", "DQN"):
        lines = [
            Line(ENV, name, {}, s, k, 32 * (k + 1), (1.0, 2.0), 1.0, 1, "cpu", "0")
            for s in (0, 1, 4)
            for k in range(3)
        ]
        add_results(tmp_path, protocol, lines)
    trained = []
    monkeypatch.setattr(
        "advantage.experiments.compare._train", lambda *a: trained.append((a[0].algorithm, *a[2:4])) or []
    )
    assert compare(["DQN"], ENV, out=tmp_path, seeds=2, **TINY).results.algorithms == ["PPO", "DQN"]
    assert trained == []
    compare(["DQN"], ENV, out=tmp_path, seeds=7, **TINY)
    assert trained == [("DQN", 2, 2), ("DQN", 5, 2)]


@pytest.mark.parametrize("env", [ENV, "CartPole-v1"])
def test_agents_are_evaluated_as_after_the_updates_up_to_the_step(env):
    """32 steps are an update: what is due at 40 is the agent of 32, at 64 that of 64, and both drivers agree."""
    model = PPO("MlpPolicy", env, seed=0, seeds=2, **SETTINGS["PPO"])
    evaluated = Evaluations(env, Protocol(120, 3, 2, 5, True))
    model.learn(120, callback=evaluated)
    evaluated.finish()
    assert evaluated.steps.tolist() == [40, 80, 120] and evaluated.seconds == sorted(evaluated.seconds)
    expected = []
    for index, steps in enumerate([32, 64, 120]):
        alone = PPO("MlpPolicy", env, seed=0, seeds=2, **SETTINGS["PPO"]).learn(steps)
        expected.append(evaluate_seeds(alone, env, 2, seed=5 + index))
    np.testing.assert_array_equal(evaluated.returns, expected)


def test_steps_before_the_first_update_are_the_untrained_agents():
    model = PPO("MlpPolicy", ENV, seed=0, **SETTINGS["PPO"])
    untrained = evaluate_seeds(model, ENV, 3, seed=0)
    evaluated = Evaluations(ENV, Protocol(100, 10, 3, 0, True))
    model.learn(100, callback=evaluated)
    evaluated.finish()
    np.testing.assert_array_equal(evaluated.returns[0], untrained)
    assert len(evaluated.returns) == 10 and model.num_timesteps == 100


def test_evaluations_change_nothing_in_training(tmp_path):
    watched = PPO("MlpPolicy", ENV, seed=3, **SETTINGS["PPO"])
    watched.learn(200, callback=Evaluations(ENV, Protocol(200, 7, 2, 0, True)))
    plain = PPO("MlpPolicy", ENV, seed=3, **SETTINGS["PPO"]).learn(200)
    for name, array in plain.get_parameters()["policy"].items():
        np.testing.assert_array_equal(watched.get_parameters()["policy"][name], array)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"total_timesteps": 128},
            "total_timesteps=128, but the results in .* have total_timesteps=96: give that",
        ),
        ({"evaluations": 2}, "evaluations=2, but .* evaluations=3"),
        ({"n_eval_episodes": 5}, "n_eval_episodes=5, but .* n_eval_episodes=2"),
        ({"evaluation_seed": 1}, "evaluation_seed=1, but .* evaluation_seed=0"),
        ({"deterministic": False}, "deterministic=False, but .* deterministic=True"),
        ({"settings": {"PPO": {"gamma": 0.5}}}, f"settings of PPO on {ENV}: gamma is 0.5, but .* it is not set"),
        (
            {"settings": {}},
            f"settings of PPO on {ENV}: n_envs is not set, but .* it is 2: give the same, or another out",
        ),
    ],
)
def test_another_protocol_is_refused(tmp_path, monkeypatch, changes, said):
    settings = {"n_envs": 2} if changes.get("settings") == {} else {}
    protocol = Protocol(96, 3, 2, 0, True)
    lines = [Line(ENV, "PPO", settings, 0, k, 32 * (k + 1), (1.0, 2.0), 1.0, 1, "cpu", "0") for k in range(3)]
    add_results(tmp_path, protocol, lines)
    monkeypatch.setattr("advantage.experiments.compare._train", None)
    with pytest.raises(ValueError, match=said):
        compare(["PPO"], ENV, out=tmp_path, **{"settings": {"PPO": settings}, **TINY, **changes})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"algorithms": "PPO"}, r"algorithms='PPO' has to be a list of names, such as \['PPO', 'DQN'\]"),
        ({"algorithms": []}, r"algorithms=\[\] has to be a list"),
        ({"algorithms": ["PPO", "DQM"]}, "there is no algorithm 'DQM': did you mean DQN"),
        ({"algorithms": ["ppo", "PPO"]}, "names one twice"),
        ({"env": "advantage/Cartpole-v1"}, "nearest: advantage/CartPole-v1"),
        ({"env": "advantage/Pendulum-v1"}, "DQN cannot choose actions from a box space"),
        ({"total_timesteps": 0}, "total_timesteps=0 has to be a whole number of at least 1"),
        ({"seeds": 0}, "seeds=0 has to be a whole number of at least 1"),
        ({"seed": -1}, "seed=-1 has to be a whole number of at least 0"),
        ({"evaluations": 97}, "evaluations=97 has to be at most total_timesteps=96"),
        ({"n_eval_episodes": True}, "n_eval_episodes=True has to be a whole number"),
        ({"settings": {"SAC": {}}}, "settings are for 'SAC', which is not compared: use PPO, DQN"),
        ({"settings": {"PPO": {"seeds": 3}}}, "has 'seeds', which is the same for all"),
        ({"settings": {"PPO": {"gamma": print}}}, "cannot be stored as JSON: give a number or a name"),
        ({"settings": {"PPO": {"gamma": "high"}}}, "gamma"),
    ],
)
def test_bad_input_is_named_before_training(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr("advantage.experiments.compare._train", None)
    with pytest.raises(ValueError, match=said):
        compare(**{"algorithms": ["PPO", "DQN"], "env": ENV, "out": tmp_path / "new", **TINY, **arguments})
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_damaged_is_named(tmp_path):
    protocol = Protocol(96, 3, 2, 0, True)
    lines = [Line(ENV, "PPO", {}, 0, k, 32 * (k + 1), (1.0, 2.0), 1.0, 1, "cpu", "0") for k in range(3)]
    add_results(tmp_path / "short", protocol, lines[:2])
    with pytest.raises(
        ValueError, match=r"has evaluations \[0, 1\] of seed 0 of PPO on .*, expected each of 0 to 2 once"
    ):
        read_results(tmp_path / "short")
    add_results(tmp_path / "torn", protocol, lines)
    with open(tmp_path / "torn" / "results.jsonl", "a", encoding="utf-8") as file:
        file.write('{"env": "advantage/Ca')
    with pytest.raises(ValueError, match="line 4 of .* is no result"):
        read_results(tmp_path / "torn")


# -- several environments -------------------------------------------------------------------------

CONSTANT, MATCH = "advantage/ProbeObservationReward-v0", "advantage/ProbeMatch-v0"


def made_up(env, name, scores, settings=None):
    return [
        Line(env, name, settings or {}, s, k, 32 * (k + 1), (score * (k + 1) / 3,), 1.0, 1, "cpu", "0")
        for s, score in scores.items()
        for k in range(3)
    ]


def test_several_environments_in_one_folder(tmp_path):
    settings = {"PPO": SETTINGS["PPO"]}
    one = compare(["PPO"], CONSTANT, out=tmp_path, seeds=2, settings=settings, **TINY)
    stored = (tmp_path / "results.jsonl").read_text(encoding="utf-8")
    assert one.results.envs == [CONSTANT] and "normalised" not in one.text
    both = compare(["PPO"], envs=[CONSTANT, MATCH], out=tmp_path, seeds=2, settings=settings, **TINY)
    assert (tmp_path / "results.jsonl").read_text(encoding="utf-8").startswith(stored), "not trained again"
    assert both.results.envs == [CONSTANT, MATCH]
    alone = compare(["PPO"], MATCH, out=tmp_path / "alone", seeds=2, settings=settings, **TINY).results
    np.testing.assert_array_equal(both.results.on(MATCH).returns("PPO"), alone.returns("PPO"))
    with pytest.raises(ValueError, match=r"of 2 environments: say which, results.on\(env\)"):
        both.results.final("PPO")


def test_a_folder_of_one_environment_stays_readable(tmp_path):
    """A line as it was written before there could be several."""
    line = {
        "env": ENV, "total_timesteps": 96, "evaluations": 1, "n_eval_episodes": 2, "evaluation_seed": 0,
        "deterministic": True, "algorithm": "PPO", "settings": {"n_envs": 2}, "seed": 0, "evaluation": 0, "steps": 96,
        "returns": [1.0, 3.0], "seconds": 2.0, "seeds_together": 1, "device": "cpu", "version": "0.1.0",
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    results = read_results(tmp_path)
    assert results.envs == [ENV] and results.final("PPO") == [2.0]
    add_results(tmp_path, results.protocol, results.lines)
    again = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(again[0]) == json.loads(again[1]), "and is written with the same fields"


def test_what_is_missing_is_told_for_each_environment(tmp_path, monkeypatch):
    protocol = Protocol(96, 3, 2, 0, True)
    add_results(tmp_path, protocol, made_up(ENV, "PPO", {0: 1, 1: 2}) + made_up(MATCH, "DQN", {0: 1}))
    trained = []
    monkeypatch.setattr(
        "advantage.experiments.compare._train",
        lambda pair, _, seed, seeds, bar: trained.append((*pair[:2], seed, seeds)) or [],
    )
    compare(["PPO", "DQN"], envs=[ENV, MATCH], out=tmp_path, seeds=2, **TINY)
    assert trained == [(ENV, "DQN", 0, 2), (MATCH, "PPO", 0, 2), (MATCH, "DQN", 1, 1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_timesteps": 128}, "total_timesteps=128, but the results in .* have total_timesteps=96"),
        ({"settings": {"PPO": {"gamma": 0.5}}}, f"settings of PPO on {MATCH}: gamma is 0.5, but .* it is 0.9"),
    ],
)
def test_another_protocol_is_refused_on_a_new_environment_too(tmp_path, monkeypatch, changes, said):
    """ENV is new in the folder: nothing of it differs, but the folder's protocol does."""
    protocol = Protocol(96, 3, 2, 0, True)
    add_results(tmp_path, protocol, made_up(MATCH, "PPO", {0: 1}, {"gamma": 0.9}))
    monkeypatch.setattr("advantage.experiments.compare._train", None)
    with pytest.raises(ValueError, match=said):
        compare(["PPO"], envs=[ENV, MATCH], out=tmp_path, **{**TINY, **changes})


def test_presets_are_used_if_asked_for(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr("advantage.experiments.compare._train", lambda pair, *_: trained.append(pair) or [])
    monkeypatch.setattr("advantage.experiments.compare.write_report", lambda results, _: Report(results, (), "", ()))
    options = {"envs": [ENV, "CartPole-v1"], "settings": {"PPO": {"gamma": 0.5}}}
    compare(["PPO"], out=tmp_path, **options, **TINY)
    assert [pair.settings for pair in trained] == [{"gamma": 0.5}] * 2
    compare(["PPO"], out=tmp_path, presets=True, **options, **TINY)
    for pair in trained[2:]:
        assert pair.settings == {**preset("PPO", pair.env).settings, "gamma": 0.5}
    with pytest.raises(ValueError, match="env='advantage/ProbeMatch-v0' has no preset of PPO"):
        compare(["PPO"], MATCH, out=tmp_path, presets=True, **TINY)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "env=None and envs=None: give env, or envs for several environments, not both"),
        ({"env": ENV, "envs": [ENV]}, "give env, or envs"),
        ({"envs": []}, r"envs=\[\] has to be a list of ids, each once"),
        ({"envs": [ENV, ENV]}, "has to be a list of ids, each once"),
        ({"envs": ENV}, "has to be a list of ids, each once"),
        ({"envs": [ENV, "advantage/Cartpole-v1"]}, "nearest: advantage/CartPole-v1"),
        ({"envs": [ENV, "advantage/Pendulum-v1"]}, "DQN cannot choose actions from a box space"),
    ],
)
def test_environments_that_cannot_be_compared_are_named(tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr("advantage.experiments.compare._train", None)
    with pytest.raises(ValueError, match=said):
        compare(["PPO", "DQN"], out=tmp_path / "new", **TINY, **arguments)
    assert not (tmp_path / "new").exists()
