"""Eight learning rates times eight seeds: 64 PPO agents trained by one call of one compiled program.

The functions under the familiar face are pure, so that `jax.vmap` works on a whole training loop:
    python examples/sweep.py --total-timesteps 25600
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np

from advantage.algorithms import ppo
from advantage.envs.jax import make_jax, reset_envs, step_envs
from advantage.types import Chunk

ENV, NUM_ENVS, SEEDS = make_jax("advantage/CartPole-v1"), 8, 8
LEARNING_RATES = np.geomspace(3e-5, 1e-1, 8)
CONFIG = ppo.Config(n_steps=32, batch_size=128, n_epochs=4, gamma=0.98, gae_lambda=0.8)


def collect(actor, world, key):
    """`n_steps` of every environment, as a chunk, and the world they leave behind."""

    def step(world, key):
        env_state, observed = world
        act_key, env_key = jax.random.split(key)
        action, _ = ppo.act(CONFIG, actor, (), observed, act_key, explore=True)
        env_state, after = step_envs(ENV, env_state, observed, ppo.to_env(ENV.spec.action, action), env_key)
        row = (observed.obs, observed.is_first, None, action, after.reward, after.terminated, after.truncated)
        return (env_state, after.observed), (*row, jnp.ones(NUM_ENVS, bool), after.final_obs)

    world, rows = jax.lax.scan(step, world, jax.random.split(key, CONFIG.n_steps))
    return world, Chunk(*rows, last_obs=world[1].obs)


def train(learning_rate, key, updates):
    """One agent from nothing: the number of episodes that ended in each update `[updates]`."""
    config = dataclasses.replace(CONFIG, learning_rate=learning_rate)
    init_key, env_key, key = jax.random.split(key, 3)

    def update(carried, key):
        state, world = carried
        world, chunk = collect(ppo.actor(config, state), world, key)
        state, _, _ = ppo.update(config, state, (), chunk)
        return (state, world), jnp.sum(chunk.terminated | chunk.truncated)

    first = ppo.init(config, ENV.spec, init_key), reset_envs(ENV, jax.random.split(env_key, NUM_ENVS))
    return jax.lax.scan(update, first, jax.random.split(key, updates))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=25_600, help="of each agent")
    per_update = CONFIG.n_steps * NUM_ENVS
    updates = max(4, parser.parse_args().total_timesteps // per_update)
    over_seeds = jax.vmap(lambda rate, key: train(rate, key, updates), in_axes=(None, 0))
    sweep = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    print(f"compiling and training {len(LEARNING_RATES) * SEEDS} agents, {updates * per_update:,} steps each ...")
    began = time.perf_counter()
    rates = jnp.asarray(LEARNING_RATES, jnp.float32)
    ended = np.asarray(sweep(rates, jax.random.split(jax.random.PRNGKey(0), SEEDS)))  # [rates, seeds, updates]
    seconds = time.perf_counter() - began
    last = updates // 4  # the last quarter of training counts; CartPole pays 1 a step
    returns = last * per_update / np.maximum(ended[..., -last:].sum(axis=-1), 1)
    print(f"{'learning rate':>13}  {'return':>6}  {'worst':>6}  {'best':>6}  (mean and range of {SEEDS} seeds)")
    for rate, row in zip(LEARNING_RATES, returns, strict=True):
        bar = "█" * round(row.mean() / 15)
        print(f"{rate:13.1e}  {row.mean():6.0f}  {row.min():6.0f}  {row.max():6.0f}  {bar}")
    print(f"{ended.size * per_update / seconds:,.0f} steps/s in {seconds:.0f} s, compilation included")


if __name__ == "__main__":
    main()
