"""Watches for reward hacking: the shaped return, which the agent is paid, beside the true one, which is meant.

Amodei et al., "Concrete Problems in AI Safety", 2016, section 4 (https://arxiv.org/abs/1606.06565). The test for
a trend is that of Mann (1945) and Kendall (1975), https://doi.org/10.2307/1907187.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
from scipy import stats

from advantage.envs.recorder import Recorder
from advantage.envs.shaping import ShapedEnv
from advantage.envs.single import wrappers
from advantage.envs.vector import SyncEnvs
from advantage.experiments import plots
from advantage.training.callbacks import BaseCallback
from advantage.training.evaluation import check_spaces, evaluate_every_seed, spec_to_evaluate
from advantage.training.hyperparameters import whole
from advantage.training.ready_callbacks import Multiples

FEWEST_POINTS = 8
"""Before there are as many, nothing is called a trend."""


class Divergence(NamedTuple):
    """A shaped return that rises while the true one falls: the ends of both trend lines."""

    shaped: tuple[float, float]
    true: tuple[float, float]
    points: int


def divergence(
    shaped: npt.ArrayLike, true: npt.ArrayLike, window: int = 12, significance: float = 0.002
) -> Divergence | None:
    """Whether, over the last `window` points, the shaped return rises and the true return falls.

    Both have to be significant by a one-sided Mann-Kendall test, which asks how many of all pairs of points
    are in order: it takes no shape of curve or noise for granted, and one point far out counts no more than
    any other. (SciPy's `kendalltau` against time: exact, or with the correction for ties where there are
    some.) For an agent that stays as it is and points of different episodes, a call is wrong with a probability
    of `significance` at most, however the two depend on each other; where they don't, with its square. Judged
    at each point of a run, more often: of 20,000 simulated runs of 40 points of noise 3.6 % were called with the
    default values where the two returns were opposed, and 0.005 % where they were independent.

    Args:
        shaped: shaped returns `[points]`, oldest first.
        true: true returns `[points]` at the same times.
        window: how many of the last points are looked at; at least 8 have to be there.
        significance: below which a one-sided p-value is a trend.

    Returns:
        The ends of both Theil-Sen lines, the medians of slopes, or None.
    """
    shaped, true = (np.asarray(values, np.float64)[-window:] for values in (shaped, true))
    if len(shaped) < FEWEST_POINTS:
        return None
    time = np.arange(len(shaped))
    for values, direction in ((shaped, "greater"), (true, "less")):
        # NaN, of points that are all alike, is below nothing.
        if not stats.kendalltau(time, values, alternative=direction).pvalue < significance:
            return None
    return Divergence(_ends(shaped), _ends(true), len(shaped))


def _ends(values: np.ndarray) -> tuple[float, float]:
    """First and last point of the Theil-Sen line."""
    slope, intercept = stats.theilslopes(values)[:2]
    return float(intercept), float(intercept + slope * (len(values) - 1))


class RewardMonitor(BaseCallback):
    """Follow the shaped and the true return side by side, and warn where one rises while the other falls.

    Every `check_freq` steps there is a point: the mean shaped return of the training episodes that ended since
    the last one, and a mean true return. Where that comes from depends on `true_env`.

    - Without it, of the same episodes, at no cost. The environments have to keep it: `PotentialShaping` does,
      and a `Monitor` or Gymnasium's `RecordEpisodeStatistics` *inside* of what shapes the reward, as in
      `MyBonus(Monitor(env))`. The innermost of these decides. For Gymnasium environments stepped in this process.
    - With it, of `n_eval_episodes` episodes played there by the agent as it trains, with its sampled actions.
      For every kind of environment; JAX environments need it. It has the observations of the training
      environment and no shaping. Training does not notice.

    Logs `monitor/shaped_return` and `monitor/true_return`. Warns once in a run, by the definition in
    `divergence`. Returns are sums without discount, as everywhere in logs. With several seeds the means over
    seeds are tested. Episodes of JAX environments beyond the `stats_window_size` that the model remembers are
    left out of a point, and points come at the ends of segments.

    Args:
        true_env: an id, or an environment as for `evaluate_policy`; None reads the training episodes.
        check_freq: environment steps between points, over the parallel environments (of each seed). Several
            episodes should end between two: a point without any is left out.
        n_eval_episodes: episodes of each seed at each point, with `true_env`.
        window: how many of the last points make a trend, at least 8.
        significance: below which a one-sided p-value is a trend, above 0 and below 0.5.
        plot_path: where to draw both curves when it warns and when training ends, as PNG and as SVG: a name
            with either ending or none. None draws nothing.
        verbose: 0 for no output, 1 for a line at each point.

    Attributes:
        timesteps: environment steps of the points.
        shaped_returns, true_returns: their means, a list with an entry for each seed; NaN where none ended.
        warned_at: environment steps at which it warned, or None.

    Raises:
        ValueError: an argument that cannot be used; when training starts, `true_env` has other spaces than the
            model, or there is none and the environments keep no true returns.
        TypeError: `true_env` is no environment.
        ImportError: `plot_path` is given and matplotlib is missing.
        OSError: when training starts, the folder of `plot_path` cannot be made.
    """

    RESUMED = ("timesteps", "shaped_returns", "true_returns", "warned_at", "_ended", "_seen")

    def __init__(
        self,
        true_env: Any = None,
        check_freq: int | float = 5_000,
        n_eval_episodes: int = 10,
        window: int = 12,
        significance: float = 0.002,
        plot_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.check_freq, self.window = whole("check_freq", check_freq), whole("window", window, FEWEST_POINTS)
        self.n_eval_episodes, self.significance = whole("n_eval_episodes", n_eval_episodes), significance
        if not 1 / math.factorial(self.window) < significance < 0.5:
            raise ValueError(
                f"significance={significance!r} has to be below 0.5, and above what {self.window} points in"
                " perfect order reach: 0.002 is usual"
            )
        self.true_env, self._spec = true_env, None if true_env is None else spec_to_evaluate(true_env)
        self.plot_path = None if plot_path is None else Path(plot_path)
        if plot_path is not None:
            plots.need_matplotlib()
        self._multiples = Multiples()
        self._forget()

    def _forget(self) -> None:
        self.timesteps: list[int] = []
        self.shaped_returns: list[list[float]] = []
        self.true_returns: list[list[float]] = []
        self.warned_at: int | None = None
        # Shaped and true returns of each seed's episodes since the last point; episodes seen of each seed.
        self._ended: list[list[list[float]]] = []
        self._seen: list[int] = []

    def _init_callback(self) -> None:
        if self._spec is None:
            self._keys = _keys(self.model._driver)
        else:
            check_spaces(self.model, self._spec)
        if self.plot_path is not None:
            self.plot_path.parent.mkdir(parents=True, exist_ok=True)

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:
            self._forget()  # another run
        self._multiples.start(self.num_timesteps)
        seeds = self.model.num_seeds
        self._ended = self._ended or [[] for _ in range(seeds)]
        self._seen = [self.model._driver.recent(s).total for s in range(seeds)]

    def _on_step(self) -> None:
        if self.true_env is None:
            self._note_ended()
        if self._multiples.reached(self.check_freq, self.num_timesteps):
            self._add_point(self._of_training() if self.true_env is None else self._of_evaluation())

    def _on_training_end(self) -> None:
        self._draw()

    def _note_ended(self) -> None:
        """Keep both returns of the training episodes that ended in this step."""
        dones = np.asarray(self.locals["dones"]).reshape(self.model.num_seeds, -1)
        if not np.count_nonzero(dones):
            return
        # Not `locals["infos"]`, in which the driver's own return has taken the place of the environment's.
        infos = self.model._driver.envs.infos
        for s, row in enumerate(dones):
            recent = self.model._driver.recent(s)
            # In a run's last step those of the lowest index count, and the others' episodes do not.
            ended = np.flatnonzero(row)[: recent.total - self._seen[s]]
            self._seen[s] = recent.total
            for n, shaped in zip(ended[::-1], recent.returns[::-1].tolist(), strict=False):
                true = self._keys[s * dones.shape[1] + n].read(infos[s * dones.shape[1] + n])
                if true is not None:
                    self._ended[s].append([shaped, true])

    def _of_training(self) -> tuple[list[float], list[float]]:
        """Mean shaped and true return `[S]` of the same episodes."""
        means = [np.mean(pairs, axis=0) if pairs else np.full(2, np.nan) for pairs in self._ended]
        self._ended = [[] for _ in self._ended]
        shaped, true = np.transpose(means).tolist()
        return shaped, true

    def _of_evaluation(self) -> tuple[list[float], list[float]]:
        """Mean shaped returns `[S]` of training episodes, and true ones of others that the same agents play."""
        shaped = []
        for s, seen in enumerate(self._seen):
            recent = self.model._driver.recent(s)
            new = recent.returns[len(recent.returns) - min(recent.total - seen, len(recent.returns)) :]
            shaped.append(float(new.mean()) if len(new) else math.nan)
            self._seen[s] = recent.total
        if np.isnan(shaped).all():
            return shaped, shaped
        # Other beginnings at each point, and the same ones in a run that was resumed.
        played = evaluate_every_seed(
            self.model, self.true_env, self.n_eval_episodes, deterministic=False, seed=self.num_timesteps & 0x7FFFFFFF
        )
        return shaped, played.returns.mean(axis=1).tolist()

    def _add_point(self, returns: tuple[list[float], list[float]]) -> None:
        if np.isnan(returns[0]).all():
            return
        shaped, true = (float(np.nanmean(each)) for each in returns)
        for name, value in (("shaped", shaped), ("true", true)):
            self.logger.record(f"monitor/{name}_return", value)
        if self.verbose >= 1:
            print(f"step {self.num_timesteps:,}: shaped return {shaped:.2f}, true return {true:.2f}")
        self.timesteps.append(self.num_timesteps)
        self.shaped_returns.append(returns[0])
        self.true_returns.append(returns[1])
        if self.warned_at is None:
            self._judge()

    def _judge(self) -> None:
        """Warn where the two returns go apart."""
        means = (np.nanmean(each[-self.window :], axis=1) for each in (self.shaped_returns, self.true_returns))
        found = divergence(*means, self.window, self.significance)
        if found is None:
            return
        self.warned_at = self.num_timesteps
        self._draw()
        drawn = "" if self.plot_path is None else f" (drawn in {self._files()[0]})"
        warnings.warn(
            f"the agent may be hacking its reward: from step {self.timesteps[-found.points]:,} to"
            f" {self.num_timesteps:,} the shaped return rose from about {found.shaped[0]:.4g} to"
            f" {found.shaped[1]:.4g}, while the true return fell from about {found.true[0]:.4g} to"
            f" {found.true[1]:.4g}{drawn}. Look at what it does; PotentialShaping gives hints that leave the best"
            " policy the best",
            UserWarning,
            stacklevel=2,
        )

    def _files(self) -> list[Path]:
        path = self.plot_path
        stem = path.with_suffix("") if path.suffix.lower() in (".png", ".svg") else path
        return [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]

    def _draw(self) -> None:
        if self.plot_path is None or not self.timesteps:
            return
        name, marked = type(self.model).__name__, {}
        if self.warned_at is not None:
            last = self.timesteps.index(self.warned_at)
            marked[name] = (self.timesteps[max(0, last + 1 - self.window)], self.warned_at)
        both = (np.transpose(self.shaped_returns), np.transpose(self.true_returns))
        for path in self._files():
            plots.paid_and_true({name: (self.timesteps, *both)}, path, f"{name}: shaped and true return", marked)


class _Key(NamedTuple):
    """Where the info of an episode's last step has the true return."""

    name: str  # "episode" or "true_return"

    def read(self, info: dict[str, Any]) -> float | None:
        """The true return; None where a wrapper further out ended what is no whole episode (a life lost)."""
        value = info.get(self.name)
        value = value["r"] if isinstance(value, dict) else value
        return None if value is None else float(np.asarray(value).item())


