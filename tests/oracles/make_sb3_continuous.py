"""Answers of Stable-Baselines3's SAC, TD3 and DDPG: writes `sb3_continuous.npz` beside itself.

    .bench/sb3/bin/python tests/oracles/make_sb3_continuous.py        (environment: see README.md)

Run by hand, never by the tests. Observations of 3 numbers, actions of 2, net_arch [16, 16] for actor and
critics, a fixed batch of 32 through SB3's replay buffer, weights as torch has them, `[out, in]`, by SB3's names.

`batch/`: obs, next_obs `[32,3]`, actions `[32,2]` within [-1, 1], rewards, terminated, truncated, dones `[32]`:
    SB3 samples 0 at a timeout.
`CASE/` with CASE `sac/adam` (a learned temperature), `sac/sgd` (plain gradient descent, a fixed temperature,
    targets moved at every second gradient step), `td3/adam`, `td3/sgd`, `ddpg/adam`, `ddpg/sgd`:
    settings/: what the constructor was given.
    normals: the unit normals that SB3 drew, in order, `[3,2,32,2]` for SAC (at each gradient step for the
        actor's actions, then for the target's), `[3,32,2]` for the others (the target's noise before its scale).
    after1, after3: all weights after 1 and 3 gradient steps, one vector in the order of `layout`; with a learned
        temperature its logarithm is log_ent_coef1, log_ent_coef3.
    log1/, log3/: what SB3 logs, by its key without `train/`: means over the gradient steps.
`sac/`, `td3/`, `ddpg/`: before: all weights before, where targets differ from what they follow; layout/: names,
    and shapes, of which a bias has `[size, 0]`.
`unscaled/`: low, high `[2]`, action, answer `[64,2]`: what SB3's policy sends to an environment of such bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gymnasium import spaces
from make_sb3 import Arrays, make, put, randomise, weights
from stable_baselines3 import DDPG, SAC, TD3

B, D, STEPS = 32, 2, 3
OBS, ACTION = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1.0, 1.0, (D,), np.float32)
COMMON = {"gamma": 0.9, "tau": 0.1}
SGD = {"optimizer_class": torch.optim.SGD}
CASES = {
    "sac/adam": (SAC, {"learning_rate": 0.01, "ent_coef": "auto_0.3", "target_entropy": -1.0}, {}),
    "sac/sgd": (SAC, {"learning_rate": 0.05, "ent_coef": 0.2, "target_update_interval": 2}, SGD),
    "td3/adam": (TD3, {"learning_rate": 0.01, "target_policy_noise": 0.4, "target_noise_clip": 0.5}, {}),
    "td3/sgd": (TD3, {"learning_rate": 0.05, "target_policy_noise": 0.4, "target_noise_clip": 0.5}, SGD),
    "ddpg/adam": (DDPG, {"learning_rate": 0.01}, {}),
    "ddpg/sgd": (DDPG, {"learning_rate": 0.05}, SGD),
}


def batch(arrays: Arrays) -> None:
    """Transitions with ends of both kinds."""
    rng = np.random.default_rng(1)
    obs, next_obs = rng.normal(size=(2, B, 3)).astype(np.float32)
    kind = rng.choice(3, size=B, p=[0.6, 0.2, 0.2])
    put(arrays, "batch", {
        "obs": obs, "next_obs": next_obs, "actions": rng.uniform(-1, 1, (B, D)).astype(np.float32),
        "rewards": rng.normal(size=B).astype(np.float32), "terminated": kind == 1, "truncated": kind == 2,
    })  # fmt: skip


def fill(model: Any, arrays: Arrays) -> None:
    """Put the batch through SB3's replay buffer, and let `sample` always give it, in order."""
    given = {name: arrays[f"batch/{name}"] for name in ("obs", "next_obs", "actions", "rewards")}
    for i in range(B):
        terminated, truncated = (bool(arrays[f"batch/{name}"][i]) for name in ("terminated", "truncated"))
        row = [x[i : i + 1] for x in given.values()]
        model.replay_buffer.add(*row, np.array([terminated or truncated]), [{"TimeLimit.truncated": truncated}])
    found = model.replay_buffer._get_samples(np.arange(B))
    model.replay_buffer.sample = lambda batch_size, env=None: found
    arrays["batch/dones"] = found.dones.numpy().flatten()


