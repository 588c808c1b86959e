"""Comparison of algorithms over seeds and environments, by one protocol for all (Agarwal et al., 2021).

Deep RL at the edge of the statistical precipice: https://arxiv.org/abs/2108.13264
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advantage.experiments.preset import preset
from advantage.experiments.report import Report, write_report
from advantage.experiments.results import (
    FILE,
    Line,
    Protocol,
    Results,
    add_results,
    check_protocol,
    check_settings,
    read_results,
)
from advantage.models import ALGORITHMS, Model, algorithm_named, usual_policy
from advantage.training.callbacks import BaseCallback
from advantage.training.evaluation import evaluate_seeds
from advantage.training.hyperparameters import whole


def compare(
    algorithms: Sequence[str],
    env: str | None = None,
    *,
    envs: Sequence[str] | None = None,
    out: str | os.PathLike[str],
    total_timesteps: int = 100_000,
    seeds: int = 10,
    seed: int = 0,
    evaluations: int = 10,
    n_eval_episodes: int = 20,
    evaluation_seed: int = 0,
    deterministic: bool = True,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    presets: bool = False,
    progress_bar: bool = False,
) -> Report:
    """Train algorithms over the same seeds, by the same budget and protocol, and report which is better.

    With several environments the report has a part for each, and one about all of them together, over normalised
    scores.

    Each algorithm's seeds are trained side by side in this process. At `evaluations` evenly spaced steps
    every seed's agent, as it is after its updates up to that step, plays `n_eval_episodes` whole episodes on
    environments of their own. Those of evaluation k begin alike for all seeds and algorithms; evaluating
    changes nothing in training.

    Results go to `out/results.jsonl` as soon as an algorithm is through on an environment; what is stored there is
    not trained again. So a later call with more algorithms, environments or seeds adds to it, and the report is
    always about all.

    Args:
        algorithms: names of `advantage.ALGORITHMS`, such as `["PPO", "DQN"]`.
        env: an id, such as "CartPole-v1" or "advantage/CartPole-v1"; or, instead of it:
        envs: several ids.
        out: the folder for results, report and pictures.
        total_timesteps: environment steps of each seed.
        seeds: independent agents of each algorithm; with fewer than 3 there is no interval.
        seed: the first of the seeds `seed, seed + 1, ...`.
        evaluations: how many, the last one at the end of training.
        n_eval_episodes: of each evaluation, for each seed.
        evaluation_seed: of the evaluations' environments; apart from training's also where equal.
        deterministic: evaluate the best action instead of a sampled one.
        settings: hyper-parameters by algorithm, `{"PPO": {"n_envs": 8}}`, with `policy` and `n_envs` among
            them; what JSON can hold. The same on every environment.
        presets: take each algorithm's preset for each environment, beneath `settings`; the budget is
            `total_timesteps` all the same. By default nobody is given tuned settings.
        progress_bar: show live progress.

    Returns:
        The report: `print(report)` shows it, `report.results` holds the numbers.

    Raises:
        ValueError: a value that cannot work, or `out` holds results of another protocol or other settings;
            before anything is trained.
        TypeError: an algorithm has no such hyper-parameter; before anything is trained.
        KeyboardInterrupt: after Ctrl-C; algorithms that were through are stored.
    """
    names, envs = _known_algorithms(algorithms), _checked_envs(env, envs)
    given = checked_settings(settings, names)
    protocol = checked_protocol(
        total_timesteps, evaluations, n_eval_episodes, evaluation_seed, deterministic
    )
    first = whole("seed", seed, 0)
    last = first + whole("seeds", seeds)
    stored, path = read_results(out), Path(out) / FILE
    check_protocol(stored.protocol, protocol, path)
    pairs = [
        Pair(env, name, {**(preset(name, env).settings if presets else {}), **given[name]}, ALGORITHMS[name])
        for env in envs
        for name in names
    ]
    train_pairs(pairs, protocol, range(first, last), stored, out, progress_bar)
    return write_report(read_results(out), out)


class Pair(NamedTuple):
    """An algorithm on an environment."""

    env: str
    algorithm: str  # its name in results and pictures
    settings: Mapping[str, Any]  # what JSON can hold
    face: type[Model]
    beneath: Mapping[str, Any] = {}  # hyper-parameters that JSON cannot hold, which its name tells


def train_pairs(
    pairs: Sequence[Pair], protocol: Protocol, seeds: range, stored: Results, out: str | os.PathLike[str], progress_bar: bool
) -> None:
    """Train what is not `stored` in the folder `out` yet, and store it there.

    Raises:
        ValueError, TypeError: settings that cannot work, or other ones than are stored; before anything is trained.
    """
    path = Path(out) / FILE
    for pair in pairs:
        check_settings(stored, pair.env, pair.algorithm, pair.settings, path)
    missing = [sorted({*seeds} - {*stored.on(p.env).seeds(p.algorithm)}) for p in pairs]
    for pair, seeds_left in zip(pairs, missing, strict=True):
        if seeds_left:
            _try(pair)
    for pair, seeds_left in zip(pairs, missing, strict=True):
        for beginning, count in _runs(seeds_left):
            add_results(out, protocol, _train(pair, protocol, beginning, count, progress_bar))


class Evaluations(BaseCallback):
    """Evaluates every seed's agent at given steps, beside a clock that stands still meanwhile.

    The agent evaluated at a step has learned from the experience up to that step, whichever driver trains:
    an update under way is never waited for.

    Attributes:
        steps: where to evaluate, `[evaluations]`.
        returns: of each evaluation so far, `[seeds, episodes]`.
        seconds: of training, at each evaluation so far.
    """

    def __init__(self, env: str, protocol: Protocol):
        super().__init__()
        self.env, self.protocol, self.steps = env, protocol, protocol.steps()
        self.returns: list[np.ndarray] = []
        self.seconds: list[float] = []
        self._trained, self._since = 0.0, time.perf_counter()

    def finish(self) -> None:
        """Training is over: evaluate what is left, the end at least."""
        self._evaluate_before(np.inf)

    def _on_training_start(self) -> None:
        self._since = time.perf_counter()
        self._on_step()

    def _on_step(self) -> bool:
        ahead = 0
        if hasattr(self.model._driver, "pause_at"):
            # Its next step ends an update: what is due before that update's end is due now.
            ahead = self.model._config.steps_per_update * self.model.n_envs
        # The last one waits for the last update, which may be shorter than the others: `finish`.
        self._evaluate_before(min(self.num_timesteps + ahead, self.protocol.total_timesteps))
        return True

    def _on_training_end(self) -> None:
        # Also after Ctrl-C: the next run's segments are its own.
        self._pause_at(None)

    def _evaluate_before(self, step: float | int) -> None:
        begun = len(self.returns)
        if begun < len(self.steps) and self.steps[begun] < step:
            self._trained += time.perf_counter() - self._since
            for index in range(begun, int(np.sum(self.steps < step))):
                seed = self.protocol.evaluation_seed + index
                episodes, deterministic = self.protocol.n_eval_episodes, self.protocol.deterministic
                played = evaluate_seeds(self.model, self.env, episodes, deterministic, seed=seed)
                self.returns.append(played)
                self.seconds.append(self._trained)
            self._since = time.perf_counter()
        left = self.steps[len(self.returns) :]
        self._pause_at(int(left[0]) if len(left) else None)

    def _pause_at(self, step: int | None) -> None:
        if hasattr(self.model._driver, "pause_at"):
            self.model._driver.pause_at = step


def _train(pair: Pair, protocol: Protocol, seed: int, seeds: int, progress_bar: bool) -> list[Line]:
    """Train seeds side by side: a line for each seed and evaluation."""
    model = _made(pair, seed, seeds)
    evaluated = Evaluations(pair.env, protocol)
    model.learn(protocol.total_timesteps, callback=evaluated, progress_bar=progress_bar)
    evaluated.finish()
    from advantage import __version__

    return [
        Line(
            pair.env, pair.algorithm, pair.settings, seed + s, k, int(protocol.steps()[k]),
            tuple(evaluated.returns[k][s].tolist()), round(evaluated.seconds[k], 4), seeds,
            str(model.device.device_kind), __version__,
        )
        for s in range(seeds)
        for k in range(protocol.evaluations)
    ]  # fmt: skip


def _made(pair: Pair, seed: int, seeds: int) -> Model:
    fields = {**pair.beneath, **pair.settings}
    policy = fields.pop("policy", usual_policy(pair.face, pair.env))
    return pair.face(policy, pair.env, seed=seed, seeds=seeds, **fields)


def _try(pair: Pair) -> None:
    """Build one agent and drop it: what cannot work is known before another algorithm trains for an hour."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the agents that train are built
        _made(pair, 0, 1)


