"""Presets: each can be trained, and a verified one has its results; lookups and their errors."""

import inspect
import json
import re
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import advantage
from advantage import preset
from advantage.envs.make import resolve_env
from advantage.experiments.cost import spec_of
from advantage.experiments.preset import ATARI, Preset, find_preset, presets
from advantage.experiments.statistics import bootstrap_interval, iqm
from advantage.models import ALGORITHMS, usual_policy
from advantage.types import Spec

ROOT = Path(__file__).parents[2]
EVERY = presets()
DISCRETE = {"LunarLander-v3"}  # of those that need what is not installed everywhere


def name(one: Preset) -> str:
    return f"{one.algorithm}-{one.env}"


def spec(env: str) -> Spec:
    """The environment's spaces; where it is not installed, some of the right kind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's about old versions
            return spec_of(resolve_env(env, 1))
    except ImportError:
        assert env in gymnasium.registry
        action = gymnasium.spaces.Discrete(4) if env in DISCRETE else gymnasium.spaces.Box(-1, 1, (2,))
        return Spec.from_gymnasium(gymnasium.spaces.Box(-1, 1, (8,)), action)


@pytest.mark.parametrize("one", EVERY, ids=name)
def test_a_preset_can_be_trained(one):
    face = ALGORITHMS[one.algorithm]
    assert one.env == ATARI or re.search(r"-v\d+$", one.env), "an id without version means another task next year"
    assert one.total_timesteps > 0 and one.source
    if "normalize" in one.settings and "normalize" not in inspect.signature(face).parameters:
        pytest.skip("needs `normalize`, which the models do not know yet")
    env = one.env.replace(ATARI, "ALE/Pong-v5")
    model = face(one.settings.pop("policy", usual_policy(face, env)), None, **one.settings)  # unknown names raise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model._check(
            spec(env), model.n_envs, env.startswith("advantage/")
        )  # values that cannot work raise


@pytest.mark.parametrize("one", [one for one in EVERY if one.verified], ids=name)
def test_a_verified_preset_has_its_results(one):
    """By exactly its settings and budget, with at least 5 seeds, not shown to be worse than what its source published."""
    file = ROOT / one.verified.file
    assert file.exists(), f"{one.verified.file} is not there"
    records = json.loads(file.read_text(encoding="utf-8"))
    (record,) = [r for r in records if (r["algorithm"], r["env"]) == (one.algorithm, one.env)]
    assert record["settings"] == one.settings and record["total_timesteps"] == one.total_timesteps
    returns = np.array(record["returns"])
    assert one.verified.seeds == len(returns) >= 5
    numbers = [iqm(returns), *bootstrap_interval(returns)]
    np.testing.assert_allclose(one.verified[2:], numbers, atol=0.051)
    assert one.verified.high >= one.published[0] - one.published[1]


def test_some_presets_are_verified():
    """Of the algorithms whose presets train in minutes; those of continuous control say that they are not."""
    assert {one.algorithm for one in EVERY if one.verified} >= {"DQN", "PPO"}


def test_every_env_once():
    assert len({name(one) for one in EVERY}) == len(EVERY)


def test_preset():
    found = preset("ppo", "CartPole-v1")
    assert (found.algorithm, found.env, found.total_timesteps) == ("PPO", "CartPole-v1", 100_000)
    assert found.settings["n_envs"] == 8 and found.settings["learning_rate"] == "lin_0.001"
    assert "rl-baselines3-zoo" in found.source and found.published == (500.0, 0.0)
    found.settings.clear()
    assert preset("PPO", "CartPole-v1").settings, "a caller's changes stay the caller's"
    assert advantage.Preset is Preset


def test_every_atari_game_has_the_preset_of_all():
    for env in ("ALE/Pong-v5", "ALE/MsPacman-v5@machado"):
        for found in (preset("DQN", env), find_preset("DQN", env)):
            assert found.env == env and found.settings["target_update_interval"] == 1000
            assert found.total_timesteps == 10_000_000
    assert find_preset("SAC", "ALE/Pong-v5") is None


def test_a_preset_trains():
    found = preset("PPO", "advantage/CartPole-v1")
    model = advantage.PPO("MlpPolicy", found.env, seed=0, **found.settings).learn(512)
    assert model.n_steps == 32 and model.num_timesteps == 512


def test_what_is_said():
    text = str(preset("PPO", "LunarLander-v3"))
    assert text.startswith("PPO on LunarLander-v3: n_envs=16, ") and text.endswith(
        "; 1,000,000 steps; unverified"
    )
    text = preset("PPO", "CartPole-v1").status
    assert text.startswith("verified: return 500.0 (") and text.endswith(
        " seeds, benchmarks/results/presets.json"
    )


def test_none_is_named():
    with pytest.raises(
        ValueError, match=r"env='CartPole-v0' has no preset of PPO; there are some for CartPole-v1"
    ):
        preset("PPO", "CartPole-v0")
    with pytest.raises(ValueError, match="algorithm='REINFORCE' has no presets: choose from A2C, DQN, PPO"):
        preset("REINFORCE", "CartPole-v1")
    assert find_preset("PPO", "CartPole-v0") is None and find_preset("REINFORCE", "CartPole-v1") is None


def test_the_table_in_the_docs_is_that_of_the_files():
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    table = text.partition("<!-- table -->")[2].partition("<!-- /table -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
    expected = []
    for one in EVERY:
        v = one.verified
        expected.append([
            one.algorithm, f"`{one.env}`" + ", `normalize`" * ("normalize" in one.settings), f"{one.total_timesteps:,}",
            f"{v.iqm} ({v.low} to {v.high}), {v.seeds} seeds" if v else "unverified",
            "–" if one.published is None else f"{one.published[0]} ± {one.published[1]}",
        ])  # fmt: skip
    assert rows == expected, "python benchmarks/presets.py --report writes it"
