"""Train an agent on an Atari game from its pixels, evaluate it as papers do, and film it.

    pip install "advantage[atari,plot]"
    python examples/atari.py [ALE/Pong-v5] [steps] [FOLDER]

Ten million steps are what papers train for; a few hundred thousand show whether it learns.
"""

import sys
from pathlib import Path

from advantage import DQN, evaluate_policy, human_normalized_score, preset
from advantage.experiments.plots import save_gif
from advantage.training.evaluation import record_frames

game = sys.argv[1] if len(sys.argv) > 1 else "ALE/Pong-v5"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500_000
folder = Path(sys.argv[3] if len(sys.argv) > 3 else ".")

settings = preset("DQN", game).settings | {"learning_starts": min(10_000, steps // 2)}
model = DQN("CnnPolicy", game, seed=0, verbose=1, **settings)
model.learn(steps)
model.save(folder / "atari.zip")

mean, std = evaluate_policy(model, game, n_eval_episodes=3, epsilon=0.05)
human = human_normalized_score(game, mean)
print(f"{game}: {mean:.1f} +- {std:.1f} over 3 games" + ("" if human is None else f", {human:.0%} of a human's"))
frames, score = record_frames(model, game, max_steps=300, seed=1)
save_gif(frames, folder / "atari.gif", 15)
print(f"atari.gif: {score:.0f} points")
