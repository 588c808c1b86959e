"""Ablations from end to end, with budgets of seconds: every variant is what its name says."""

import numpy as np
import pytest

from advantage import ablate
from advantage.algorithms import rainbow
from advantage.experiments import ablate as ablation
from advantage.experiments.compare import _made
from advantage.experiments.results import read_results
from advantage.networks.distributional import CategoricalNetwork
from advantage.networks.noisy import NoisyLinear

ENV = "advantage/CartPole-v1"
SMALL = {
    "learning_starts": 16, "buffer_size": 128, "batch_size": 8, "v_min": 0, "v_max": 50, "n_atoms": 5,
    "exploration_fraction": 0.7, "policy_kwargs": {"net_arch": [4]},
}  # fmt: skip
TINY = {"total_timesteps": 64, "evaluations": 2, "n_eval_episodes": 1, "settings": SMALL}


def test_variants():
    """Rainbow, six without a part, DQN; `alone` adds six with one."""
    found = ablation.variants()
    assert list(found) == ["Rainbow", *(f"no {part}" for part in rainbow.PARTS), "DQN"]
    assert [len(parts) for parts in found.values()] == [6, *[5] * 6, 0]
    assert all(part not in found[f"no {part}"] for part in rainbow.PARTS)
    alone = ablation.variants(alone=True)
    assert list(alone)[8:] == [f"DQN + {part}" for part in rainbow.PARTS]
    assert all(alone[f"DQN + {part}"] == (part,) for part in rainbow.PARTS)


@pytest.mark.parametrize("name", ablation.variants(alone=True))
def test_a_variant_is_what_its_name_says(name):
    """Atoms, streams, noise, priorities and steps are in the agent that is made; all share Rainbow's own settings."""
    parts = ablation.variants(alone=True)[name]
    model = _made(ablation._pair(ENV, name, parts, SMALL), 0, 1)
    network = model._seed_state(0).network
    assert isinstance(network, CategoricalNetwork) == ("distributional" in parts)
    inner = network.network if "distributional" in parts else network
    assert hasattr(inner, "advantage_head") == ("dueling" in parts)
    head = inner.advantage_head if "dueling" in parts else inner.head
    assert isinstance(head, NoisyLinear) == ("noisy" in parts)
    assert (model._prioritised is not None) == ("prioritised" in parts)
    assert model.n_steps == (3 if "multi-step" in parts else 1)
    chosen = model.next_action if "distributional" in parts else model.bootstrap
    assert chosen.__name__.startswith("double" if "double" in parts else "greedy")
    epsilon = model._config.exploration_initial_eps, model._config.exploration_fraction
    assert epsilon == ((0.0, 0.1) if "noisy" in parts else (1.0, 0.7))
    assert model.learning_rate == 6.25e-5 and model.optimizer.__name__ == "adam_rainbow" and model.learning_starts == 16


def test_ablate_and_add_to_it(tmp_path):
    """All variants are trained and stored by their names, verdicts are against Rainbow, and more seeds add to them."""
    first = ablate("Rainbow", ENV, out=tmp_path, seeds=1, **TINY)
    assert first.results.algorithms == list(ablation.variants()) and first.verdicts[0].startswith("Rainbow and no double")
    before = {name: first.results.returns(name) for name in ("Rainbow", "DQN")}
    report = ablate("rainbow", ENV, out=tmp_path, seeds=3, **TINY)
    assert len(report.verdicts) == 7 and all("Rainbow" in verdict for verdict in report.verdicts)
    assert {"ablation.png", "ablation.svg", "report.md"} <= {path.name for path in report.files if path.exists()}
    for name, returns in before.items():
        np.testing.assert_array_equal(report.results.returns(name)[:1], returns)
    stored = read_results(tmp_path)
    assert stored.settings("DQN").keys() == SMALL.keys() - {"v_min", "v_max", "n_atoms"}
    assert stored.settings("Rainbow").keys() == SMALL.keys() - {"exploration_fraction"}
    with pytest.raises(ValueError, match="settings of Rainbow on .*: learning_starts is 17, but in the results"):
        ablate("Rainbow", ENV, out=tmp_path, seeds=3, **TINY | {"settings": {**SMALL, "learning_starts": 17}})


def test_bad_input(tmp_path):
    for arguments, message in (
        (("PPO", ENV), "algorithm='PPO' is not made of parts: choose from Rainbow"),
        (("Rainbow", "CartPol-v1"), "did you mean CartPole-v1"),
    ):
        with pytest.raises(ValueError, match=message):
            ablate(*arguments, out=tmp_path, seeds=1, **TINY)
    assert not (tmp_path / "results.jsonl").exists()
