"""PPO with a loss of your own: the loss is a hyper-parameter, so that a new idea needs no fork.

This one also keeps the policy calm: it adds a penalty on large logits (a common auxiliary term).
    python examples/custom_loss.py --total-timesteps 40000
"""

import argparse

import jax.numpy as jnp

from advantage import PPO, evaluate_policy
from advantage.algorithms import ppo
from advantage.equations.objectives import masked_mean

PENALTY = 1e-3


def calm_loss(config, network, rows):
    """PPO's own loss and the mean squared logit; `rows.weight` is 0 where a row is only padding."""
    total, metrics = ppo.loss(config, network, rows)
    distribution, _ = network.both(rows.obs, rows.action_mask)
    penalty = masked_mean(jnp.sum(jnp.square(distribution.logits), axis=-1), rows.weight)
    return total + PENALTY * penalty, {**metrics, "train/logit_penalty": penalty}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=40_000)
    total_timesteps = parser.parse_args().total_timesteps

    env, settings = "advantage/CartPole-v1", {"n_envs": 8, "n_steps": 32, "batch_size": 256, "gamma": 0.98}
    model = PPO("MlpPolicy", env, loss=calm_loss, learning_rate=1e-3, seed=0, **settings)
    model.learn(total_timesteps, progress_bar=True)
    model.save("runs/calm.zip")

    # A file holds no code: it names the loss, and loading asks for it again.
    model = PPO.load("runs/calm.zip", loss=calm_loss)
    print("return: {:.1f} ± {:.1f}".format(*evaluate_policy(model, "CartPole-v1", 20)))
