"""What is done where something is NaN or infinite: it is named, and an agent never learns from it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from advantage.envs.check import first_bad_row
from advantage.envs.vector import EnvironmentFailure


def bad_row(rollout: Any, seeds: Sequence[int], steps: np.ndarray) -> EnvironmentFailure | None:
    """The first row `[S, T, N]` of a rollout that is not finite; `steps [S]` were taken at its end."""
    for s, seed in enumerate(seeds):
        chunk = jax.tree.map(lambda x, s=s: x[s], rollout).chunk(())
        if (found := first_bad_row(chunk)) is not None:
            taken, n, name = found
            step = int(steps[s] - chunk.valid.sum()) + taken
            return EnvironmentFailure(
                f"env {n} of seed {seed} gave {'a' if name == 'reward' else 'an'} {name} that is NaN or infinite, at"
                f" step {step:,}: the agent is as before that step's update; mend the environment"
            )
    return None
