"""Answers of sb3-contrib, stored for our tests: writes `sb3_contrib.npz` beside itself.

    python -m venv .bench/sb3 && .bench/sb3/bin/pip install torch==2.13.0 sb3-contrib==2.9.2
    .bench/sb3/bin/python tests/oracles/make_sb3_contrib.py

Run by hand, never by the tests. The file holds plain arrays (read it with `allow_pickle=False`); names have
parts separated by "/". Weights are as torch has them, `[out, in]`, by sb3-contrib's names. Its own code computes
every answer; only the inputs are made here, from fixed seeds.

`versions`: name=version strings.

`quantile_huber/`: quantiles `[32,3,5]`, target `[32,1,9]` and loss `[]`, summed over nothing (TQC's);
    single, single_target `[32,5]`, `[32,7]` and single_loss, summed over quantiles (QR-DQN's).

`tqc/`: three calls of `TQC.train(1)` on one batch of 32: net_arch [16, 16] with ReLU, 3 critics of 5 quantiles,
    2 dropped of each, 2 actions within [-1, 1], the temperature learned from 1 on.
    settings/: learning_rate, gamma, tau.
    obs, next_obs `[32,4]`, actions `[32,2]`, rewards, terminated `[32]`.
    noise `[32,2]`: the normal numbers behind every action drawn, the same at each draw.
    before/, after1/, after3/: weights of actor, critics and target critics, and log_ent_coef.
    log/KEY `[3]`: what is logged, by its key without `train/`.

`qrdqn/`: three calls of `QRDQN.train(1)` on one batch of 32, 3 actions: net_arch [16, 16] with ReLU, 5 quantiles.
    settings/: learning_rate, gamma.
    obs, next_obs `[32,4]`, actions `[32]`, rewards, terminated `[32]`.
    before/, after1/, after3/: weights of quantile_net and quantile_net_target; outputs are `[quantiles, actions]`.
    log/loss `[3]`.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
import torch
from sb3_contrib import QRDQN, TQC
from sb3_contrib.common.utils import quantile_huber_loss
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples

Arrays = dict[str, np.ndarray]
BATCH, OBS, ACTIONS = 32, 4, 2
SETTINGS = {"learning_rate": 3e-3, "gamma": 0.9, "tau": 0.1}


class Spaces(gymnasium.Env):
    """Nothing but spaces."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBS,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,))


def quantile_huber() -> Arrays:
    """Losses of random quantiles, errors on both sides of 1."""
    rng = np.random.default_rng(0)
    shapes = {"quantiles": (BATCH, 3, 5), "target": (BATCH, 1, 9), "single": (BATCH, 5), "single_target": (BATCH, 7)}
    arrays = {name: rng.normal(scale=2.0, size=shape).astype(np.float32) for name, shape in shapes.items()}
    tensors = {name: torch.tensor(x) for name, x in arrays.items()}
    arrays["loss"] = quantile_huber_loss(tensors["quantiles"], tensors["target"], sum_over_quantiles=False).numpy()
    arrays["single_loss"] = quantile_huber_loss(tensors["single"], tensors["single_target"]).numpy()
    return {f"quantile_huber/{name}": x for name, x in arrays.items()}


def weights(model: Any) -> Arrays:
    """Copies of all that is learned."""
    parts = {"actor": model.actor, "critic": model.critic, "critic_target": model.critic_target}
    arrays = {f"{part}.{k}": v.numpy().copy() for part, m in parts.items() for k, v in m.state_dict().items()}
    return arrays | {"log_ent_coef": model.log_ent_coef.detach().numpy().copy()}