def _keys(driver: Any) -> list[_Key]:
    """For each environment, in the order of infos.

    Raises:
        ValueError: one of them keeps no true returns.
    """
    envs = getattr(driver, "envs", None)
    if not isinstance(envs, SyncEnvs):
        kind = "JAX environments" if envs is None else "these vector environments"
        raise ValueError(
            f"true_env is missing, and {kind} do not show true returns: give the environment without shaping,"
            " RewardMonitor(true_env=...)"
        )
    return [_key(env) for env in envs.envs]


def _key(env: gymnasium.Env) -> _Key:
    layers = [layer for layer in wrappers(env) if not isinstance(layer, Recorder)]
    keeping = [layer for layer in layers if isinstance(layer, ShapedEnv) or _counts(layer)]
    remedy = "or give the environment without shaping, RewardMonitor(true_env=...)"
    if not keeping:
        raise ValueError(
            "true_env is missing, and the environments keep no true returns: put a Monitor inside of what shapes the"
            f" reward, as in MyBonus(Monitor(env)), {remedy}"
        )
    if keeping[-1] is layers[0] and not isinstance(layers[0], ShapedEnv):
        name = type(layers[0]).__name__
        raise ValueError(
            f"true_env is missing, and {name} is the outermost wrapper, so it counts shaped rewards: put it inside of"
            f" what shapes the reward, as in MyBonus({name}(env)), {remedy}"
        )
    return _Key("true_return" if isinstance(keeping[-1], ShapedEnv) else "episode")


def _counts(layer: gymnasium.Env) -> bool:
    # By name: SB3's class is welcome too.
    return isinstance(layer, gymnasium.wrappers.RecordEpisodeStatistics) or type(layer).__name__ == "Monitor"
