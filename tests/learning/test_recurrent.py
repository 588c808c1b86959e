"""Where memory is needed, a recurrent agent learns what no other can."""

from advantage import SAC
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
