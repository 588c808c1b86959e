"""PPO with a network of your own: any Equinox module that turns observations into features, here a residual block.

A module has `size`, the number of its features, and is called with observations `[*batch, ...]` of any leading axes.
    python examples/custom_network.py --total-timesteps 40000
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp

from advantage import PPO, evaluate_policy


class Residual(eqx.Module):
    """`tanh(A x)`, and what a second layer adds to it."""

    first: jax.Array
    second: jax.Array
    size: int = eqx.field(static=True)

    def __init__(self, space, key, size=64):
        keys, self.size = jax.random.split(key), size
        self.first = jax.random.normal(keys[0], (space.shape[0], size)) / space.shape[0] ** 0.5
        self.second = jax.random.normal(keys[1], (size, size)) / size**0.5

    def __call__(self, obs):
        x = jnp.tanh(obs @ self.first)
        return x + jnp.tanh(x @ self.second)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=40_000)
    words = {"features_extractor_class": Residual, "features_extractor_kwargs": {"size": 64}, "net_arch": []}
    model = PPO("MlpPolicy", "advantage/CartPole-v1", n_envs=8, n_steps=32, batch_size=256, seed=0, policy_kwargs=words)
    model.learn(parser.parse_args().total_timesteps)
    print("return: {:.1f} ± {:.1f}".format(*evaluate_policy(model, "CartPole-v1", 20)))
