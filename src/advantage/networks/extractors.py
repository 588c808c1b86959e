"""Feature extractors by SB3's names, and what the names of policies mean for observations."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from advantage.equations.distributions import Key
from advantage.networks.actor_critic import Architecture
from advantage.networks.cnn import ImpalaCNN, NatureCNN, is_picture
from advantage.networks.continuous import Widths
from advantage.networks.features import Flatten
from advantage.types import Space

Extractor = Callable[[Space, Key], eqx.Module]
"""Makes a module with `size` that maps observations `[*batch, ...]` to features `[*batch, size]`."""

CNNS = {"NatureCNN": NatureCNN, "ImpalaCNN": ImpalaCNN}
# What each policy sees observations through; None: flattened.
POLICIES = {
    "CnnPolicy": "NatureCNN", "CnnLstmPolicy": "NatureCNN", "MultiInputPolicy": "CombinedExtractor", "MultiInputLstmPolicy": "CombinedExtractor",
}  # fmt: skip
# SB3's widths behind a CNN, where they are not those behind other features.
BEHIND_CNN = {
    Architecture(): Architecture((), (), ()),
    (64, 64): (),
    Widths((400, 300), (400, 300)): Widths((256, 256), (256, 256)),
}
TORCH = ("torch", "stable_baselines3", "sb3_contrib")


class CombinedExtractor(eqx.Module):
    """Pictures of a Dict or Tuple, nested to any depth, through a CNN each, everything else flattened, concatenated.

    Parts stand in the order of their sorted names. SB3's `CombinedExtractor`, with its arguments.
    """

    parts: tuple[eqx.Module, ...]
    space: Space = eqx.field(static=True)

    def __init__(
        self,
        space: Space,
        key: Key,
        cnn_output_dim: int = 256,
        cnn: str = "NatureCNN",
        normalized_image: bool = False,
        ortho_init: bool = False,
    ):
        """`cnn` is `"NatureCNN"` or `"ImpalaCNN"`, with `cnn_output_dim` features of each picture.

        Raises:
            ValueError: no such CNN, or a picture is too small for it; its name is named.
        """
        if cnn not in CNNS:
            raise ValueError(f"features_extractor_kwargs: cnn={cnn!r} is not known: choose from {', '.join(CNNS)}")
        words = {"normalized_image": normalized_image, "ortho_init": ortho_init}
        parts, members = [], space.parts or (("", space),)
        for (name, part), part_key in zip(members, jax.random.split(key, len(members)), strict=True):
            if part.kind in ("dict", "tuple"):
                parts.append(CombinedExtractor(part, part_key, cnn_output_dim, cnn, **words))
            elif is_picture(part, normalized_image):
                try:
                    parts.append(CNNS[cnn](part, part_key, cnn_output_dim, **words))
                except ValueError as error:
                    raise ValueError(f"observation {name!r}: {error}" if name else str(error)) from None
            else:
                parts.append(Flatten(part))
        self.parts, self.space = tuple(parts), space

    @property
    def size(self) -> int:
        """The number of features."""
        return sum(part.size for part in self.parts)

    def __call__(self, obs: PyTree) -> Float[Array, "*batch F"]:
        if self.space.kind == "dict":
            obs = [obs[name] for name, _ in self.space.parts]
        elif self.space.kind != "tuple":
            obs = [obs]
        return jnp.concatenate([part(x) for part, x in zip(self.parts, obs, strict=True)], axis=-1)


def flatten_extractor(space: Space, key: Key, normalized_image: bool = False) -> Flatten:
    """SB3's `FlattenExtractor`."""
    return Flatten(space, normalized_image)


KNOWN = {**CNNS, "CombinedExtractor": CombinedExtractor, "FlattenExtractor": flatten_extractor}


@functools.cache
def named(name: str, options: tuple[tuple[str, Any], ...] = ()) -> Extractor:
    """An extractor by SB3's name, with options.

    Cached, so that equal choices are one object and share compiled programs; its `label` goes into model files.

    Raises:
        ValueError: no such extractor, or it has no such option.
    """
    if name not in KNOWN:
        raise ValueError(f"features_extractor_class={name!r} is not known: choose from {', '.join(KNOWN)}")
    try:
        inspect.signature(KNOWN[name]).bind(None, None, **dict(options))
    except TypeError as error:
        raise ValueError(f"features_extractor_kwargs {dict(options)} do not fit {name}: {error}") from None

    def extractor(space: Space, key: Key) -> eqx.Module:
        return KNOWN[name](space, key, **dict(options))

    extractor.label = ("features", name, options)
    return extractor


