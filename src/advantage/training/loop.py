"""The training loop: it consumes a driver's reports and serves callbacks, logs, progress and Ctrl-C."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from advantage.drivers.common import Report
from advantage.drivers.guard import NotFinite
from advantage.training.callbacks import BaseCallback, CallbackList, give_state
from advantage.training.checkpoints import Checkpoints, check_callback
from advantage.training.guard import TrainingFailure, check_report, explained
from advantage.training.interrupt import Interrupt
from advantage.training.loggers import Logger
from advantage.training.progress import LiveProgress
from advantage.types import NONFINITE

__all__ = ["Run", "TrainingFailure", "train"]

PROGRESS_SECONDS = 0.25


@dataclasses.dataclass
class Run:
    """One call of `learn`.

    Attributes:
        model: what callbacks see; its `num_timesteps` is kept up to date.
        driver: makes the reports.
        start, stop: environment steps of each seed, before and after.
        callback: called at SB3's events.
        logger: where values go every `log_interval`.
        log_interval: updates between logs, or finished episodes where `log_episodes`.
        logged: config field to log key, for scheduled and constant fields alike.
        progress: what moves on the screen.
        name: of the run, in logs.
        checkpoints: where it is written to, or None.
        resumed: the header of the checkpoint it goes on from, or None.
    """

    model: Any
    driver: Any
    config: Any
    schedules: Mapping[str, Callable[[float], float]]
    start: int
    stop: int
    callback: BaseCallback
    logger: Logger
    log_interval: int | None
    log_episodes: bool
    logged: Mapping[str, str]
    progress: LiveProgress
    name: str = ""
    checkpoints: Checkpoints | None = None
    resumed: Mapping[str, Any] | None = None
    log: _Log = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.log = _Log(self)

    def plan(self) -> dict[str, Any]:
        """What a resumed run has to know to end where this one ends."""
        kept = self.checkpoints
        folders = {} if kept is None else {"every": kept.every, "most": kept.most}
        return {
            "start": self.log.start, "stop": self.stop, "log_interval": self.log_interval, "name": self.name,
            "checkpoints": folders,
        }  # fmt: skip


def train(run: Run) -> None:
    """Train to `run.stop`, or until a callback or Ctrl-C stops it.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once the model is in a usable state.
        TrainingFailure: a gradient was NaN or infinite.
        EnvironmentFailure: an environment failed.
        OSError: a checkpoint cannot be written.
    """
    log = run.log
    if run.checkpoints is not None:
        check_callback(run.callback)
    run.callback.on_training_start(_Locals(run, None), {})
    if run.resumed is not None and not give_state(run.callback, run.resumed["callbacks"]):
        warnings.warn(
            "the callbacks are not those of the checkpoint: they begin afresh; give learn(callback=...) the same ones"
            " to go on with what they had counted",
            UserWarning,
            stacklevel=3,
        )
    run.model._resumed = None  # from here on it is a run of its own
    run.model._write_log = log.now
    with Interrupt() as interrupt, run.progress as progress:
        progress.phase("compiling")
        try:
            for report in _reports(run, interrupt):
                run.model.num_timesteps = report.steps
                log.add(report)
                check_report(run, report)
                if interrupt.requested:
                    break
            if run.checkpoints is not None and run.checkpoints.written != run.model.num_timesteps:
                run.checkpoints.write(run)
        except NotFinite as failure:
            raise explained(run, failure) from failure.__cause__
        finally:
            if run.checkpoints is not None and hasattr(run.driver, "pause_at"):
                run.driver.pause_at = None
            run.callback.on_training_end()
            run.model._write_log = None
    if interrupt.requested:
        raise KeyboardInterrupt(f"stopped at {run.model.num_timesteps:,} steps; the model can go on, predict and save")


def _reports(run: Run, interrupt: Interrupt) -> Iterator[Report]:
    """The driver's reports, with callbacks at every step (host) or after every segment (fused)."""
    host = hasattr(run.driver, "envs")
    idle = isinstance(run.callback, CallbackList) and not run.callback.callbacks
    hook = None
    if host:
        hook = functools.partial(_go_on, run, interrupt) if idle else _Hook(run, interrupt)
    due = _next_checkpoint(run, run.start)
    for report in run.driver.run(run.config, run.schedules, run.start, run.stop, hook):
        yield report
        go_on = True
        if not host:
            run.callback.on_rollout_start()
            run.callback.update_locals(_Locals(run, None))
            go_on = run.callback.on_step()
            run.callback.on_rollout_end()
        # After all that belongs to this step: a resumed run does none of it again.
        if due is not None and report.steps >= due:
            run.checkpoints.write(run)
            due = _next_checkpoint(run, report.steps)
        if not go_on:
            return


