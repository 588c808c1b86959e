"""Presets: tuned settings of an algorithm for an environment, read from `presets/ALGORITHM.yaml` beside this file."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from advantage.envs.atari import is_atari_id

FOLDER = Path(__file__).with_name("presets")
ATARI = "ALE/*"
"""The entry of every Atari game."""


class Verified(NamedTuple):
    """What our own seeds reached, trained by exactly a preset's settings and budget."""

    file: str  # of this repository
    seeds: int  # at least 5
    iqm: float  # interquartile mean over seeds of the mean return over 50 episodes
    low: float  # the interval's bounds, 95%
    high: float


@dataclasses.dataclass(frozen=True)
class Preset:
    """Tuned settings: `PPO("MlpPolicy", preset.env, **preset.settings).learn(preset.total_timesteps)`.

    Attributes:
        algorithm: such as "PPO".
        env: the id, with its version.
        settings: keywords of the algorithm, `n_envs` and `policy_kwargs` among them; a fresh copy each time.
        total_timesteps: environment steps the settings were tuned for.
        verified: what at least 5 of our own seeds reached; None where nobody has checked the settings here.
        published: `(mean, deviation over episodes)` of the return that the source reports for one run, if it does.
        source: where the settings come from.
    """

    algorithm: str
    env: str
    settings: dict[str, Any]
    total_timesteps: int
    verified: Verified | None
    published: tuple[float, float] | None
    source: str

    @property
    def status(self) -> str:
        """Whether it is verified, and by what; in words."""
        if self.verified is None:
            return "unverified"
        file, seeds, iqm, low, high = self.verified
        return f"verified: return {iqm:,.1f} ({low:,.1f} to {high:,.1f}) over {seeds} seeds, {file}"

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.algorithm} on {self.env}: {settings}; {self.total_timesteps:,} steps; {self.status}"


def preset(algorithm: str, env: str) -> Preset:
    """The preset of an algorithm for an environment.

    Args:
        algorithm: a name of `advantage.ALGORITHMS`, in any case.
        env: an id such as "CartPole-v1" or "advantage/CartPole-v1"; its version counts.

    Raises:
        ValueError: there is none; the nearest are named.
    """
    known = presets(algorithm)
    if not known:
        raise ValueError(f"algorithm={algorithm!r} has no presets: choose from {', '.join(_files())}")
    found = find_preset(algorithm, env)
    if found is None:
        names = [one.env for one in known]
        near = difflib.get_close_matches(env, names, n=3, cutoff=0.6) or names
        raise ValueError(
            f"env={env!r} has no preset of {known[0].algorithm}; there are some for {', '.join(near)}"
        )
    return found


def find_preset(algorithm: str, env: str) -> Preset | None:
    """As `preset`; None where there is none."""
    names = (env, ATARI) if is_atari_id(env) else (env,)
    return next((dataclasses.replace(one, env=env) for one in presets(algorithm) if one.env in names), None)


def presets(algorithm: str | None = None) -> list[Preset]:
    """All presets, or those of one algorithm (none where it has no file), in the order of the files."""
    names = _files() if algorithm is None else [name for name in _files() if name == algorithm.upper()]
    return [_preset(name, env, entry) for name in names for env, entry in _read(name)["presets"].items()]


def _preset(algorithm: str, env: str, entry: Mapping[str, Any]) -> Preset:
    verified = Verified(**entry["verified"]) if entry["verified"] else None
    published = tuple(entry["published"]) if "published" in entry else None
    source = entry.get("source", _read(algorithm)["source"])
    settings = copy.deepcopy(entry["settings"])
    return Preset(algorithm, env, settings, entry["total_timesteps"], verified, published, source)


def _files() -> list[str]:
    return sorted(path.stem.upper() for path in FOLDER.glob("*.yaml"))


@functools.cache
def _read(algorithm: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{algorithm.lower()}.yaml").read_text(encoding="utf-8"))
