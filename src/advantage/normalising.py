"""A model and its normaliser: from what a user gives to a `Normalised` algorithm, and `VecNormalize` as its view."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from advantage.algorithms.normalised import Normalised, Normaliser, State
from advantage.envs.normalise import VecNormalize
from advantage.envs.running import RunningMeanStd
from advantage.equations.moments import PRIOR, Moments
from advantage.equations.normalisation import Normalisation, normalisation
from advantage.types import Space


def settings_of(algorithm: Any) -> Normalisation | None:
    """How an algorithm is normalised; None: not at all."""
    return algorithm.settings if isinstance(algorithm, Normalised) else None


def composed(algorithm: Any, normalize: Any) -> Any:
    """The algorithm, normalised as `normalize=` says: a bool, or settings by name.

    Raises:
        ValueError: there is no such setting, or a value that cannot work.
    """
    if normalize is None or normalize is False:
        return algorithm
    if isinstance(normalize, Normalisation):
        return Normalised(algorithm, normalize)
    if not (normalize is True or isinstance(normalize, Mapping)):
        raise ValueError(f"normalize={normalize!r} is not understood: give True, or a dictionary of settings")
    return Normalised(algorithm, normalisation(**({} if normalize is True else normalize)))


def plain_settings(algorithm: Any) -> dict[str, Any] | None:
    """What `composed` takes to make this algorithm, in JSON's types."""
    settings = settings_of(algorithm)
    if settings is None:
        return None
    keys = settings.norm_obs_keys
    return dataclasses.asdict(settings) | {"norm_obs_keys": None if keys is None else list(keys)}


def taking(algorithm: Any, wrapper: VecNormalize | None, space: Space, learned: bool) -> Any:
    """The algorithm of a model that is given environments inside a `VecNormalize` (or None), checked for them.

    Raises:
        ValueError: both the model and the environments say how, or other observations are normalised.
    """
    settings = settings_of(algorithm)
    if wrapper is not None:
        if settings is not None and not learned:
            raise ValueError("normalize=... and a VecNormalize around env both say how: give one of them")
        if settings is not None and settings.parts(space) != wrapper.settings.parts(space):
            ours, theirs = (list(x.parts(space)) or "none" for x in (settings, wrapper.settings))
            raise ValueError(
                f"env normalises the observations {theirs}, the model was trained with {ours} normalised: give a"
                " VecNormalize with the model's norm_obs and norm_obs_keys, or the environments without it"
            )
        inner = algorithm.algorithm if isinstance(algorithm, Normalised) else algorithm
        algorithm = Normalised(inner, wrapper.settings)
    if (settings := settings_of(algorithm)) is not None:
        settings.parts(space)
    return algorithm


def merged(fresh: PyTree, state: PyTree | None, given: Mapping[str, Any] | None) -> PyTree | None:
    """The State `[S, ...]` of a normalised model that changes environments, or None where a fresh one will do.

    Args:
        fresh: of the new algorithm.
        state: what was learned, perhaps without normalisation; None: nothing.
        given: the statistics and switches of a `VecNormalize` around the environments, if there is one.

    A model that has seen something keeps its own statistics: its parameters belong to these.
    """
    if state is not None and not isinstance(state, State):
        state = State(state, fresh.normaliser)
    if given is None:
        return state
    state = fresh if state is None else state
    own, theirs = read(jax.tree.map(lambda x: x[0], state.normaliser)), (*given["obs_rms"].values(), given["ret_rms"])
    values = {name: given[name] for name in ("training", "norm_reward")}
    mine = (*own["obs_rms"].values(), own["ret_rms"])
    if all(rms.count <= PRIOR for rms in mine):
        values |= {name: given[name] for name in ("obs_rms", "ret_rms")}
    elif given["loaded"] and not all(map(_close, mine, theirs)):
        warnings.warn(
            "env's VecNormalize has other statistics than the model was saved with: the model goes on with its own,"
            " to which its parameters belong; set obs_rms and ret_rms of model.get_env() to use others",
            UserWarning,
            stacklevel=5,
        )
    return state._replace(normaliser=written(state.normaliser, **values))


def read(normaliser: Normaliser) -> dict[str, Any]:
    """One seed's statistics and switches, as `VecNormalize` has them."""
    return {
        "obs_rms": {name: _as_rms(moments) for name, moments in normaliser.obs.items()},
        "ret_rms": _as_rms(normaliser.returns),
        "training": bool(normaliser.training),
        "norm_reward": bool(normaliser.norm_reward),
    }


def written(normaliser: Normaliser, **values: Any) -> Normaliser:
    """The normaliser `[S, ...]` with some of what `read` gives, for every seed."""
    seeds, fields = len(np.asarray(normaliser.training)), {}
    for name, value in values.items():
        if name == "obs_rms":
            fields["obs"] = {key: _as_moments(rms, seeds) for key, rms in value.items()}
        elif name == "ret_rms":
            fields["returns"] = _as_moments(value, seeds)
        else:
            fields[name] = np.full(seeds, value)
    return normaliser._replace(**fields)


class Held:
    """A model's statistics, for the `VecNormalize` that is their view; those of the first seed are read."""

    def __init__(self, model: Any):
        self.model = model

    def read_normaliser(self) -> dict[str, Any]:
        """See `envs.normalise.Holder`."""
        return self.model._statistics(0)

    def write_normaliser(self, **values: Any) -> None:
        """See `envs.normalise.Holder`."""
        state = self.model._full_state()
        self.model._put_state(state._replace(normaliser=written(state.normaliser, **values)))


def _as_rms(moments: Moments) -> RunningMeanStd:
    mean, var, mean_rest, var_rest = (np.asarray(x, np.float64) for x in moments[:4])
    high, low = (int(x) for x in np.asarray(moments.count))
    rms = RunningMeanStd()
    rms.mean, rms.var = np.asarray(mean + mean_rest), np.asarray(var + var_rest)
    rms.count = (high << 32) + low + PRIOR
    return rms


def _as_moments(rms: RunningMeanStd, seeds: int) -> Moments:
    def split(x: Any) -> tuple[np.ndarray, np.ndarray]:
        whole = np.asarray(x, np.float32)
        return whole, np.asarray(np.asarray(x, np.float64) - whole, np.float32)

    (mean, mean_rest), (var, var_rest) = split(rms.mean), split(rms.var)
    count = round(max(rms.count - PRIOR, 0.0))
    counts = np.array([count >> 32, count & 0xFFFFFFFF], np.uint32)
    return Moments(*[np.repeat(x[None], seeds, axis=0) for x in (mean, var, mean_rest, var_rest, counts)])


def _close(a: RunningMeanStd, b: RunningMeanStd) -> bool:
    return np.allclose(a.mean, b.mean, rtol=1e-4, atol=1e-6) and np.allclose(a.var, b.var, rtol=1e-4, atol=1e-12)