def _next_checkpoint(run: Run, steps: int) -> int | None:
    """The step at which the next checkpoint is due; a segment ends there."""
    due = None if run.checkpoints is None else run.checkpoints.next(steps)
    if due is not None and hasattr(run.driver, "pause_at"):
        run.driver.pause_at = due
    return due


def _go_on(run: Run, interrupt: Interrupt, step: Any) -> bool:
    """The hook without callbacks: a step costs nothing here but a look at the flag."""
    if interrupt.requested:
        run.model.num_timesteps = step.steps  # of the chunk begun, which the next run continues
    return not interrupt.requested


class _Hook:
    """Called by the host driver after each vector step."""

    def __init__(self, run: Run, interrupt: Interrupt):
        self.run, self.interrupt = run, interrupt
        # A chunk that was begun when the checkpoint was written has been announced.
        rows = run.driver._rows
        self.begun = run.resumed is not None and rows is not None and not rows.full()

    def __call__(self, step: Any) -> bool:
        run, callback = self.run, self.run.callback
        if not self.begun:
            callback.on_rollout_start()
            self.begun = True
        run.model.num_timesteps = step.steps
        callback.update_locals(_Locals(run, step))
        go_on = callback.on_step()
        if step.last:
            callback.on_rollout_end()
            self.begun = False
        return go_on and not self.interrupt.requested


