"""Eight learning rates times eight seeds of PPO: 64 agents trained by one call of one compiled program.

The functions under the familiar face are pure, so `jax.vmap` works on a whole training loop.
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

ENV, NUM_ENVS = make_jax("advantage/CartPole-v1"), 8
RATES, SEEDS = np.geomspace(3e-5, 1e-1, 8, dtype=np.float32), 8
CONFIG = ppo.Config(n_steps=32, batch_size=128, n_epochs=4, gamma=0.98, gae_lambda=0.8)


def train(learning_rate, key, updates):
    """One agent from nothing: `(episodes ended, their lengths' sum)` of each update `[updates, 2]`."""
    config = dataclasses.replace(CONFIG, learning_rate=learning_rate)
    init_key, env_key, key = jax.random.split(key, 3)

    def step(carried, key):
        actor, env_state, observed, length = carried
        act_key, env_key = jax.random.split(key)
        action, _ = ppo.act(config, actor, (), observed, act_key, explore=True)
        env_state, after = step_envs(ENV, env_state, observed, ppo.to_env(ENV.spec.action, action), env_key)
        row = (*observed, action, after.reward, after.terminated, after.truncated)
        ended, length = after.terminated | after.truncated, length + 1
        carried = (actor, env_state, after.observed, jnp.where(ended, 0, length))
        return carried, ((*row, jnp.ones(NUM_ENVS, bool), after.final_obs), (ended, ended * length))

    def update(carried, key):
        state, *world = carried
        start = (ppo.actor(config, state), *world)
        (_, *world), (rows, episodes) = jax.lax.scan(step, start, jax.random.split(key, config.n_steps))
        state, _, _ = ppo.update(config, state, (), Chunk(*rows, last_obs=world[1].obs))
        return (state, *world), jnp.stack([jnp.sum(x) for x in episodes])

    world = (*reset_envs(ENV, jax.random.split(env_key, NUM_ENVS)), jnp.zeros(NUM_ENVS, jnp.int32))
    agent = ppo.init(config, ENV.spec, init_key)
    return jax.lax.scan(update, (agent, *world), jax.random.split(key, updates))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=25_600, help="of each agent")
    updates = max(8, parser.parse_args().total_timesteps // (CONFIG.n_steps * NUM_ENVS))
    steps = updates * CONFIG.n_steps * NUM_ENVS
    over_seeds = jax.vmap(lambda rate, key: train(rate, key, updates), in_axes=(None, 0))
    sweep = jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))
    print(f"{RATES.size * SEEDS} agents, {steps:,} steps each: compiling and training ...", flush=True)
    began = time.perf_counter()
    keys = jax.random.split(jax.random.PRNGKey(0), SEEDS)
    episodes = np.asarray(sweep(RATES, keys))  # [rates, seeds, updates, 2]
    seconds = time.perf_counter() - began
    ended, lengths = np.moveaxis(episodes[:, :, -updates // 4 :].sum(axis=2), -1, 0)  # the last quarter
    returns = lengths / np.maximum(ended, 1)  # CartPole pays 1 a step
    print(f"{'learning rate':>13} {'return':>7} {'worst':>6} {'best':>6}   of {SEEDS} seeds")
    for rate, row in zip(RATES, returns, strict=True):
        bar = "█" * round(row.mean() / 15)
        print(f"{rate:13.1e} {row.mean():7.0f} {row.min():6.0f} {row.max():6.0f}   {bar}")
    print(f"{RATES.size * SEEDS * steps / seconds:,.0f} steps/s, {seconds:.0f} s with compilation")


if __name__ == "__main__":
    main()
