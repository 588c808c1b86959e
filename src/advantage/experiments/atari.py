"""Scores of Atari games as a share of a human's: the table of Wang et al. (2016, https://arxiv.org/abs/1511.06581)."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from advantage.envs.atari import plain_name

SCORES = Path(__file__).with_name("atari_scores.yaml")


def human_normalized_score(env_id: str, score: float) -> float | None:
    """`(score - random) / (human - random)`: 0 is random play, 1 the human of the table.

    Args:
        env_id: a game, as `make_atari` takes it.
        score: a raw score of whole games, or a mean of several.

    Returns:
        None where it is no Atari game, or none of the table's 57.
    """
    table, name = atari_scores(), plain_name(env_id)
    found = next((table[game] for game in table if plain_name(game) == name), None)
    return None if found is None else (float(score) - found[0]) / (found[1] - found[0])


@functools.cache
def atari_scores() -> dict[str, tuple[float, float]]:
    """`{game: (random play, a human)}` of 57 games, by ALE's names; games begin with up to 30 idle frames."""
    return {game: (float(low), float(high)) for game, (low, high) in yaml.safe_load(SCORES.read_text()).items()}
