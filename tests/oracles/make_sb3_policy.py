"""Answers of SB3's A2C and sb3-contrib's TRPO: writes `sb3_policy.npz` beside itself.

    .bench/sb3/bin/python tests/oracles/make_sb3_policy.py        (environment: see README.md)

Run by hand, never by the tests. Weights and rollouts are those of `ppo/discrete` and `ppo/box` in `sb3.npz` (see
`make_sb3.py`), made again by the same calls; TRPO's conjugate gradient begins at zero, not at its small noise.

`a2c/CASE/`, `trpo/CASE/` with CASE `discrete`, `box`: one update on the whole rollout of 64 rows.
    settings/: what the constructor was given.
    values, log_probs, advantages, returns `[16,4]`: as in the buffer.
    after/: weights after it. log/: what is logged, by its key without `train/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gymnasium import spaces
from make_sb3 import OBS, Arrays, N, T, make, put, randomise, rollout, weights
from sb3_contrib import TRPO
from stable_baselines3 import A2C
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

NET = {"pi": [16, 16], "vf": [16, 16]}
TF_LIKE = {"net_arch": NET, "optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
COMMON = {"learning_rate": 0.01, "gamma": 0.98, "gae_lambda": 0.9}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "a2c": (A2C, {"ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5, "learning_rate": 0.5}, TF_LIKE),
    "trpo": (
        TRPO, {"batch_size": T * N, "target_kl": 0.02, "cg_damping": 0.05, "cg_max_steps": 8, "n_critic_updates": 3},
        {"net_arch": NET},
    ),
}  # fmt: skip
CASES = {"discrete": spaces.Discrete(2), "box": spaces.Box(-1, 1, (2,), np.float32)}


def main() -> None:
    """Ask everything and write the file."""
    arrays: Arrays = {}
    for name, (algorithm, settings, policy_kwargs) in ALGORITHMS.items():
        for case, action in CASES.items():
            prefix, given = f"{name}/{case}", COMMON | settings
            model = make(algorithm, "MlpPolicy", OBS, action, N, n_steps=T, policy_kwargs=policy_kwargs, **given)
            randomise(model.policy, seed=2)
            found = rollout(model, np.random.default_rng(3), COMMON["gamma"])
            put(arrays, prefix, {key: found[key] for key in ("values", "log_probs", "advantages", "returns")})
            with mock.patch("torch.randn_like", torch.zeros_like):
                model.train()
            put(arrays, f"{prefix}/after", weights(model.policy))
            logged = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
            put(arrays, f"{prefix}/log", logged)
            put(arrays, f"{prefix}/settings", given)
    np.savez_compressed(Path(__file__).with_name("sb3_policy.npz"), **arrays)


if __name__ == "__main__":
    main()
