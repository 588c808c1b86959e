"""Optimisers as functions of the learning rate, under the names SB3 users write."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree, Shaped

from advantage.equations.objectives import clip_by_global_norm
from advantage.equations.returns import Scalar
from advantage.networks.features import Fixed

Optimizer = Callable[[Scalar], optax.GradientTransformation]

# torch's names and defaults where they differ from optax's.
KNOWN = {
    "adam": (optax.adam, {"eps": 1e-8}),
    "adamw": (optax.adamw, {"weight_decay": 1e-2}),
    "rmsprop": (optax.rmsprop, {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}),
    "rmsproptflike": (optax.rmsprop, {"decay": 0.99, "eps": 1e-8, "initial_scale": 1.0}),
    "sgd": (optax.sgd, {}),
}
TORCH_WORDS = {"alpha": "decay"}


def adam(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam with torch's epsilon of 1e-8 (Kingma & Ba, 2015; https://arxiv.org/abs/1412.6980)."""
    return optax.adam(learning_rate, eps=1e-8)


def adam_ppo(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam with the epsilon of 1e-5 that on-policy implementations use."""
    return optax.adam(learning_rate, eps=1e-5)


def adam_qrdqn(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam with an epsilon of 0.01 / 32, as in the paper's appendix and SB3-contrib for batches of 32 (Dabney et al., 2018)."""
    return optax.adam(learning_rate, eps=0.01 / 32)


def adam_rainbow(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam with the epsilon of 1.5e-4 that Rainbow uses (Hessel et al., 2018, table 1; https://arxiv.org/abs/1710.02298)."""
    return optax.adam(learning_rate, eps=1.5e-4)


def adam_crossq(learning_rate: Scalar) -> optax.GradientTransformation:
    """Adam that forgets gradients' means sooner, as CrossQ does (Bhatt et al., 2024; https://arxiv.org/abs/1902.05605)."""
    return optax.adam(learning_rate, b1=0.5, eps=1e-8)


@functools.cache
def named(name: str, options: tuple[tuple[str, object], ...] = ()) -> Optimizer:
    """An optimiser by its torch or optax name, with torch's or optax's options.

    Cached, so that equal choices are one object and share compiled programs; its `label` goes into
    model files.

    Raises:
        ValueError: no such optimiser, or it has no such option.
    """
    if name not in KNOWN:
        raise ValueError(f"optimizer_class {name!r} is not known: choose from {sorted(KNOWN)}, or give a function")
    make, defaults = KNOWN[name]
    kwargs = {**defaults, **{TORCH_WORDS.get(key, key): value for key, value in options}}
    if "betas" in kwargs:
        kwargs["b1"], kwargs["b2"] = kwargs.pop("betas")
    if name != "adamw" and not kwargs.get("weight_decay", True):
        del kwargs["weight_decay"]  # torch's default of none, written out

    def optimizer(learning_rate: Scalar) -> optax.GradientTransformation:
        return make(learning_rate, **kwargs)

    try:
        optimizer(1e-3)
    except TypeError as error:
        raise ValueError(f"optimizer_kwargs {dict(options)} do not fit {name}: {error}") from None
    optimizer.label = ("optimizer", name, options)
    return optimizer


def init(optimizer: Optimizer, network: PyTree) -> PyTree:
    """An optimiser's state for `descend`."""
    return optimizer(0.0).init(ravel_pytree(_learned(network)[0])[0])


def descend(
    optimizer: Optimizer,
    learning_rate: Scalar,
    max_grad_norm: Scalar | None,
    network: PyTree,
    gradients: PyTree,
    state: PyTree,
    wanted: Bool[Array, ""] | bool = True,
) -> tuple[PyTree, PyTree, Bool[Array, ""]]:
    """One step downhill, clipped unless `max_grad_norm` is None: `(network, state, applied)`.

    The identity where it is not `wanted`, or a gradient is not finite.

    Parameters pass the optimiser as one vector `[P]`: a handful of kernels instead of a handful for each
    layer, which compiles 0.6 s faster and runs 5% faster for two layers of 64.
    """
    learned, frozen = _learned(network)
    flat, unravel = ravel_pytree(learned)
    gradient, norm = clip_by_global_norm(ravel_pytree(_learned(gradients)[0])[0], jnp.inf if max_grad_norm is None else max_grad_norm)
    updates, new_state = optimizer(learning_rate).update(gradient, state, flat)
    applied = jnp.isfinite(norm) & wanted

    def keep(new: Shaped[Array, "..."], old: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        return jnp.where(applied, new, old)

    moved = eqx.combine(unravel(keep(flat + updates, flat)), frozen)
    return moved, jax.tree.map(keep, new_state, state), applied


def _learned(network: PyTree) -> tuple[PyTree, PyTree]:
    """What is learned of a network, and what is `Fixed`."""

    def frozen(part: PyTree) -> bool:
        return isinstance(part, Fixed)

    return eqx.partition(network, jax.tree.map(lambda part: not frozen(part), network, is_leaf=frozen))
