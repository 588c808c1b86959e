"""Observations to feature vectors: what SB3 does before the first layer, and an encoder that two networks share."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from advantage.types import Space


class Flatten(eqx.Module):
    """One flat float vector from any observation space; no parameters.

    Box is reshaped (pictures scaled to 0..1), Discrete and MultiDiscrete one-hot, MultiBinary 0 or 1,
    Dict and Tuple concatenated in the order of their sorted names.
    """

    space: Space = eqx.field(static=True)
    normalized_image: bool = eqx.field(static=True, default=False)  # pictures hold 0..1 already

    def __call__(self, obs: PyTree) -> Float[Array, "*batch F"]:
        return flatten(self.space, obs, self.normalized_image)

    @property
    def size(self) -> int:
        """The number of features."""
        return flat_size(self.space)


def flatten(space: Space, obs: PyTree, normalized_image: bool = False) -> Float[Array, "*batch F"]:
    """The feature vector of an observation `[*batch, *space.shape]` (see `Flatten`)."""
    if space.kind in ("dict", "tuple"):
        parts = [obs[name] for name, _ in space.parts] if space.kind == "dict" else list(obs)
        vectors = [flatten(part, x, normalized_image) for (_, part), x in zip(space.parts, parts, strict=True)]
        return jnp.concatenate(vectors, axis=-1)
    batch = obs.shape[: obs.ndim - len(space.shape)]
    if space.kind in ("discrete", "multi_discrete"):
        choices = obs.reshape((*batch, len(space.n))) - jnp.asarray(space.start, obs.dtype).reshape(
            (1,) * len(batch) + (-1,)
        )
        hots = [jax.nn.one_hot(choices[..., i], n, dtype=jnp.float32) for i, n in enumerate(space.n)]
        return jnp.concatenate(hots, axis=-1)
    flat = obs.reshape((*batch, math.prod(space.shape))).astype(jnp.float32)
    return flat / 255.0 if space.is_image() and not normalized_image else flat


def flat_size(space: Space) -> int:
    """The length of `flatten`'s vector."""
    if space.kind in ("dict", "tuple"):
        return sum(flat_size(part) for _, part in space.parts)
    if space.kind in ("discrete", "multi_discrete"):
        return sum(space.n)
    return math.prod(space.shape)


class Fixed(eqx.Module):
    """A part of a network that no optimiser moves, whatever gradient reaches it."""


class Frozen(Fixed):
    """Features that another network learns: no gradient reaches them from here, and no optimiser moves them."""

    encoder: eqx.Module

    def __call__(self, obs: PyTree) -> Float[Array, "*batch F"]:
        # Of the parameters, and so of the features too: observations have no gradient.
        return jax.lax.stop_gradient(self.encoder)(obs)

    @property
    def size(self) -> int:
        """The number of features."""
        return self.encoder.size


def tied(config: Any, actor: Any, critics: Any) -> Any:
    """The actor on the critics' features as they are now, where `share_features_extractor`; else the actor itself.

    One encoder, learned by the critics' loss alone (Yarats et al., 2019, SAC-AE, section 4.1,
    https://arxiv.org/abs/1910.01741).
    """
    return dataclasses.replace(actor, features=Frozen(critics.features)) if config.share_features_extractor else actor
