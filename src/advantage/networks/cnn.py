"""Networks for pictures: the CNN of DQN's Nature paper and IMPALA's residual network.

A picture is `[height, width, channels]` or `[channels, height, width]`; as in SB3 channels are first where that axis is
the shortest. Both orders give one function: layers see channels last.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from advantage.equations.distributions import Key
from advantage.networks.convolution import convolve
from advantage.networks.initialisers import Layers, Sizes, orthogonal_apart, uniform_fan_in
from advantage.networks.mlp import Linear
from advantage.types import Space

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Filters, kernel and stride of each convolution of Mnih et al. (2015)."""

ROWS = 1024
"""Pictures that pass a network at once: a whole rollout's layers would take gigabytes."""


class Conv(eqx.Module):
    """A convolution over `[N, H, W, I]` without padding; the kernel is a multiple of the stride."""

    weight: Float[Array, "k k I O"]
    bias: Float[Array, " O"]
    stride: int = eqx.field(static=True)

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N P Q O"]:
        return convolve(x, self.weight, self.stride) + self.bias.reshape(1, 1, 1, -1)


class NatureCNN(eqx.Module):
    """Three convolutions and a dense layer, ReLU after each (Mnih et al., 2015, https://doi.org/10.1038/nature14236).

    `[*batch, *picture]` becomes `[*batch, features_dim]`. SB3's `NatureCNN`, with its arguments. With `layers` it has
    other convolutions: `[(32, 5, 5), (64, 5, 5)]` with 256 features are those of data-efficient Rainbow (van Hasselt
    et al., 2019, https://arxiv.org/abs/1906.05243), a sixth of the arithmetic at 84 x 84 pixels.
    """

    convolutions: tuple[Conv, ...]
    dense: Linear
    space: Space = eqx.field(static=True)
    normalized_image: bool = eqx.field(static=True)

    def __init__(
        self,
        space: Space,
        key: Key,
        features_dim: int = 512,
        normalized_image: bool = False,
        ortho_init: bool = False,
        layers: Any = NATURE,
    ):
        """Torch's default initialisation, or with `ortho_init` orthogonal weights of gain sqrt(2).

        `layers` has filters, kernel and stride of each convolution; a kernel is a multiple of its stride.

        Raises:
            ValueError: `space` holds no pictures (8-bit ones; with `normalized_image` any `[H, W, C]`), or too small
                ones, or `layers` are none.
        """
        *sides, inputs = picture_shape(space, "NatureCNN", normalized_image)
        form = _checked(layers)
        _require_sides(sides, form)
        channels = [inputs, *(filters for filters, _, _ in form)]
        for _, kernel, stride in form:
            sides = [window(side, kernel, stride) for side in sides]
        sizes = [(k**2 * inputs, filters) for inputs, (filters, k, _) in zip(channels[:-1], form, strict=True)]
        flat = math.prod(sides) * channels[-1]
        *made, dense = _initial(key, [*sizes, (flat, _positive(features_dim))], ortho_init)
        self.convolutions = tuple(
            Conv(weight.reshape(kernel, kernel, -1, filters), bias, stride)
            for (filters, kernel, stride), (weight, bias) in zip(form, made, strict=True)
        )
        self.dense, self.space, self.normalized_image = Linear(*dense), space, normalized_image

    @property
    def size(self) -> int:
        """The number of features."""
        return self.dense.bias.shape[-1]

    def __call__(self, obs: Shaped[Array, "*batch a b c"]) -> Float[Array, "*batch F"]:
        return _in_parts(self._features, self.space, obs)

    def _features(self, obs: Shaped[Array, "N a b c"]) -> Float[Array, "N F"]:
        x = pixels(self.space, obs, self.normalized_image)
        for layer in self.convolutions:
            x = jax.nn.relu(layer(x))
        return jax.nn.relu(self.dense(x.reshape(len(x), -1)))


class Section(eqx.Module):
    """A convolution, a pool that halves each side, and residual blocks of two convolutions."""

    first: Conv
    residual: tuple[tuple[Conv, Conv], ...]

    def __call__(self, x: Float[Array, "N H W I"]) -> Float[Array, "N P Q O"]:
        x = _halved(_same(self.first, x))
        for one, two in self.residual:
            x = x + _same(two, jax.nn.relu(_same(one, jax.nn.relu(x))))
        return x


