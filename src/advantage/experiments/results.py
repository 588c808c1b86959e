"""Stored results of comparisons: JSON lines, one for each environment, algorithm, seed and evaluation.

Every line carries the protocol it was made by, so that a file explains itself and lines of different
protocols cannot be mixed unnoticed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE = "results.jsonl"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What has to be the same for results to be compared."""

    total_timesteps: int  # environment steps of each seed
    evaluations: int  # evenly spaced, the last one at the end
    n_eval_episodes: int  # of each evaluation of each seed
    evaluation_seed: int  # evaluation k begins its episodes from this + k
    deterministic: bool  # the best action instead of a sampled one

    def steps(self) -> np.ndarray:
        """Environment steps of each seed at each evaluation, `[evaluations]`."""
        return np.arange(1, self.evaluations + 1) * self.total_timesteps // self.evaluations


PROTOCOL = tuple(field.name for field in dataclasses.fields(Protocol))


@dataclasses.dataclass(frozen=True)
class Line:
    """One evaluation of one seed."""

    env: str  # id of the environment trained and evaluated on
    algorithm: str
    settings: Mapping[str, Any]  # what differs from the algorithm's defaults
    seed: int
    evaluation: int  # 0, 1, ...
    steps: int  # environment steps of this seed
    returns: tuple[float, ...]  # of each episode
    seconds: float  # of training so far, without evaluations, of all seeds trained side by side
    seeds_together: int  # how many those were
    device: str  # what trained
    version: str  # of this library


@dataclasses.dataclass(frozen=True)
class Results:
    """All lines of one protocol.

    Returns of different environments have different scales: with several, what speaks of returns is asked of
    `results.on(env)`, else a `ValueError` is raised.

    Attributes:
        protocol: how all were made; None while there are no lines.
        lines: in the order they were made.
    """

    protocol: Protocol | None
    lines: tuple[Line, ...]

    @property
    def algorithms(self) -> list[str]:
        """In the order they were first trained."""
        return list(dict.fromkeys(line.algorithm for line in self.lines))

    @property
    def envs(self) -> list[str]:
        """In the order they were first trained on."""
        return list(dict.fromkeys(line.env for line in self.lines))

    def on(self, env: str) -> Results:
        """What belongs to one environment."""
        return Results(self.protocol, tuple(line for line in self.lines if line.env == env))

    def seeds(self, algorithm: str) -> list[int]:
        """The seeds an algorithm was trained with on the only environment, rising."""
        return sorted({line.seed for line in self._of(algorithm)})

    def returns(self, algorithm: str) -> np.ndarray:
        """Mean return over episodes on the only environment, `[seeds, evaluations]`; seeds as in `seeds`."""
        rows = sorted((x.seed, x.evaluation, np.mean(x.returns)) for x in self._of(algorithm))
        return np.array([row[2] for row in rows]).reshape(len(self.seeds(algorithm)), -1)

    def final(self, algorithm: str) -> np.ndarray:
        """Mean return over episodes at the last evaluation on the only environment, `[seeds]`."""
        return self.returns(algorithm)[:, -1]

    def seconds(self, algorithm: str) -> float:
        """Seconds that all seeds of an algorithm were in training on the only environment, with compilation."""
        # Seeds side by side share their seconds.
        last = self.protocol.evaluations - 1 if self.protocol else 0
        return sum(x.seconds / x.seeds_together for x in self._of(algorithm) if x.evaluation == last)

    def speed(self, algorithm: str) -> float:
        """Environment steps of all seeds per second of training on the only environment."""
        assert self.protocol is not None
        steps = self.protocol.total_timesteps * len(self.seeds(algorithm))
        return steps / max(self.seconds(algorithm), 1e-9)

    def settings(self, algorithm: str) -> Mapping[str, Any]:
        """The settings an algorithm was trained with on the only environment."""
        return self._of(algorithm)[0].settings

    def devices(self) -> list[str]:
        """What trained, in the order of first use."""
        return list(dict.fromkeys(line.device for line in self.lines))

    def _of(self, algorithm: str) -> list[Line]:
        if len(self.envs) > 1:
            raise ValueError(f"these results are of {len(self.envs)} environments: say which, results.on(env)")
        return [line for line in self.lines if line.algorithm == algorithm]


def read_results(folder: str | os.PathLike[str]) -> Results:
    """The results stored in a folder; none where there is no file.

    Raises:
        ValueError: a line that is no result, that is there twice or missing, or whose protocol or settings
            differ from those before.
    """
    path, stored = Path(folder) / FILE, []
    if not path.exists():
        return Results(None, ())
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(text)
            protocol = Protocol(**{name: entry.pop(name) for name in PROTOCOL})
            line = Line(**{**entry, "returns": tuple(map(float, entry["returns"]))})
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"line {number} of {path} is no result ({type(error).__name__}: {error}): remove it"
            ) from None
        stored.append((protocol, line))
    for protocol, _ in stored:
        check_protocol(stored[0][0], protocol, path)
    results = Results(stored[0][0] if stored else None, tuple(line for _, line in stored))
    _check_complete(results, path)
    return results


def add_results(folder: str | os.PathLike[str], protocol: Protocol, lines: Iterable[Line]) -> None:
    """Append lines to a folder's file in one write; the folder is made."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = ({**dataclasses.asdict(protocol), **dataclasses.asdict(line)} for line in lines)
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries))


def check_protocol(stored: Protocol | None, wanted: Protocol, path: Path) -> None:
    """Raise `ValueError` with the first difference, if there is one."""
    if stored is None:
        return
    for name in PROTOCOL:
        before, now = getattr(stored, name), getattr(wanted, name)
        if before != now:
            raise ValueError(
                f"{name}={now!r}, but the results in {path} have {name}={before!r}: give that, or another out"
            )


def check_settings(
    results: Results, env: str, algorithm: str, settings: Mapping[str, Any], path: Path
) -> None:
    """Raise `ValueError` where an algorithm was trained with other settings on an environment."""
    here = results.on(env)
    before = here.settings(algorithm) if algorithm in here.algorithms else settings
    for name in sorted({*before, *settings}):
        words = [repr(x[name]) if name in x else "not set" for x in (settings, before)]
        if words[0] != words[1]:
            raise ValueError(
                f"settings of {algorithm} on {env}: {name} is {words[0]}, but in the results in {path} it is"
                f" {words[1]}: give the same, or another out"
            )


def _check_complete(results: Results, path: Path) -> None:
    """Every seed has every evaluation once, with its algorithm's settings."""
    expected = list(range(results.protocol.evaluations if results.protocol else 0))
    for env in results.envs:
        here, seen, first = results.on(env), {}, {}
        for line in here.lines:
            seen.setdefault((line.algorithm, line.seed), []).append(line.evaluation)
            if first.setdefault(line.algorithm, line.settings) != line.settings:
                check_settings(here, env, line.algorithm, line.settings, path)
        for (algorithm, seed), evaluations in seen.items():
            if sorted(evaluations) != expected:
                raise ValueError(
                    f"{path} has evaluations {sorted(evaluations)} of seed {seed} of {algorithm} on {env}, expected"
                    f" each of 0 to {expected[-1]} once: remove that seed's lines, and it is trained anew"
                )