def extractor_of(chosen: Any, options: Mapping[str, Any], normalize_images: bool, ortho_init: bool) -> Extractor | None:
    """The extractor of these words of `policy_kwargs`: ours, by name, SB3's or torch's class; None: flattening.

    Raises:
        ValueError: it is none, or not known.
    """
    if chosen is None and not options and normalize_images:
        return None
    name = "FlattenExtractor" if chosen is None else known_name(chosen)
    if name is None:
        if not callable(chosen):
            raise ValueError(f"features_extractor_class={chosen!r} is not callable: choose from {', '.join(KNOWN)}")
        return functools.partial(chosen, **options)
    plain = {option: _plain(value) for option, value in options.items()}
    if not normalize_images:
        plain.setdefault("normalized_image", True)
    if ortho_init and name != "FlattenExtractor":
        plain.setdefault("ortho_init", True)
    return named(name, tuple(sorted(plain.items())))


def known_name(chosen: Any) -> str | None:
    """SB3's name of an extractor that is known by it; None for a function of the user's.

    Raises:
        ValueError: a torch module that is not known.
    """
    if isinstance(chosen, str):
        return chosen
    ours = {**CNNS, "CombinedExtractor": CombinedExtractor, "FlattenExtractor": Flatten}
    if name := next((name for name, one in ours.items() if chosen is one), None):
        return name
    # torch is never imported: its classes are known by their module's name.
    roots = [base.__module__.split(".")[0] for base in getattr(chosen, "__mro__", ())]
    if not set(roots) & set(TORCH):
        return None
    if roots[0] not in TORCH or chosen.__name__ not in KNOWN:
        raise ValueError(
            f"features_extractor_class={chosen.__name__} is a torch module, which does not run here: choose from"
            f" {', '.join(KNOWN)}, or write it as an equinox module"
        )
    return chosen.__name__


def with_policy(policy: str, config_class: type, policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`policy_kwargs`, and what a policy's name says where they are silent: its extractor, and SB3's widths behind a CNN."""
    words = dict(policy_kwargs)
    if words.get("features_extractor_class") is None:
        words["features_extractor_class"] = POLICIES.get(policy)
    name = known_name(words["features_extractor_class"]) if words["features_extractor_class"] is not None else None
    default = config_class().net_arch
    if name in CNNS and default in BEHIND_CNN:
        words.setdefault("net_arch", BEHIND_CNN[default])
    return words


def check_policy(policy: str, space: Space, extractor: Extractor | None) -> list[str]:
    """Raise `ValueError` where a policy cannot take observations; return notes on what will be done with others."""
    if space.kind == "dict" and policy.startswith("Mlp"):
        fit = policy.replace("Mlp", "MultiInput")
        raise ValueError(f"policy={policy!r} takes no Dict observations: use {fit!r}")
    if hasattr(extractor, "label"):
        jax.eval_shape(lambda: extractor(space, jax.random.PRNGKey(0)))  # raises what is wrong
    if extractor is None and _pictures(space):
        remedy = "'CnnPolicy' sees it"
        if policy.endswith("LstmPolicy"):
            remedy = "policy_kwargs={'features_extractor_class': 'NatureCNN'} sees it"
        return [f"policy={policy!r} flattens pictures, and what is beside what is lost: {remedy}"]
    return []


def extracted(config: Any, space: Space, key: Key) -> dict[str, eqx.Module]:
    """`features` for an actor-critic, and `value_features` where the value function has its own; none: flattening.

    Raises:
        ValueError: own features, and layers that are shared.
    """
    extractor = config.features_extractor
    if extractor is None:
        return {}
    features = {"features": extractor(space, key)}
    if not config.share_features_extractor:
        if config.net_arch.shared:
            raise ValueError(
                f"share_features_extractor=False leaves no layer to share, and net_arch shares {config.net_arch.shared}:"
                " give net_arch=dict(pi=[...], vf=[...])"
            )
        features["value_features"] = extractor(space, jax.random.fold_in(key, 1))
    return features


def _pictures(space: Space) -> bool:
    """Whether there are any."""
    return space.is_image() or any(_pictures(part) for _, part in space.parts)


def _plain(value: Any) -> Any:
    """An option as a model file holds it: lists as tuples, NumPy's numbers as Python's."""
    if isinstance(value, list | tuple):
        return tuple(_plain(x) for x in value)
    return value.item() if isinstance(value, np.generic) else value