def prepared(face: Any, settings: dict[str, Any], kwargs: dict[str, Any], arrays: Arrays) -> Any:
    """A model at fixed weights whose replay buffer is full."""
    policy_kwargs = {"net_arch": [16, 16], **kwargs}
    model = make(face, "MlpPolicy", OBS, ACTION, buffer_size=B, policy_kwargs=policy_kwargs, **COMMON, **settings)
    for seed, network in enumerate(("actor", "critic", "critic_target", "actor_target")):
        if hasattr(model, network):
            randomise(getattr(model, network), seed=seed)
    if face is SAC:
        # Away from the bounds, where SB3's 1e-6 in the logarithm would show.
        with torch.no_grad():
            for layer, shift in ((model.actor.mu, 0.0), (model.actor.log_std, -1.0)):
                layer.weight.mul_(0.3)
                layer.bias.mul_(0.3).add_(shift)
    fill(model, arrays)
    return model


def trained(model: Any, steps: int) -> np.ndarray:
    """Train for `steps` gradient steps; the unit normals that were drawn on the way."""
    generator, drawn = torch.Generator().manual_seed(7), []

    def normal() -> torch.Tensor:
        drawn.append(torch.randn((B, D), generator=generator))
        return drawn[-1]

    def in_place(tensor: torch.Tensor, mean: float, std: float) -> torch.Tensor:
        return tensor.copy_(mean + std * normal())

    with (
        mock.patch("torch.distributions.normal._standard_normal", lambda *args, **kwargs: normal()),
        mock.patch.object(torch.Tensor, "normal_", in_place),
    ):
        model.train(steps, B)
    return np.stack(drawn)


def flat(found: dict[str, np.ndarray]) -> np.ndarray:
    """All weights as one vector."""
    return np.concatenate([x.ravel() for x in found.values()])


def updates(arrays: Arrays) -> None:
    """One and three gradient steps of every case."""
    for case, (face, settings, kwargs) in CASES.items():
        for steps in (1, STEPS):
            model = prepared(face, settings, kwargs, arrays)
            before = weights(model.policy)
            shapes = [(*x.shape, 0)[:2] for x in before.values()]
            put(arrays, f"{case.split('/')[0]}/layout", {"names": list(before), "shapes": shapes})
            put(arrays, case.split("/")[0], {"before": flat(before)})
            normals = trained(model, steps)
            put(arrays, case, {f"after{steps}": flat(weights(model.policy))})
            if getattr(model, "log_ent_coef", None) is not None:
                put(arrays, case, {f"log_ent_coef{steps}": model.log_ent_coef.detach().numpy()[0]})
            logged = {key.removeprefix("train/"): value for key, value in model.logger.name_to_value.items()}
            put(arrays, f"{case}/log{steps}", logged)
        arrays[f"{case}/normals"] = normals.reshape(STEPS, -1, B, D) if face is SAC else normals
        put(arrays, f"{case}/settings", {**COMMON, **settings})


def unscaled(arrays: Arrays) -> None:
    """What an environment with other bounds receives."""
    low, high = np.array([-3.0, 0.0], np.float32), np.array([5.0, 0.5], np.float32)
    model = make(TD3, "MlpPolicy", OBS, spaces.Box(low, high), buffer_size=1)
    action = np.random.default_rng(2).uniform(-1, 1, (64, D)).astype(np.float32)
    answer = model.policy.unscale_action(action)
    put(arrays, "unscaled", {"low": low, "high": high, "action": action, "answer": answer})


def main() -> None:
    """Ask everything and write the file."""
    torch.set_num_threads(1)
    arrays: Arrays = {}
    for ask in (batch, updates, unscaled):
        torch.manual_seed(0)
        ask(arrays)
    path = Path(__file__).with_name("sb3_continuous.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
