"""Where memory is needed, a recurrent agent learns what no other can."""

import pytest

from advantage import A2C, PPO, SAC, DoubleDQN
from advantage.training.evaluation import evaluate_every_seed

ENV = "advantage/ProbeRecall-v0"


def test_recurrent_sac_recalls():
    """A cue of the first step, answered three steps later: a mean return of 0.8 of at most 1 in 4,000 steps.

    Any policy without memory gets 0 (`tests/envs/test_jax_envs.py` shows why, `benchmarks/recurrent.py` measures it).
    """
    model = SAC(
        "MlpLstmPolicy", ENV, n_envs=4, seeds=3, seed=0, learning_rate=3e-3, buffer_size=8_000, learning_starts=200,
        batch_size=64, gamma=0.9, tau=0.02,
        policy_kwargs={"net_arch": [16], "lstm_hidden_size": 16, "sequence_length": 4, "burn_in": 2},
    )  # fmt: skip
    scores = evaluate_every_seed(model.learn(4_000), ENV, 40, seed=1).returns.mean(axis=1)
    assert min(scores) > 0.8, scores


def test_recurrent_action_values_recall():
    """The same with two actions: 0.8 in 4,000 steps, where a network without memory gets 0; 1 for each of 11 seeds."""
    model = DoubleDQN(
        "MlpLstmPolicy", "advantage/ProbeRecallDiscrete-v0", n_envs=4, seeds=3, seed=0, learning_rate=3e-3, buffer_size=8_000,
        learning_starts=200, batch_size=64, gamma=0.9, train_freq=4, gradient_steps=8, target_update_interval=100,
        exploration_fraction=0.3,
        policy_kwargs={"net_arch": [16], "rnn_type": "gru", "lstm_hidden_size": 16, "sequence_length": 4, "burn_in": 2},
    )  # fmt: skip
    scores = evaluate_every_seed(model.learn(4_000), "advantage/ProbeRecallDiscrete-v0", 40, seed=1).returns.mean(axis=1)
    assert min(scores) > 0.8, scores


SMALL = {"net_arch": [16], "lstm_hidden_size": 16}
ON_POLICY = {
    PPO: (10_000, {"n_steps": 32, "batch_size": 64, "learning_rate": 3e-3}, SMALL | {"sequence_length": 8}),
    A2C: (30_000, {"n_steps": 8, "learning_rate": 3e-3, "use_rms_prop": False}, SMALL),
}


@pytest.mark.parametrize("face", ON_POLICY, ids=lambda face: face.__name__)
def test_on_policy_recalls(face):
    """The same on-policy, three seeds each: a policy that forgets gets 0."""
    steps, settings, words = ON_POLICY[face]
    model = face("MlpLstmPolicy", ENV, n_envs=8, seeds=3, seed=0, gamma=0.9, policy_kwargs=words, **settings)
    scores = evaluate_every_seed(model.learn(steps), ENV, 40, seed=1).returns.mean(axis=1)
    assert min(scores) > 0.8, scores
