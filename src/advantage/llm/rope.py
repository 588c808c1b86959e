"""Rotary position embeddings (Su et al., 2021, https://arxiv.org/abs/2104.09864), and how they reach beyond a trained length."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

KINDS = ("default", "linear", "llama3", "yarn")


class Rope(NamedTuple):
    """How fast each pair of a head's numbers turns with the position; fields beside `theta` under Hugging Face's names."""

    theta: float = 10_000.0
    rope_type: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn; None: by the factor
    truncate: bool = True  # yarn


def rotations(
    rope: Rope, head_dim: int, position: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 h"], Float[Array, "B T 1 h"]]:
    """Cosines and sines of the angles of each position."""
    inverse, scale = frequencies(rope, head_dim)
    angle = position.astype(jnp.float32)[..., None, None] * jnp.asarray(inverse)[None, None, None]
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotated(x: Float[Array, "B T N H"], cos: Float[Array, "B T 1 h"], sin: Float[Array, "B T 1 h"]) -> Float[Array, "B T N H"]:
    """Each head's pairs `(x_i, x_{i + H/2})` turned by their angles."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def frequencies(rope: Rope, head_dim: int) -> tuple[Float[np.ndarray, " h"], float]:
    """`(radians a token, what cosines and sines are multiplied by)`.

    Raises:
        ValueError: a `rope_type` that isn't known.
    """
    inverse = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.rope_type == "default":
        scaled, scale = inverse, 1.0
    elif rope.rope_type == "linear":
        scaled, scale = inverse / rope.factor, 1.0  # Chen et al. (2023), https://arxiv.org/abs/2306.15595
    elif rope.rope_type == "llama3":
        scaled, scale = _llama3(rope, inverse), 1.0
    elif rope.rope_type == "yarn":
        scaled, scale = _yarn(rope, head_dim, inverse)
    else:
        raise ValueError(f"rope_type={rope.rope_type!r} is not supported: {', '.join(KINDS)} are")
    return scaled.astype(np.float32), scale


def _llama3(rope: Rope, inverse: np.ndarray) -> np.ndarray:
    """Slow pairs slowed by the factor, fast ones kept, a ramp between (Grattafiori et al., 2024).

    https://arxiv.org/abs/2407.21783
    """
    turns = rope.original_max_position_embeddings * inverse / (2 * math.pi)  # within the trained length
    kept = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0, 1)
    return (1 - kept) * inverse / rope.factor + kept * inverse


def _yarn(rope: Rope, head_dim: int, inverse: np.ndarray) -> tuple[np.ndarray, float]:
    """The same by number of turns, with sharper attention (Peng et al., 2023, section 3, https://arxiv.org/abs/2309.00071)."""

    def pair_of(turns: float) -> float:
        """Which pair makes so many turns within the trained length."""
        return head_dim * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    slowed = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return inverse / rope.factor * slowed + inverse * (1 - slowed), scale
