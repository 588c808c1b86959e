"""A JAX environment of your own: two pure functions and two spaces, and PPO trains it compiled.

    python examples/custom_env.py --total-timesteps 40000
"""

import argparse
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from advantage import PPO, evaluate_policy
from advantage.envs.jax import Transition
from advantage.types import Space, Spec


class State(NamedTuple):
    """Everything the environment remembers."""

    position: jax.Array  # [2], the player
    goal: jax.Array  # [2]
    steps: jax.Array


class Chase:
    """Reach a goal in a square by steps up, down, left and right: -0.1 a step, +1 at the goal."""

    id: ClassVar[str] = "Chase"
    spec: ClassVar[Spec] = Spec(Space("box", (4,), low=-1.0, high=1.0), Space("discrete", n=(4,), start=(0,)))

    def reset(self, key):
        position, goal = jax.random.uniform(key, (2, 2), minval=-1.0, maxval=1.0)
        state = State(position, goal, jnp.int32(0))
        return state, self.observe(state)

    def step(self, state, action, key):
        moves = jnp.array([[0.0, 0.2], [0.0, -0.2], [-0.2, 0.0], [0.2, 0.0]])
        position = jnp.clip(state.position + moves[action], -1.0, 1.0)
        state = State(position, state.goal, state.steps + 1)
        reached = jnp.max(jnp.abs(position - state.goal)) < 0.15
        reward = jnp.where(reached, 1.0, -0.1)
        return state, Transition(self.observe(state), reward, terminated=reached, truncated=state.steps >= 50)

    def observe(self, state):
        return jnp.concatenate([state.position, state.goal])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=40_000)
    total_timesteps = parser.parse_args().total_timesteps

    env = Chase()
    model = PPO("MlpPolicy", env, n_envs=16, n_steps=32, batch_size=128, gamma=0.95, seed=0)
    print("return before training: {:.2f} ± {:.2f}".format(*evaluate_policy(model, env, 100)))
    model.learn(total_timesteps, progress_bar=True)
    print("return after training:  {:.2f} ± {:.2f}".format(*evaluate_policy(model, env, 100)))