def _runs(seeds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of rising seeds without a gap: `(first, how many)`."""
    places = np.flatnonzero(np.diff(seeds) != 1) + 1
    for stretch in np.split(np.asarray(seeds, int), places):
        if stretch.size:
            yield int(stretch[0]), int(stretch.size)


def _known_algorithms(algorithms: Sequence[str]) -> list[str]:
    if isinstance(algorithms, str) or not len(algorithms):
        raise ValueError(f"algorithms={algorithms!r} has to be a list of names, such as ['PPO', 'DQN']")
    try:
        names = [algorithm_named(name).__name__ for name in algorithms]
    except ValueError as error:
        raise ValueError(f"algorithms: {error}") from None
    if len({*names}) < len(names):
        raise ValueError(f"algorithms={list(algorithms)!r} names one twice: name each once")
    return names


def checked_settings(
    settings: Mapping[str, Mapping[str, Any]] | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Settings of each algorithm, as JSON gives them back."""
    given: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, fields in (settings or {}).items():
        if name not in given:
            raise ValueError(f"settings are for {name!r}, which is not compared: use {', '.join(names)}")
        if not isinstance(fields, Mapping):
            raise ValueError(f"settings[{name!r}]={fields!r} has to be a dict of hyper-parameters")
        for field, value in fields.items():
            if field in ("env", "seed", "seeds"):
                raise ValueError(
                    f"settings[{name!r}] has {field!r}, which is the same for all: give it to compare"
                )
            try:
                given[name][field] = json.loads(json.dumps(value, allow_nan=False))
            except (TypeError, ValueError):
                raise ValueError(
                    f"settings[{name!r}][{field!r}]={value!r} cannot be stored as JSON: give a number or a name"
                ) from None
    return given


def _checked_envs(env: str | None, envs: Sequence[str] | None) -> list[str]:
    if (env is None) == (envs is None):
        raise ValueError(
            f"env={env!r} and envs={envs!r}: give env, or envs for several environments, not both"
        )
    if isinstance(envs, str) or (envs is not None and len({*envs}) != max(len(envs), 1)):
        raise ValueError(
            f"envs={envs!r} has to be a list of ids, each once, such as ['CartPole-v1', 'Acrobot-v1']"
        )
    given = [env] if envs is None else list(envs)
    for one in given:
        if not isinstance(one, str):
            raise ValueError(
                f"env={one!r} has to be an id, such as 'CartPole-v1': register an environment of your own"
            )
    return given


def checked_protocol(
    total_timesteps: int,
    evaluations: int,
    n_eval_episodes: int,
    evaluation_seed: int,
    deterministic: bool,
) -> Protocol:
    protocol = Protocol(
        whole("total_timesteps", total_timesteps, 1),
        whole("evaluations", evaluations, 1),
        whole("n_eval_episodes", n_eval_episodes, 1),
        whole("evaluation_seed", evaluation_seed, 0),
        bool(deterministic),
    )
    if protocol.evaluations > protocol.total_timesteps:
        raise ValueError(f"evaluations={evaluations} has to be at most total_timesteps={total_timesteps}")
    return protocol
