"""A first agent, from nothing to a picture: PPO learns CartPole with three seeds side by side.

    python examples/demo.py [--total-timesteps 100000] [--seeds 3] [--out demo]
"""

import argparse
import os
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np

from advantage import PPO, BaseCallback
from advantage.cli import print_table
from advantage.experiments.plots import learning_curve, save_gif
from advantage.training.evaluation import evaluate_seeds, frames_per_second, record_frames

ENV, SOLVED = "CartPole-v1", 475
# Tuned for CartPole: short rollouts, many passes, and a learning rate that falls to 0.
SETTINGS = {
    "n_envs": 8,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "learning_rate": "lin_1e-3",
    "clip_range": "lin_0.2",
}


class Evaluation(BaseCallback):
    """Ten greedy episodes of every seed after each tenth of training."""

    def __init__(self, total_timesteps: int):
        super().__init__()
        self.every = self.due = max(1, total_timesteps // 10)
        self.steps: list[int] = []
        self.returns: list[np.ndarray] = []  # [seeds] each
        self.seconds = 0.0

    def _on_step(self) -> None:
        if self.num_timesteps >= self.due:
            self._evaluate()

    def _evaluate(self) -> None:
        began = time.perf_counter()
        means = evaluate_seeds(self.model, ENV, 10).mean(axis=1)
        self.steps.append(self.num_timesteps)
        self.returns.append(means)
        self.due = (self.num_timesteps // self.every + 1) * self.every
        self.seconds += time.perf_counter() - began
        seeds = "  ".join(f"{x:5.1f}" for x in means)
        print(f"  {self.num_timesteps:>9,} steps   greedy return {np.mean(means):5.1f}   seeds: {seeds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=100_000, help="environment steps of each seed")
    parser.add_argument("--seeds", type=int, default=3, help="agents trained side by side")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the results")
    args = parser.parse_args()

    print(f"PPO learns {ENV}: {args.seeds} seeds side by side, {args.total_timesteps:,} steps each")
    model = PPO("MlpPolicy", ENV, seeds=args.seeds, seed=0, **SETTINGS)
    evaluation, began = Evaluation(args.total_timesteps), time.perf_counter()
    try:
        model.learn(args.total_timesteps, callback=evaluation, progress_bar=True)
    except KeyboardInterrupt as stopped:
        print(stopped)
    seconds = time.perf_counter() - began - evaluation.seconds

    print()
    final = evaluate_seeds(model, ENV, 20, seed=1)
    speed = f"{model.num_timesteps * args.seeds / seconds:,.0f} steps/s"
    print_table(f"PPO on {ENV}, greedy", list(final), 0, f"{speed}: trained in {seconds:.0f} s")
    save(model, evaluation, model.best_seed(final), args.out)


def save(model: PPO, evaluation: Evaluation, best: int, out: Path) -> None:
    """The model, its learning curve and a film of its best seed; and what to do with them next."""
    model.save(out / "model.zip")
    curve = (evaluation.steps, np.stack(evaluation.returns, axis=1))
    learning_curve({"PPO": curve}, out / "learning_curve.png", f"PPO on {ENV}", {"solved": SOLVED})
    env = gymnasium.make(ENV, render_mode="rgb_array")
    frames, total = record_frames(model, env, max_steps=500, seed_index=best)
    save_gif(frames, out / "agent.gif", frames_per_second(env))
    env.close()
    print(f"\n  {out}/model.zip            {model.num_seeds} agents, ready to play or train on")
    print(f"  {out}/learning_curve.png   return over training")
    print(f"  {out}/agent.gif            seed {best} at play: return {total:.0f}")

    here, sweep = os.path.relpath(Path(sys.executable).parent), Path(__file__).with_name("sweep.py")
    print("\nTry next:")
    print(f"  {here}/advantage evaluate {out}/model.zip --episodes 100")
    print(f"  {here}/advantage watch {out}/model.zip --seed 7 --gif {out}/watch.gif")
    print(f"  {here}/python {os.path.relpath(sweep)}   # 64 agents in one compiled call")


if __name__ == "__main__":
    # Pictures are drawn without a window, and SDL need not say so.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    main()
