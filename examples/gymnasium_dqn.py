"""The snippet that Stable-Baselines3 users know, with another import: DQN on a Gymnasium environment.

    python examples/gymnasium_dqn.py --total-timesteps 50000
"""

import argparse

import gymnasium as gym

from advantage import DQN, evaluate_policy

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=50_000)
    total_timesteps = parser.parse_args().total_timesteps

    env = gym.make("CartPole-v1")
    model = DQN(
        "MlpPolicy",
        env,
        learning_rate=2.3e-3,
        batch_size=64,
        buffer_size=100_000,
        learning_starts=1000,
        gamma=0.99,
        target_update_interval=10,
        train_freq=256,
        gradient_steps=128,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        policy_kwargs={"net_arch": [256, 256]},
        seed=0,
    )
    model.learn(total_timesteps, log_interval=50, progress_bar=True)
    model.save("runs/dqn_cartpole")

    model = DQN.load("runs/dqn_cartpole", env=env)
    mean, std = evaluate_policy(model, env, n_eval_episodes=20)
    print(f"return: {mean:.1f} ± {std:.1f}")

    obs, _ = env.reset()
    for _ in range(100):
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
