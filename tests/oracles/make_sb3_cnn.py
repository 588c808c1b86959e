"""Answers of Stable-Baselines3's networks for pictures: writes `sb3_cnn.npz` beside itself.

    .bench/sb3/bin/python tests/oracles/make_sb3_cnn.py        (environment: see README.md)

Run by hand, never by the tests. Pictures and weights follow from their place in the array (`pictures`, `waves`), so
that the file holds answers alone; the test makes them again. Pictures are channels-first, as SB3 wants them.

`nature/`: `NatureCNN` of Box(0, 255, (2, 44, 52), uint8) with 7 features, so that no two sides are equal.
    features `[3,7]`; grad/NAME: gradients of the sum of `features * waves(features.shape, 1, 0)`, by SB3's names and in
    torch's order, of the first convolution whole, of the others their products with `waves` of their shape.
`combined/`: keys, and features `[3,F]` of `MultiInputPolicy` of PPO, cnn_output_dim 5, on a Dict of "b": pictures
    `[3,36,40]`, "a": Box `[2]`, "c": Discrete(3), "d": pictures `[1,40,36]`.
`parameters/ALGORITHM`: how many numbers `CnnPolicy` learns on pictures `[4,84,84]`, 3 actions (numbers of an action).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from make_sb3 import Arrays, extracted, make, put
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import NatureCNN


def pictures(shape: tuple[int, ...]) -> np.ndarray:
    """`[3, *shape]` in uint8."""
    count = 3 * int(np.prod(shape))
    return (np.arange(count) * 7919 // 13 % 256).astype(np.uint8).reshape(3, *shape)


def waves(shape: tuple[int, ...], scale: float, phase: int) -> np.ndarray:
    """Numbers within `scale` in float32, none like its neighbours."""
    return (scale * np.sin(0.7 * np.arange(np.prod(shape)) + phase)).astype(np.float32).reshape(shape)


def fill(module: torch.nn.Module) -> None:
    """Weights of about torch's size, and biases."""
    with torch.no_grad():
        for i, value in enumerate(module.parameters()):
            scale = 0.1 if value.ndim == 1 else 2.0 / value[0].numel() ** 0.5
            value.copy_(torch.tensor(waves(tuple(value.shape), scale, i)))


def nature(arrays: Arrays) -> None:
    """Features and gradients of one network."""
    network = NatureCNN(spaces.Box(0, 255, (2, 44, 52), np.uint8), features_dim=7)
    fill(network)
    features = network(torch.tensor(pictures((2, 44, 52))).float() / 255.0)
    (features * torch.tensor(waves((3, 7), 1.0, 0))).sum().backward()
    gradients = {}
    for name, value in network.named_parameters():
        gradient = value.grad.numpy()
        whole = name.startswith("cnn.0")
        gradients[name] = gradient if whole else np.sum(gradient.astype(np.float64) * waves(gradient.shape, 1.0, 0))
    put(arrays, "nature", {"features": features.detach().numpy()})
    put(arrays, "nature/grad", gradients)


def combined(arrays: Arrays) -> None:
    """Two pictures, a vector and a choice."""
    space = spaces.Dict({
        "b": spaces.Box(0, 255, (3, 36, 40), np.uint8), "a": spaces.Box(-1, 1, (2,), np.float32),
        "c": spaces.Discrete(3), "d": spaces.Box(0, 255, (1, 40, 36), np.uint8),
    })  # fmt: skip
    words = {"policy_kwargs": {"features_extractor_kwargs": {"cnn_output_dim": 5}}, "n_steps": 8, "batch_size": 8}
    policy = make(PPO, "MultiInputPolicy", space, spaces.Discrete(2), **words).policy
    for extractor in policy.features_extractor.extractors.values():
        fill(extractor)
    obs = {"a": waves((3, 2), 1.0, 0), "b": pictures((3, 36, 40)), "c": np.array([0, 2, 1]), "d": pictures((1, 40, 36))}
    put(arrays, "combined", {"keys": list(space.spaces), "features": extracted(policy, obs)})


def parameters(arrays: Arrays) -> None:
    """Sizes of whole policies."""
    picture = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    for algorithm in (PPO, DQN, SAC, TD3, DDPG):
        discrete = algorithm in (PPO, DQN)
        action: Any = spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (3,), np.float32)
        few = {"n_steps": 8, "batch_size": 8} if algorithm is PPO else {"buffer_size": 1}
        policy = make(algorithm, "CnnPolicy", picture, action, **few).policy
        # PPO's names for one network behind another are aliases; targets are copies.
        count = sum(value.numel() for name, value in policy.named_parameters() if "target" not in name)
        put(arrays, "parameters", {algorithm.__name__: count})


def main() -> None:
    """Ask everything and write the file."""
    torch.set_num_threads(1)
    arrays: Arrays = {}
    for ask in (nature, combined, parameters):
        ask(arrays)
    path = Path(__file__).with_name("sb3_cnn.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
