"""Dense layers and the multi-layer perceptron."""

from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from advantage.equations.distributions import Key
from advantage.networks.initialisers import orthogonal, uniform_fan_in

Activation = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Linear(eqx.Module):
    """`x @ weight + bias`."""

    weight: Float[Array, "I O"]
    bias: Float[Array, " O"]

    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        product = x @ self.weight
        # Written out since ranks are never promoted silently.
        return product + self.bias.reshape((1,) * (product.ndim - 1) + (-1,))


class MLP(eqx.Module):
    """Dense layers, each followed by the activation. No layers: the input itself."""

    layers: tuple[Linear, ...]
    activation: Activation = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch I"], key: Key | None = None) -> Float[Array, "*batch O"]:
        """`key` is for networks that draw masks."""
        for layer in self.layers:
            x = self.activation(layer(x))
        return x


def dense_networks(
    key: Key,
    networks: Sequence[tuple[int, Sequence[int]]],
    outputs: Sequence[tuple[int, int, float]],
    activation: Activation,
    ortho_init: bool,
) -> tuple[list[MLP], list[Linear]]:
    """MLPs and output layers, initialised together.

    Args:
        networks: `(inputs, layer widths)` of each MLP.
        outputs: `(inputs, outputs, gain)` of each output layer.
        ortho_init: orthogonal weights, hidden layers with gain sqrt(2) and output layers with their own
            (SB3's actor-critic), or torch's default (SB3's Q-networks).
    """
    hidden = [list(zip([inputs, *widths], widths, strict=False)) for inputs, widths in networks]
    sizes = [size for sizes in hidden for size in sizes] + [(inputs, count) for inputs, count, _ in outputs]
    gains = [float(np.sqrt(2))] * (len(sizes) - len(outputs)) + [gain for *_, gain in outputs]
    initialise = orthogonal if ortho_init else uniform_fan_in
    layers = iter([Linear(weight, bias) for weight, bias in initialise(key, sizes, gains)])
    mlps = [MLP(tuple(next(layers) for _ in sizes), activation) for sizes in hidden]
    return mlps, list(layers)


def dense_layers(
    key: Key, inputs: int, net_arch: tuple[int, ...], outputs: int, activation: Activation
) -> tuple[MLP, Linear]:
    """Hidden layers and an output layer, from torch's default initialisation."""
    (hidden,), (head,) = dense_networks(
        key, [(inputs, net_arch)], [((inputs, *net_arch)[-1], outputs, 1.0)], activation, ortho_init=False
    )
    return hidden, head