class ImpalaCNN(eqx.Module):
    """Sections of residual blocks and a dense layer (Espeholt et al., 2018, figure 3, https://arxiv.org/abs/1802.01561).

    `[*batch, *picture]` becomes `[*batch, features_dim]`; pictures of any size. About six times the arithmetic of
    `NatureCNN` at 84 x 84 pixels.
    """

    sections: tuple[Section, ...]
    dense: Linear
    space: Space = eqx.field(static=True)
    normalized_image: bool = eqx.field(static=True)

    def __init__(
        self,
        space: Space,
        key: Key,
        features_dim: int = 256,
        channels: Sequence[int] = (16, 32, 32),
        blocks: int = 2,
        normalized_image: bool = False,
        ortho_init: bool = False,
    ):
        """`channels` of each section, of `blocks` residual blocks; initialisation and errors as of `NatureCNN`."""
        height, width, inputs = picture_shape(space, "ImpalaCNN", normalized_image)
        pairs, count = [], 1 + 2 * blocks
        for outputs in map(_positive, channels):
            pairs += [(inputs, outputs)] + [(outputs, outputs)] * (count - 1)
            inputs = outputs
            height, width = -(-height // 2), -(-width // 2)
        sizes = [(9 * inputs, outputs) for inputs, outputs in pairs]
        flat = height * width * inputs
        *layers, dense = _initial(key, [*sizes, (flat, _positive(features_dim))], ortho_init)
        made = [Conv(w.reshape(3, 3, *pair), b, 1) for pair, (w, b) in zip(pairs, layers, strict=True)]
        groups = [made[i : i + count] for i in range(0, len(made), count)]
        self.sections = tuple(Section(g[0], tuple(zip(g[1::2], g[2::2], strict=True))) for g in groups)
        self.dense, self.space, self.normalized_image = Linear(*dense), space, normalized_image

    @property
    def size(self) -> int:
        """The number of features."""
        return self.dense.bias.shape[-1]

    def __call__(self, obs: Shaped[Array, "*batch a b c"]) -> Float[Array, "*batch F"]:
        return _in_parts(self._features, self.space, obs)

    def _features(self, obs: Shaped[Array, "N a b c"]) -> Float[Array, "N F"]:
        x = pixels(self.space, obs, self.normalized_image)
        for section in self.sections:
            x = section(x)
        return jax.nn.relu(self.dense(jax.nn.relu(x).reshape(len(x), -1)))


def window(length: int, kernel: int, stride: int) -> int:
    """How many places a kernel has along a side."""
    return (length - kernel) // stride + 1


def _checked(layers: Any) -> list[tuple[int, int, int]]:
    """`(filters, kernel, stride)` of each.

    Raises:
        ValueError: these are no convolutions.
    """
    try:
        given = [(filters, kernel, stride) for filters, kernel, stride in layers]
    except (TypeError, ValueError):
        given = []
    form = [(_positive(filters), _positive(kernel), _positive(stride)) for filters, kernel, stride in given]
    if not form or any(kernel % stride for _, kernel, stride in form):
        raise ValueError(_NO_LAYERS.format(layers))
    return form


_NO_LAYERS = (
    "features_extractor_kwargs: layers={!r} has to hold (filters, kernel, stride) of each convolution, with kernels that"
    " are multiples of their strides, such as [(32, 5, 5), (64, 5, 5)]"
)


def _require_sides(sides: Sequence[int], form: Sequence[tuple[int, int, int]]) -> None:
    """Raises a ValueError if pictures of these sides are too small for the convolutions."""
    least = 1
    for _, kernel, stride in reversed(form):
        least = (least - 1) * stride + kernel
    if min(sides) < least:
        raise ValueError(
            f"NatureCNN needs pictures of at least {least} x {least} pixels, and these have {sides[0]} x {sides[1]}:"
            " enlarge them (gymnasium.wrappers.ResizeObservation), or use"
            " policy_kwargs={'features_extractor_class': 'ImpalaCNN'}, for MultiInputPolicy"
            " policy_kwargs={'features_extractor_kwargs': {'cnn': 'ImpalaCNN'}}"
        )


def channels_first(shape: tuple[int, ...]) -> bool:
    """Whether a picture is `[channels, height, width]`: SB3's guess, by the first of the shortest axes."""
    return int(np.argmin(shape)) == 0


def picture_shape(space: Space, name: str, normalized_image: bool) -> tuple[int, int, int]:
    """`(height, width, channels)`.

    Raises:
        ValueError: it holds no pictures that the network `name` takes, and what to use instead.
    """
    if not is_picture(space, normalized_image):
        if space.parts:
            remedy = "use policy='MultiInputPolicy'"
        elif space.kind == "box" and len(space.shape) == 3:
            remedy = (
                "for pictures that are scaled already set policy_kwargs={'normalize_images': False}, or use 'MlpPolicy'"
            )
        elif space.kind == "box" and len(space.shape) == 2 and space.dtype == "uint8":
            remedy = "give each picture a third axis, of one channel (gymnasium.wrappers.ReshapeObservation)"
        else:
            remedy = "use policy='MlpPolicy'"
        raise ValueError(
            f"{name}, the network of pictures behind policy='CnnPolicy', takes [height, width, channels] or [channels,"
            f" height, width] in uint8 from 0 to 255, not {space.to_gymnasium()}: {remedy}"
        )
    shape = space.shape
    return (shape[1], shape[2], shape[0]) if channels_first(shape) else shape


def is_picture(space: Space, normalized_image: bool = False) -> bool:
    """Whether a CNN takes it: 8-bit pictures, or with `normalized_image` any Box of three axes, as in SB3."""
    return space.is_image() or (normalized_image and space.kind == "box" and len(space.shape) == 3)


def pixels(space: Space, obs: Shaped[Array, "N a b c"], normalized_image: bool) -> Float[Array, "N H W C"]:
    """Channels last, and 0..255 scaled to 0..1 unless that is done already."""
    x = (obs.transpose(0, 2, 3, 1) if channels_first(space.shape) else obs).astype(jnp.float32)
    return x if normalized_image else x / 255.0


def _in_parts(
    network: Callable[[Array], Array], space: Space, obs: Shaped[Array, "*batch a b c"]
) -> Float[Array, "*batch F"]:
    """`network([N, *picture])` over any leading axes, at most `ROWS` pictures at once."""
    batch, flat = obs.shape[:-3], obs.reshape(-1, *space.shape)
    count, parts = len(flat), -(-len(flat) // ROWS)
    if parts <= 1:
        return network(flat).reshape(*batch, -1)
    flat = jnp.pad(flat, ((0, parts * ROWS - count), (0, 0), (0, 0), (0, 0)))
    # Each part anew for its gradient: what lies between its layers would otherwise be kept for all of them.
    # A function of its own, since a method with traced parameters cannot be hashed.
    anew = jax.checkpoint(lambda part: network(part))
    features = jax.lax.map(anew, flat.reshape(parts, ROWS, *space.shape))
    return features.reshape(parts * ROWS, -1)[:count].reshape(*batch, -1)


def _same(layer: Conv, x: Float[Array, "N H W I"]) -> Float[Array, "N H W O"]:
    """A convolution of stride 1 over a picture with a border of zeros, so that sides stay as long."""
    border = layer.weight.shape[0] // 2
    return layer(jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0))))


def _halved(x: Float[Array, "N H W C"]) -> Float[Array, "N P Q C"]:
    """The largest value of each 3 x 3 window, at every second place; slices since XLA's own has a slow gradient on a CPU."""
    for axis in (1, 2):
        places = -(-x.shape[axis] // 2)
        border = 2 * places + 1 - x.shape[axis]  # 1 or 2
        widths = [(0, 0)] * 4
        widths[axis] = (border // 2, border - border // 2)
        x = jnp.pad(x, widths, constant_values=-jnp.inf)
        first, *others = [jax.lax.slice_in_dim(x, i, i + 2 * places - 1, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, others, first)
    return x


def _initial(key: Key, sizes: Sizes, ortho_init: bool) -> Layers:
    return (orthogonal_apart if ortho_init else uniform_fan_in)(key, sizes, [math.sqrt(2.0)] * len(sizes))


def _positive(count: Any) -> int:
    try:
        fits = operator.index(count) >= 1
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"features_extractor_kwargs: {count!r} has to be a whole number of at least 1")
    return operator.index(count)
