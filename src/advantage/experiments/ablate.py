"""What the parts of an algorithm bring: trained without each of them in turn, over seeds, by `compare`'s protocol."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advantage.algorithms import rainbow
from advantage.experiments.compare import Pair, checked_protocol, checked_settings, train_pairs
from advantage.experiments.plots import intervals_picture
from advantage.experiments.report import Report, write_report
from advantage.experiments.results import FILE, check_protocol, read_results
from advantage.experiments.statistics import aggregate
from advantage.models import ALGORITHMS
from advantage.training.hyperparameters import whole

ABLATABLE = ("Rainbow",)
ATOMS = ("n_atoms", "v_min", "v_max")
EPSILON = ("exploration_fraction", "exploration_initial_eps", "exploration_final_eps")


def ablate(
    algorithm: str,
    env: str,
    *,
    out: str | os.PathLike[str],
    total_timesteps: int = 100_000,
    seeds: int = 5,
    seed: int = 0,
    evaluations: int = 10,
    n_eval_episodes: int = 20,
    settings: Mapping[str, Any] | None = None,
    alone: bool = False,
    progress_bar: bool = False,
) -> Report:
    """Train Rainbow, Rainbow without each of its parts, and DQN; report what each part brought (Hessel et al., 2018).

    The protocol, the files and the statistics are those of `compare`: what is stored in `out` is not trained again.
    Beside its pictures is `ablation.png`, the final return of each variant with its interval (figures 3 and 4).

    Args:
        algorithm: "Rainbow", the only one that is made of parts.
        env: an id, such as "gymnax/Breakout-MinAtar".
        out: the folder for results, report and pictures.
        total_timesteps: environment steps of each seed.
        seeds: independent agents of each variant; with fewer than 3 there is no interval.
        seed: the first of the seeds.
        evaluations, n_eval_episodes: as for `compare`.
        settings: hyper-parameters of all variants, over Rainbow's own. Those of atoms are left out where there are
            none, those of epsilon where noisy layers explore.
        alone: also DQN with each of the parts alone.
        progress_bar: show live progress.

    Raises:
        ValueError, TypeError: a value that cannot work; before anything is trained.
    """
    if str(algorithm).lower() not in map(str.lower, ABLATABLE):
        raise ValueError(f"algorithm={algorithm!r} is not made of parts: choose from {', '.join(ABLATABLE)}")
    protocol = checked_protocol(total_timesteps, evaluations, n_eval_episodes, 0, True)
    first = whole("seed", seed, 0)
    last = first + whole("seeds", seeds)
    given = checked_settings({"all": settings or {}}, ["all"])["all"]
    stored = read_results(out)
    check_protocol(stored.protocol, protocol, Path(out) / FILE)
    pairs = [_pair(env, name, parts, given) for name, parts in variants(alone).items()]
    train_pairs(pairs, protocol, range(first, last), stored, out, progress_bar)
    results = read_results(out)
    report = write_report(results, out, against="Rainbow")
    return dataclasses.replace(report, files=(*report.files, *_draw(results.on(env), Path(out), f"Rainbow and its parts on {env}")))


def variants(alone: bool = False) -> dict[str, tuple[str, ...]]:
    """The parts of each variant, by its name."""
    parts = rainbow.PARTS
    without = {f"no {part}": tuple(x for x in parts if x != part) for part in parts}
    single = {f"DQN + {part}": (part,) for part in parts} if alone else {}
    return {"Rainbow": parts, **without, "DQN": (), **single}


def _pair(env: str, name: str, parts: tuple[str, ...], given: Mapping[str, Any]) -> Pair:
    """A variant on an environment: Rainbow's settings beneath those given, as far as it has them."""
    shared = {field: x for field, x in rainbow.SETTINGS.items() if field not in rainbow.settings(rainbow.PARTS)}
    dropped = (() if "distributional" in parts else ATOMS) + (EPSILON if "noisy" in parts else ())
    face = ALGORITHMS["C51" if "distributional" in parts else "DQN"]
    own = {field: x for field, x in given.items() if field not in dropped}
    return Pair(env, name, own, face, {**shared, **rainbow.settings(parts)})


def _draw(here: Any, out: Path, title: str) -> list[Path]:
    """The final return of each variant, from top to bottom."""
    rows = {name: {"final return": aggregate(here.final(name))} for name in here.algorithms}
    note = "interquartile mean of the seeds' final returns, 95% interval"
    paths = [out / f"ablation{suffix}" for suffix in (".png", ".svg")]
    try:
        for path in paths:
            intervals_picture(rows, path, title, note, "return")
    except ImportError:  # the report says so
        return []
    return paths
