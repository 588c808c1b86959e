"""SB3's `policy_kwargs` in this library's terms: `net_arch` in all its forms, functions by name or torch class."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from advantage.networks import optimisers
from advantage.networks.actor_critic import Architecture
from advantage.networks.continuous import Widths
from advantage.networks.extractors import extractor_of
from advantage.networks.mlp import Activation
from advantage.networks.recurrent import Recurrence, recurrence

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
}

# `Config` fields that are words of `policy_kwargs`; others are arguments of the model itself.
WORDS = (
    "net_arch", "activation_fn", "ortho_init", "log_std_init", "full_std", "use_expln", "n_critics", "clip_mean",
    "n_quantiles", "batch_norm_momentum", "batch_norm_eps", "renorm_warmup_steps",
    "block", "layer_norm", "dropout_rate", "share_features_extractor",
)  # fmt: skip

# Words that need nothing done, with the only value that means so.
NEUTRAL = {"share_features_extractor": True, "squash_output": False}
LSTM_NEUTRAL = {"shared_lstm": False, "enable_critic_lstm": True, "lstm_kwargs": None}

EXTRACTOR_WORDS = ("features_extractor_class", "features_extractor_kwargs", "normalize_images")


def network_fields(config_class: type, policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`Config` fields from SB3's `policy_kwargs`.

    Raises:
        TypeError: an unknown word; the nearest is named.
        ValueError: a value that cannot be used.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    given, fields = dict(policy_kwargs), {}
    for name, only in (NEUTRAL | (LSTM_NEUTRAL if "recurrence" in defaults else {})).items():
        if name not in defaults and given.pop(name, only) != only:
            raise ValueError(f"policy_kwargs[{name!r}] has to be {only} here: leave it out")
    if "batch_norm_momentum" in defaults and not given.pop("batch_norm", True):
        raise ValueError("policy_kwargs['batch_norm'] has to be True for CrossQ: it takes the targets' place; use SAC")
    chosen, options = given.pop("features_extractor_class", None), given.pop("features_extractor_kwargs", None) or {}
    ortho_init = given.get("ortho_init", defaults.get("ortho_init", False))
    extractor = extractor_of(chosen, options, given.pop("normalize_images", True), ortho_init)
    if extractor is not None:
        fields["features_extractor"] = extractor
    if "recurrence" in defaults and (words := {name: given.pop(name) for name in Recurrence._fields if name in given}):
        fields["recurrence"] = recurrence(words)
    optimizer, options = given.pop("optimizer_class", None), given.pop("optimizer_kwargs", {})
    if optimizer is not None or options:
        fields["optimizer"] = _optimizer("Adam" if optimizer is None else optimizer, options)
    for name, value in given.items():
        if name not in WORDS or name not in defaults:
            known = [word for word in WORDS if word in defaults]
            known += Recurrence._fields if "recurrence" in defaults else ()
            near = difflib.get_close_matches(name, [*known, *NEUTRAL, *EXTRACTOR_WORDS], n=1)
            raise TypeError(f"policy_kwargs has no {name!r} here" + (f": did you mean {near[0]!r}?" if near else ""))
        if name == "net_arch":
            value = _net_arch(defaults[name], value)
        elif name == "activation_fn":
            value = activation(value)
        fields[name] = value
    return fields


def _net_arch(default: Any, net_arch: Any) -> Any:
    """`net_arch` in the form that the default has."""
    forms = {Architecture: architecture, Widths: actor_and_critics}
    return forms.get(type(default), widths)(net_arch)


def actor_and_critics(net_arch: Any) -> Widths:
    """`[256, 256]`, or `dict(pi=[256, 256], qf=[400, 300])`.

    Raises:
        ValueError: none of these forms.
    """
    if isinstance(net_arch, Widths):
        return net_arch
    if not isinstance(net_arch, Mapping):
        return Widths(widths(net_arch), widths(net_arch))
    if set(net_arch) != {"pi", "qf"}:
        raise ValueError(f"net_arch has keys {sorted(net_arch)}: expected 'pi' (actor) and 'qf' (critics)")
    return Widths(widths(net_arch["pi"]), widths(net_arch["qf"]))


def architecture(net_arch: Any) -> Architecture:
    """`[64, 64]`, `dict(pi=[64], vf=[64])`, `[dict(pi=..., vf=...)]` or `[64, dict(pi=..., vf=...)]` (shared first).

    Raises:
        ValueError: none of these forms.
    """
    if isinstance(net_arch, Architecture):
        return net_arch
    if not isinstance(net_arch, Iterable):
        return Architecture((), widths(net_arch), ())  # which says what is wrong
    parts = [net_arch] if isinstance(net_arch, Mapping) else list(net_arch)
    split = parts.pop() if parts and isinstance(parts[-1], Mapping) else None
    if split is None:
        return Architecture((), widths(parts), widths(parts))
    unknown = set(split) - {"pi", "vf"}
    if unknown:
        raise ValueError(f"net_arch has keys {sorted(unknown)}: expected 'pi' and 'vf'")
    return Architecture(widths(parts), widths(split.get("pi", ())), widths(split.get("vf", ())))


def widths(net_arch: Any) -> tuple[int, ...]:
    """Layer widths as a tuple.

    Raises:
        ValueError: something is no positive integer.
    """
    try:
        result = tuple(operator.index(w) for w in net_arch)
    except TypeError:
        result = (0,)
    if any(w < 1 for w in result):
        raise ValueError(f"net_arch={net_arch!r} is not understood: give layer widths such as [64, 64]")
    return result


def activation(function: Any) -> Activation:
    """An activation from our function, its name, or a torch class such as `torch.nn.Tanh`.

    Raises:
        ValueError: an unknown name or class.
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    known = {key.replace("_", ""): value for key, value in ACTIVATIONS.items()}
    # torch is never imported: its classes are known by their module's name.
    if isinstance(function, str) or getattr(function, "__module__", "").startswith("torch."):
        if name.lower().replace("_", "") not in known:
            raise ValueError(f"activation_fn={name!r} is not known: choose from {sorted(ACTIVATIONS)} or give a function")
        return known[name.lower().replace("_", "")]
    if not callable(function):
        raise ValueError(f"activation_fn={function!r} is not callable: choose from {sorted(ACTIVATIONS)} or give a function")
    return function


def _optimizer(optimizer: Any, options: Mapping[str, Any]) -> optimisers.Optimizer:
    if isinstance(optimizer, str) or getattr(optimizer, "__module__", "").startswith(("torch.", "stable_baselines3.")):
        name = optimizer if isinstance(optimizer, str) else optimizer.__name__
        return optimisers.named(name.lower(), tuple(sorted(options.items())))
    if not callable(optimizer):
        raise ValueError(f"optimizer_class={optimizer!r} is not callable: give optax.adam, 'adam' or a torch class")
    return functools.partial(optimizer, **options)