class _Locals(Mapping):
    """What SB3's loops hold in `locals`, computed when read. With several seeds arrays are `[S, N, ...]`."""

    KEYS = ("self", "env", "callback", "obs_tensor", "actions", "rewards", "dones", "new_obs", "infos", "total_timesteps")

    def __init__(self, run: Run, step: Any):
        self._run, self._step = run, step

    def __getitem__(self, key: str) -> Any:
        run, step = self._run, self._step
        always = {"self": run.model, "callback": run.callback, "total_timesteps": run.stop}
        if key in always:
            return always[key]
        if key == "env":
            return run.model.get_env()
        if step is None or key not in self.KEYS:
            raise KeyError(key)
        if key == "infos":
            return _infos(run.driver, step.time_step)
        after = step.time_step
        value = {
            "obs_tensor": lambda: step.observed.obs,
            "actions": lambda: step.action,
            "rewards": lambda: after.reward,
            "dones": lambda: after.terminated | after.truncated,
            "new_obs": lambda: after.observed.obs,
        }[key]()
        return value[0] if run.driver.num_seeds == 1 and isinstance(value, np.ndarray) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.KEYS if self._step is not None else ("self", "env", "callback", "total_timesteps"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _infos(driver: Any, step: Any) -> list[dict[str, Any]]:
    """The environments' infos (one seed's), with SB3's entries where an episode ended."""
    infos = [dict(info) for info in getattr(driver.envs, "infos", ())] or [{} for _ in range(driver.num_envs)]
    if driver.num_seeds > 1:
        return infos
    valid = True if step.valid is None else step.valid
    done = (step.terminated | step.truncated) & valid
    for n in np.flatnonzero(done[0]).tolist():
        infos[n]["terminal_observation"] = jax.tree.map(lambda x, n=n: x[0, n], step.final_obs)
        infos[n]["TimeLimit.truncated"] = bool(step.truncated[0, n] and not step.terminated[0, n])
    ended, recent = np.flatnonzero((step.reported(None, done)[2] & valid)[0]).tolist(), driver.recent(0)
    for place, n in enumerate(ended, start=-len(ended)):
        if -place <= len(recent.returns):
            infos[n]["episode"] = {"r": float(recent.returns[place]), "l": int(recent.lengths[place])}
    return infos


class _Log:
    """Turns reports into progress and into rows of the log, each at its own pace."""

    def __init__(self, run: Run):
        self.run, self.start = run, run.start
        self.began = self.shown = time.perf_counter()
        self.updates = self.logged_at = 0
        self.episodes = self._episodes() if run.log_episodes else 0
        self.metrics: Mapping[str, Any] = {}  # of the last update, until they are logged
        if run.resumed is not None:
            kept = run.resumed["log"]
            self.start, self.began = run.resumed["plan"]["start"], self.began - kept["seconds"]
            self.updates, self.logged_at, self.episodes = kept["updates"], kept["logged_at"], kept["episodes"]
            self.metrics = kept["metrics"]

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        metrics = {name: float(np.mean(np.asarray(x, np.float64))) for name, x in self.metrics.items()}
        counters = {name: getattr(self, name) for name in ("updates", "logged_at", "episodes")}
        return {"seconds": time.perf_counter() - self.began, "metrics": metrics, **counters}

    def now(self) -> None:
        """Write a row with what is known at this step, whatever `log_interval` says."""
        self._write(self.run.model.num_timesteps)

    def add(self, report: Report) -> None:
        """Count a report; log and redraw where that is due."""
        run = self.run
        self.updates += report.updates
        self.metrics = report.metrics
        now = time.perf_counter()
        if now - self.shown >= PROGRESS_SECONDS or report.steps >= run.stop:
            self.shown = now
            run.progress.update(
                report.steps - run.start, self._mean(0), self._fps(report.steps), run.driver.num_seeds
            )
        if run.log_interval is None or not run.logger.output_formats:
            return
        count = self._episodes() - self.episodes if run.log_episodes else self.updates
        if count - self.logged_at >= run.log_interval:
            self.logged_at = count
            self._write(report.steps)

    def _write(self, steps: int) -> None:
        run, logger = self.run, self.run.logger
        for key, value in (("rollout/ep_rew_mean", self._mean(0)), ("rollout/ep_len_mean", self._mean(1))):
            if value is not None:
                logger.record(key, value)
        logger.record("time/fps", int(self._fps(steps)))
        if run.log_episodes:
            logger.record("time/episodes", self._episodes(), exclude="tensorboard")
        else:
            logger.record("time/iterations", self.updates, exclude="tensorboard")
        logger.record("time/time_elapsed", int(time.perf_counter() - self.began), exclude="tensorboard")
        logger.record("time/total_timesteps", steps, exclude="tensorboard")
        left = 1.0 - min(steps / max(run.stop, 1), 1.0)
        for field, key in run.logged.items():
            value = run.schedules[field](left) if field in run.schedules else getattr(run.config, field)
            if value is not None:
                logger.record(key, float(value))
        for key, value in self.metrics.items():
            value = float(np.mean(np.asarray(value, np.float64)))
            # NaN: nothing was learned in this update. The guard's own count is no result.
            if key != NONFINITE and not np.isnan(value):
                logger.record(key, value)
        self.metrics = {}
        logger.dump(steps)

    def _mean(self, column: int) -> float | None:
        """Mean return (0) or length (1) of each seed's last episodes, over seeds."""
        recent = [run[column] for run in map(self.run.driver.recent, range(self.run.driver.num_seeds))]
        means = [x.mean() for x in recent if len(x)]
        return float(np.mean(means)) if means else None

    def _episodes(self) -> int:
        return self.run.driver.episodes()

    def _fps(self, steps: int) -> float:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        return (steps - self.start) * self.run.driver.num_seeds / seconds
