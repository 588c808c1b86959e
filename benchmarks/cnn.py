"""How long do forward and backward pass of DQN's CNN take, here and in SB3?

    python benchmarks/cnn.py            # this library
    python benchmarks/cnn.py sb3        # in an environment with stable-baselines3

One core; batches of 32 pictures of 84 x 84 x 4 bytes, the mean of all features by all weights; the median of 30, in
CPU-milliseconds, which other processes disturb less. Beside it IMPALA's network, which SB3 does not have, and three
networks side by side, as `seeds=3` trains them.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402

BATCH, ROUNDS, SEEDS = 32, 30, 3
PICTURES = np.random.default_rng(0).integers(0, 256, (BATCH, 84, 84, 4), dtype=np.uint8)


def main() -> None:
    """Measure and print."""
    for name, step in (sb3 if sys.argv[1:] == ["sb3"] else ours)():
        step()
        seconds = []
        for _ in range(ROUNDS):
            start = time.process_time()
            step()
            seconds.append(time.process_time() - start)
        print(f"{name}: {1000 * statistics.median(seconds):.0f} ms")


def ours() -> Iterator[tuple[str, Callable[[], object]]]:
    """Gradients as an update computes them: compiled."""
    import advantage.platform  # noqa: F401  (JAX's settings, before its backend)
    import jax
    import jax.numpy as jnp

    from advantage.networks.cnn import ImpalaCNN, NatureCNN
    from advantage.types import Space

    space, pictures = Space("box", PICTURES.shape[1:], "uint8", 0.0, 255.0), jnp.asarray(PICTURES)
    gradient = jax.grad(lambda network, x: jnp.mean(network(x)))
    for make in (NatureCNN, ImpalaCNN):
        step, network = jax.jit(gradient), make(space, jax.random.PRNGKey(0))
        yield make.__name__, lambda step=step, network=network: jax.block_until_ready(step(network, pictures))
    networks = jax.vmap(lambda key: NatureCNN(space, key))(jax.random.split(jax.random.PRNGKey(0), SEEDS))
    step, many = jax.jit(jax.vmap(gradient)), jnp.stack([pictures] * SEEDS)
    yield f"NatureCNN, {SEEDS} seeds", lambda: jax.block_until_ready(step(networks, many))


def sb3() -> Iterator[tuple[str, Callable[[], object]]]:
    """SB3's network and torch's gradients."""
    import torch
    from gymnasium.spaces import Box
    from stable_baselines3.common.torch_layers import NatureCNN

    torch.set_num_threads(1)
    network = NatureCNN(Box(0, 255, (4, 84, 84), np.uint8))
    pictures = torch.tensor(PICTURES.transpose(0, 3, 1, 2).copy())

    def step() -> None:
        network.zero_grad()
        network(pictures.float() / 255.0).mean().backward()

    yield "NatureCNN", step


if __name__ == "__main__":
    main()
