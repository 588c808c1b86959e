"""Where memory is needed, recurrent agents learn what others cannot."""

import pytest

from advantage import SAC, TD3
from advantage.training.evaluation import evaluate_every_seed

ENV = "advantage/ProbeRecall-v0"


def recalled(face, policy, words, **settings):
    """Each seed's mean return over 40 episodes: a cue of the first step is to be answered three steps later."""
    model = face(
        policy, ENV, n_envs=4, seeds=3, seed=0, learning_rate=3e-3, buffer_size=8_000, learning_starts=200,
        batch_size=64, gamma=0.9, tau=0.02, train_freq=1, gradient_steps=1, policy_kwargs={"net_arch": [16], **words},
        **settings,
    )  # fmt: skip
    return evaluate_every_seed(model.learn(4_000), ENV, 40, seed=1).returns.mean(axis=1)


MEMORY = {"lstm_hidden_size": 16, "sequence_length": 4, "burn_in": 2}


@pytest.mark.parametrize(
    ("face", "words", "settings"),
    [(SAC, {"rnn_type": "lstm"}, {}), (TD3, {"rnn_type": "gru"}, {"action_noise": 0.3})],
)
def test_recurrent_agents_recall(face, words, settings):
    """A return of 0.8 of at most 1 (any policy without memory: 0)."""
    scores = recalled(face, "MlpLstmPolicy", MEMORY | words, **settings)
    assert min(scores) > 0.8, scores


def test_without_memory_nothing_is_recalled():
    """The action does not depend on the cue, so its product with it is 0 on average, whatever is learned."""
    scores = recalled(SAC, "MlpPolicy", {})
    assert max(scores) < 0.5, scores
