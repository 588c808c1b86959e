"""Agents learn from pictures alone: three seeds in one process, on which half of one a bright column stands."""

import numpy as np
import pytest

from advantage import DQN, SAC


def seen():
    """Every picture, and whether its column stands on the right `[36]`."""
    columns = np.arange(36)
    pictures = np.zeros((36, 36, 36, 1), np.uint8)
    pictures[columns, :, columns] = 255
    return pictures, columns >= 18


def test_dqn_sees_the_side():
    """With DQN's own CNN: the right action for 34 of 36 pictures at least (chance: 18)."""
    model = DQN(
        "CnnPolicy", "advantage/ProbePicture-v0", seeds=3, seed=0, n_envs=4, learning_rate=1e-3, buffer_size=2_000,
        learning_starts=50, train_freq=1, target_update_interval=50, exploration_fraction=0.5,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 32}},
    ).learn(600)  # fmt: skip
    pictures, right = seen()
    scores = [np.sum(model.predict(pictures, deterministic=True, seed_index=s)[0] == right) for s in range(3)]
    assert min(scores) >= 34, scores


@pytest.mark.slow
def test_sac_sees_the_side_through_a_shared_encoder():
    """One encoder, which the critics alone learn: mean squared error below 0.05 (at first: 0.25)."""
    model = SAC(
        "CnnPolicy", "advantage/ProbePictureContinuous-v0", seeds=3, seed=0, learning_rate=3e-3, buffer_size=2_000,
        batch_size=32, ent_coef=0.01,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 32}, "net_arch": [32],
                       "share_features_extractor": True},
    ).learn(400)  # fmt: skip
    pictures, right = seen()
    target = np.where(right, 0.5, -0.5)
    errors = [np.mean((model.predict(pictures, deterministic=True, seed_index=s)[0][:, 0] - target) ** 2) for s in range(3)]
    assert max(errors) < 0.05, errors
