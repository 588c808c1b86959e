"""Hyper-parameters between users, `Config` and model files: casting, schedules, and names for functions."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from advantage.equations.noise import KNOWN as NOISE
from advantage.equations.returns import Scalar
from advantage.equations.schedules import Linear, Schedule, Table, parse
from advantage.networks.actor_critic import Architecture
from advantage.networks.continuous import Widths
from advantage.networks.extractors import named as extractor_named
from advantage.networks.optimisers import named
from advantage.networks.policy_kwargs import ACTIVATIONS
from advantage.networks.recurrent import Recurrence, recurrence
from advantage.training.files import NotAModel

TABLE_POINTS = 101
# How functions that are no hyper-parameters of their own are given.
POLICY_WORDS = {
    "activation_fn": "policy_kwargs={'activation_fn': ...}",
    "features_extractor": "policy_kwargs={'features_extractor_class': ...}",
}


def configured(
    config: Any, schedules: Mapping[str, Schedule], values: Mapping[str, Any]
) -> tuple[Any, dict[str, Schedule]]:
    """`(config, schedules)` with new values, cast by the fields' annotations.

    A function of the remaining progress given for a number becomes a schedule.

    Raises:
        ValueError: a value that is no number where one belongs, or not finite.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    schedules, fields = dict(schedules), {}
    for name, value in values.items():
        schedules.pop(name, None)
        if _is_scalar(kinds[name]):
            value = _parsed(name, value) if isinstance(value, str) else value
            if callable(value):
                schedules[name] = value
                value = float(value(1.0))
        fields[name] = _cast(name, kinds[name], value)
    return dataclasses.replace(config, **fields), schedules


@functools.lru_cache(maxsize=64)  # asked for at every `predict`
def undisturbed(config: Any) -> Any:
    """The config by which `predict` acts: a policy's own choice, sampled or not, as in SB3.

    Noise that is added to actions, and actions at random before learning begins, belong to training; DQN's epsilon,
    which SB3's `predict` has too, stays.
    """
    names = {field.name for field in dataclasses.fields(config)}
    if "learning_starts" not in names or "exploration_rate" in names:
        return config
    without = {"learning_starts": 0, "action_noise": None}
    return dataclasses.replace(config, **{name: value for name, value in without.items() if name in names})


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number, also one given as a float.

    Raises:
        ValueError: it is not whole, or less than `least`.
    """
    try:
        fits = not isinstance(value, bool) and int(value) == value and value >= least
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} has to be a whole number of at least {least}")
    return int(value)


def _parsed(name: str, text: str) -> float | Linear:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _cast(name: str, kind: Any, value: Any) -> Any:
    if _is_scalar(kind):
        if value is None and _is_optional(kind):
            return None
        return _number(name, value)
    if kind is bool:
        return bool(value)
    if kind is float:
        return _number(name, value)
    if _is_union(kind) and float in typing.get_args(kind) and not isinstance(value, typing.get_args(kind)):
        return _number(name, value)  # such as ent_coef=0 or updates_per_step=np.int64(1)
    if isinstance(value, list):
        value = tuple(value)
    if kind is int or (_is_union(kind) and int in typing.get_args(kind) and not isinstance(value, tuple)):
        number = _number(name, value)
        if number != int(number):
            raise ValueError(f"{name}={value!r} has to be a whole number")
        return int(number)
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} is not a number: give a number (or, for a float, a schedule)") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} has to be finite")
    return number


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _is_scalar(kind: Any) -> bool:
    """Whether a field's annotation is `Scalar`, perhaps with `None`."""
    wanted = set(typing.get_args(Scalar))
    return _is_union(kind) and wanted <= set(typing.get_args(kind))


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def describe(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(plain values, labels of functions)` of a config, both of JSON's types."""
    plain, labels = {}, {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if callable(value) or hasattr(value, "label"):
            labels[field.name] = label(value)
        elif isinstance(value, Architecture | Widths):
            kind = "architecture" if isinstance(value, Architecture) else "widths"
            plain[field.name] = {kind: [list(part) for part in value]}
        elif isinstance(value, Recurrence):
            plain[field.name] = {"recurrence": value._asdict()}
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain, labels


def label(function: Any) -> Any:
    """A function's name in a file: one of ours, an optimiser with its options, or `module.name`."""
    for name, known in ACTIVATIONS.items():
        if function is known:
            return ["activation", name]
    if hasattr(function, "label"):
        kind, name, options = function.label
        return [kind, name, [list(option) for option in options]]
    inner = getattr(function, "func", function)
    return f"{inner.__module__}.{getattr(inner, '__qualname__', type(inner).__name__)}"


def undescribe(default: Any, plain: Mapping[str, Any], labels: Mapping[str, Any], given: Mapping[str, Any]) -> dict:
    """Field values from a file's description; functions the file only names come from `default` or `given`.

    Raises:
        NotAModel: the file names a function of the user's that was not given.
    """
    values = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            ((kind, parts),) = value.items()
            known = {"architecture": Architecture, "widths": Widths}
            value = recurrence(parts) if kind == "recurrence" else known[kind](*map(tuple, parts))
        values[name] = tuple(value) if isinstance(value, list) else value
    for name, stored in labels.items():
        if name in given:
            continue
        if isinstance(stored, list) and stored[0] == "activation":
            values[name] = ACTIVATIONS[stored[1]]
        elif isinstance(stored, list) and stored[0] == "optimizer":
            values[name] = named(stored[1], tuple((k, _tuple(v)) for k, v in stored[2]))
        elif isinstance(stored, list) and stored[0] == "noise":
            values[name] = NOISE[stored[1]](**dict(stored[2]))
        elif isinstance(stored, list) and stored[0] == "features":
            values[name] = extractor_named(stored[1], tuple((k, _tuple(v)) for k, v in stored[2]))
        elif stored == label(getattr(default, name)):
            values[name] = getattr(default, name)
        else:
            raise NotAModel(
                f"this model was trained with {name}={stored}, and a file holds no code: give it again,"
                f" load(path, {POLICY_WORDS.get(name, f'{name}=...')})"
            )
    return values


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule in JSON's types; a function of the user's as its values over training."""
    if isinstance(schedule, Linear):
        return {"kind": "linear", **dataclasses.asdict(schedule)}
    values = [float(schedule(float(p))) for p in np.linspace(1.0, 0.0, TABLE_POINTS)]
    return {"kind": "table", "values": values}


def undescribe_schedule(stored: Mapping[str, Any]) -> Schedule:
    """The schedule of a file's description."""
    if stored["kind"] == "linear":
        return Linear(stored["start"], stored["end"], stored["fraction"])
    return Table(tuple(stored["values"]))


def _tuple(value: Any) -> Any:
    """Lists as tuples, at any depth: JSON knows lists only."""
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
