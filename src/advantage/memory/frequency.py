"""How often is learned, in SB3's words, and what of it cannot work."""

import math
from typing import Any

from advantage.types import require

MOST_UPDATES, FINEST = 1000, 1000  # per step, and parts of one that are told apart


def frequency(config: Any) -> tuple[int, str]:
    """`train_freq` as `(k, unit)`.

    Raises:
        ValueError: it is neither a positive number nor such a pair.
    """
    given = config.train_freq
    pair = (given, "step") if isinstance(given, int) else given
    fits = isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is int and pair[1] in ("step", "episode")
    if not fits or pair[0] < 1:
        raise ValueError(
            f"train_freq={given!r} is not understood: give a positive number of steps, (k, 'step') or (k, 'episode')"
        )
    return pair


def steps_per_update(config: Any) -> int:
    """T, in steps of the whole vector of environments (the least, where episodes are counted)."""
    count, unit = frequency(config)
    return count if unit == "step" else 1


def episodes_per_update(config: Any) -> int | None:
    """Episodes that make an update, where `train_freq` counts episodes."""
    count, unit = frequency(config)
    return count if unit == "episode" else None


def check_replay(config: Any, num_envs: int) -> None:
    """Raise `ValueError` for settings of replay and of its updates that cannot work."""
    require(config, 1, math.inf, "buffer_size", "batch_size", "n_steps")
    require(config, 0, math.inf, "learning_starts")
    require(config, -1, math.inf, "gradient_steps")
    if config.buffer_size < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than buffer_size={config.buffer_size}:"
            " raise buffer_size or lower batch_size"
        )
    rows = config.buffer_size // num_envs
    if rows < max(config.steps_per_update, config.n_steps):
        raise ValueError(
            f"buffer_size={config.buffer_size} holds {rows} rows for each of"
            f" {num_envs} environments, fewer than one update collects ({config.steps_per_update}) or"
            f" n_steps={config.n_steps} needs: raise buffer_size"
        )
    if config.updates_per_step is not None and not 1 / FINEST <= config.updates_per_step <= MOST_UPDATES:
        raise ValueError(
            f"updates_per_step={config.updates_per_step!r} is out of range: give gradient steps for each environment"
            f" step, between {1 / FINEST} and {MOST_UPDATES}, or None"
        )