def tqc() -> Arrays:
    """Three gradient steps on one batch."""
    rng = np.random.default_rng(1)
    policy_kwargs = {"net_arch": [16, 16], "n_quantiles": 5, "n_critics": 3}
    model = TQC("MlpPolicy", Spaces(), seed=0, device="cpu", policy_kwargs=policy_kwargs, buffer_size=64, **SETTINGS)
    with torch.no_grad():  # targets that differ from what they follow
        for parameter in model.critic_target.parameters():
            parameter.add_(0.05 * torch.tensor(rng.normal(size=parameter.shape), dtype=torch.float32))
    shapes = {"obs": (BATCH, OBS), "next_obs": (BATCH, OBS), "rewards": (BATCH,), "noise": (BATCH, ACTIONS)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["actions"] = rng.uniform(-1.0, 1.0, (BATCH, ACTIONS)).astype(np.float32)
    arrays["terminated"] = rng.random(BATCH) < 0.3
    tensor = {name: torch.tensor(x, dtype=torch.float32) for name, x in arrays.items()}
    ends, rewards = tensor["terminated"][:, None], tensor["rewards"][:, None]
    samples = ReplayBufferSamples(tensor["obs"], tensor["actions"], tensor["next_obs"], ends, rewards)
    model.replay_buffer.sample = lambda *args, **kwargs: samples
    model.set_logger(Logger(None, []))
    arrays |= {f"settings/{name}": np.float64(value) for name, value in SETTINGS.items()}
    arrays |= {f"before/{name}": x for name, x in weights(model).items()}
    logged: dict[str, list[float]] = {}
    with mock.patch.object(torch.distributions.Normal, "rsample", lambda d, *shape: d.loc + d.scale * tensor["noise"]):
        for step in (1, 2, 3):
            model.train(1, BATCH)
            for name, value in model.logger.name_to_value.items():
                logged.setdefault(name.removeprefix("train/"), []).append(value)
            if step in (1, 3):
                arrays |= {f"after{step}/{name}": x for name, x in weights(model).items()}
    arrays |= {f"log/{name}": np.asarray(values, np.float64) for name, values in logged.items()}
    return {f"tqc/{name}": x for name, x in arrays.items()}


class Choices(Spaces):
    """Three actions."""

    action_space = gymnasium.spaces.Discrete(3)


def qrdqn() -> Arrays:
    """Three gradient steps on one batch."""
    rng, settings = np.random.default_rng(2), {"learning_rate": 3e-3, "gamma": 0.9}
    policy_kwargs = {"net_arch": [16, 16], "n_quantiles": 5}
    model = QRDQN("MlpPolicy", Choices(), seed=0, device="cpu", policy_kwargs=policy_kwargs, buffer_size=64, **settings)
    with torch.no_grad():  # targets that differ from what they follow
        for parameter in model.quantile_net_target.parameters():
            parameter.add_(0.05 * torch.tensor(rng.normal(size=parameter.shape), dtype=torch.float32))
    shapes = {"obs": (BATCH, OBS), "next_obs": (BATCH, OBS), "rewards": (BATCH,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["actions"] = rng.integers(0, 3, BATCH)
    arrays["terminated"] = rng.random(BATCH) < 0.3
    tensor = {name: torch.tensor(x, dtype=torch.float32) for name, x in arrays.items()}
    ends, rewards, actions = (tensor[name][:, None] for name in ("terminated", "rewards", "actions"))
    samples = ReplayBufferSamples(tensor["obs"], actions.long(), tensor["next_obs"], ends, rewards)
    model.replay_buffer.sample = lambda *args, **kwargs: samples
    model.set_logger(Logger(None, []))

    def learned() -> Arrays:
        parts = {"quantile_net": model.quantile_net, "quantile_net_target": model.quantile_net_target}
        return {f"{part}.{k}": v.numpy().copy() for part, m in parts.items() for k, v in m.state_dict().items()}

    arrays |= {f"settings/{name}": np.float64(value) for name, value in settings.items()}
    arrays |= {f"before/{name}": x for name, x in learned().items()}
    losses = []
    for step in (1, 2, 3):
        model.train(1, BATCH)
        losses.append(model.logger.name_to_value["train/loss"])
        if step in (1, 3):
            arrays |= {f"after{step}/{name}": x for name, x in learned().items()}
    return {f"qrdqn/{name}": x for name, x in (arrays | {"log/loss": np.asarray(losses, np.float64)}).items()}


def main() -> None:
    """Ask, and store the answers."""
    torch.set_num_threads(1)
    packages = ("torch", "stable-baselines3", "sb3-contrib", "numpy")
    versions = np.array([f"{package}={importlib.metadata.version(package)}" for package in packages])
    path = Path(__file__).with_name("sb3_contrib.npz")
    np.savez_compressed(path, versions=versions, **quantile_huber(), **tqc(), **qrdqn())


if __name__ == "__main__":
    main()
