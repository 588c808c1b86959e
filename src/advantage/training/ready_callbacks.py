"""Ready-made callbacks with Stable-Baselines3's names: evaluation, model files, stop rules, events, progress.

Every frequency counts environment steps over the parallel environments (of each seed), never calls. What has
a frequency acts at the first call at or after each of its multiples. So the steps at which it acts depend
neither on where training began nor on how it was divided into calls of `learn`. On JAX environments there is
one call per segment, and several multiples within one segment count once.

Interface: https://stable-baselines3.readthedocs.io/en/master/guide/callbacks.html
"""

from __future__ import annotations

import io
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from advantage.envs.normalise import sync_envs_normalization
from advantage.disk import replace_file
from advantage.training.callbacks import BaseCallback, ConvertCallback, as_callback
from advantage.training.evaluation import (
    Episodes,
    check_epsilon,
    check_spaces,
    evaluate_every_seed,
    spec_to_evaluate,
)
from advantage.training.hyperparameters import whole
from advantage.training.progress import LiveProgress

__all__ = [
    "CheckpointCallback",
    "EvalCallback",
    "MaskableEvalCallback",
    "EventCallback",
    "EveryNTimesteps",
    "LogEveryNTimesteps",
    "ProgressBarCallback",
    "StopTrainingOnMaxEpisodes",
    "StopTrainingOnNoModelImprovement",
    "StopTrainingOnRewardThreshold",
]

Folder = str | os.PathLike[str]


# -- how often ------------------------------------------------------------------------------------------


class Multiples:
    """Notices when environment steps reach or pass a multiple of a frequency."""

    def __init__(self) -> None:
        self.before = 0

    def start(self, steps: int) -> None:
        """Multiples up to this step are past."""
        self.before = steps

    def reached(self, every: int, steps: int) -> bool:
        """Whether there is a multiple of `every` after the last call's step and not after this one's."""
        reached = steps // every > self.before // every
        self.before = steps
        return reached


def divided_by_hand(frequency: int, n_envs: int) -> int | None:
    """The frequency that `frequency` looks like after SB3's advice `max(freq // n_envs, 1)`, or None.

    Here that advice would divide twice. A value looks divided where

    - it is smaller than `n_envs`, that is, due at every vector step (given back as `n_envs`), or
    - it is `round // n_envs` of a round number (1, 2, 2.5 or 5 times a power of ten) and is itself no number
      that people write by choice: one of at most two significant digits, or a multiple of 64.

    So 125 with 8 environments (1,000) and 3,333 with 3 (10,000) do. 500, 2,500, 2,048 and 10,000 never do,
    unless there are more environments than that.
    """
    if n_envs == 1:
        return None
    if frequency < n_envs:
        return n_envs
    if len(str(frequency).rstrip("0")) < 3 or frequency % 64 == 0:
        return None
    # `round // n_envs` is the frequency for every number in this range.
    low, high = frequency * n_envs, frequency * n_envs + n_envs - 1
    power = 10 ** (len(str(low)) - 2)
    rounds = (digits * power for digits in (10, 20, 25, 50, 100))
    return next((number for number in rounds if low <= number <= high), None)


def _warn_if_divided(name: str, frequency: int, n_envs: int) -> None:
    whole = divided_by_hand(frequency, n_envs)
    if whole is None:
        return
    meant = "every vector step" if whole == n_envs else f"{whole:,} // {n_envs}"
    warnings.warn(
        f"{name}={frequency} counts environment steps over all {n_envs} environments, not calls, and looks"
        f" like {meant}: give the number of environment steps, undivided",
        UserWarning,
        stacklevel=2,
    )


# -- events ---------------------------------------------------------------------------------------------


class EventCallback(BaseCallback):
    """A callback that triggers another one at an event; subclass it and call `_on_event` there.

    What is triggered gets `on_step` at events only, `on_training_start` and `on_training_end` as always, and
    no rollout events.

    Args:
        callback: what is triggered: a callback, a function `f(locals, globals)`, or a list of these; None for
            nothing.
        verbose: 0 for no output, 1 for messages.

    Raises:
        TypeError: `callback` is something else.
    """

    def __init__(self, callback: Any = None, verbose: int = 0):
        super().__init__(verbose)
        self.callback = self._child(callback)

    def init_callback(self, model: Any) -> None:
        # Not in `_init_callback`: subclasses override that one without calling it here.
        super().init_callback(model)
        for child in self.children():
            child.init_callback(model)

    def update_child_locals(self, locals_: Mapping[str, Any]) -> None:
        for child in self.children():
            child.update_locals(locals_)

    def _on_training_start(self) -> None:
        for child in self.children():
            child.on_training_start(self.locals, self.globals)

    def _on_training_end(self) -> None:
        for child in self.children():
            child.on_training_end()

    def _on_step(self) -> bool | None:
        """Nothing happens between events."""

    def _on_event(self) -> bool:
        """Trigger the callback; False where it stops training."""
        return _triggered(self.callback)

    def _child(self, callback: Any) -> BaseCallback | None:
        """A callback that knows its parent before it is bound to a model."""
        if callback is None:
            return None
        child = as_callback(callback)
        child.parent = self
        return child

    def children(self) -> list[BaseCallback]:
        return [] if self.callback is None else [self.callback]


class EveryNTimesteps(EventCallback):
    """Trigger a callback at every multiple of `n_steps` environment steps.

    Args:
        n_steps: environment steps over the parallel environments (of each seed).
        callback: what is triggered, as for `EventCallback`.

    Attributes:
        last_time_trigger: environment steps at the last event.

    Raises:
        ValueError: `n_steps` is not a whole number of at least 1.
        TypeError: `callback` is no callback.
    """

    RESUMED = ("last_time_trigger",)

    def __init__(self, n_steps: int | float, callback: Any):
        super().__init__(callback)
        self.n_steps = whole("n_steps", n_steps)
        self.last_time_trigger = 0
        self._multiples = Multiples()

    def _on_training_start(self) -> None:
        self._multiples.start(self.num_timesteps)
        super()._on_training_start()

    def _on_step(self) -> bool:
        if not self._multiples.reached(self.n_steps, self.num_timesteps):
            return True
        self.last_time_trigger = self.num_timesteps
        return self._on_event()


class LogEveryNTimesteps(EveryNTimesteps):
    """Write a row of the log at every multiple of `n_steps` steps, besides those of `log_interval`.

    Args:
        n_steps: environment steps over the parallel environments (of each seed).

    Raises:
        ValueError: `n_steps` is not a whole number of at least 1.
    """

    def __init__(self, n_steps: int | float):
        super().__init__(n_steps, ConvertCallback(self._log))

    def _log(self, locals_: Mapping[str, Any], globals_: Mapping[str, Any]) -> None:
        self.model.dump_logs()


# -- evaluation and files -------------------------------------------------------------------------------


class EvalCallback(EventCallback):
    """Evaluate the model as it trains, log the result and keep the best model.

    Logs `eval/mean_reward`, `eval/mean_ep_length`, `time/total_timesteps` and, where the infos at the ends of
    episodes have `is_success`, `eval/success_rate`. Evaluation never changes training: see `evaluate_policy`,
    also for what `eval_env` may be. An id and a JAX environment give the same episodes at every evaluation.

    With several seeds every agent plays `n_eval_episodes`. What is logged and compared is the mean over all
    episodes of all seeds, and the best model is saved with all its seeds.

    A model that normalises is evaluated by its own statistics of the moment, and saved with these. Returns stay
    raw; where rewards are normalised, `eval/mean_normalized_reward` is logged too: returns divided by the scale of
    rewards. A `VecNormalize` as `eval_env` is taken off, and gets a copy of the statistics, as in SB3.

    Args:
        eval_env: an id, a Gymnasium environment, a `DummyVecEnv` (in a `VecNormalize` too), a `gymnasium.vector` or
            a JAX environment.
        callback_on_new_best: triggered after an evaluation with the highest mean return so far.
        callback_after_eval: triggered after every evaluation.
        n_eval_episodes: episodes of one evaluation, for each seed.
        eval_freq: environment steps between evaluations, over the parallel environments (of each seed).
        log_path: folder for `evaluations.npz`, written anew at each evaluation, with the arrays
            `timesteps [E]`, `results [E, episodes]` (returns), `ep_lengths [E, episodes]` and, where the
            environment reports it, `successes [E, episodes]`; with several seeds `[E, S, episodes]`. None: no
            file.
        best_model_save_path: folder for `best_model.zip`. None: it is not saved.
        deterministic: the best action instead of a sampled one.
        render: call the environment's `render()` after every step.
        verbose: 0 for no output, 1 for the results.
        warn: warn where a wrapper of `eval_env` changes rewards and nothing keeps the unchanged ones.
        epsilon: probability of a random action, as for `evaluate_policy`: Atari agents need some to be evaluated.

    Attributes:
        best_mean_reward: the highest mean return so far; minus infinity before the first evaluation.
        last_mean_reward: the mean return of the last evaluation.
        evaluations_timesteps, evaluations_results, evaluations_length, evaluations_successes: what the file
            holds, as lists with an entry for each evaluation.

    Raises:
        ValueError: `n_eval_episodes` or `eval_freq` is not a whole number of at least 1, `epsilon` is no
            probability, or there is no such id; when training starts, `eval_env` has other spaces than the model.
        TypeError: `eval_env` is no environment, or a callback is none.
        OSError: when training starts, a folder cannot be made.
    """

    use_masking = True  # choose legal actions only, where `eval_env` says which ones are
    RESUMED = (
        "best_mean_reward", "last_mean_reward", "evaluations_timesteps", "evaluations_results", "evaluations_length",
        "evaluations_successes",
    )  # fmt: skip

    def __init__(
        self,
        eval_env: Any,
        callback_on_new_best: Any = None,
        callback_after_eval: Any = None,
        n_eval_episodes: int = 5,
        eval_freq: int | float = 10_000,
        log_path: Folder | None = None,
        best_model_save_path: Folder | None = None,
        deterministic: bool = True,
        render: bool = False,
        verbose: int = 1,
        warn: bool = True,
        *,
        epsilon: float = 0.0,
    ):
        super().__init__(callback_after_eval, verbose)
        self.callback_on_new_best = self._child(callback_on_new_best)
        self.n_eval_episodes = whole("n_eval_episodes", n_eval_episodes)
        self.eval_freq = whole("eval_freq", eval_freq)
        self.eval_env, self._spec = eval_env, spec_to_evaluate(eval_env)
        self.log_path = None if log_path is None else os.path.join(log_path, "evaluations")
        self.best_model_save_path = best_model_save_path
        self.deterministic, self.render, self.warn, self.epsilon = deterministic, render, warn, check_epsilon(epsilon)
        self.best_mean_reward = self.last_mean_reward = -np.inf
        self.evaluations_timesteps: list[int] = []
        self.evaluations_results: list[np.ndarray] = []
        self.evaluations_length: list[np.ndarray] = []
        self.evaluations_successes: list[np.ndarray] = []
        self._multiples = Multiples()
        self._told = False

    def _init_callback(self) -> None:
        check_spaces(self.model, self._spec)
        for folder in (self.best_model_save_path, self.log_path and os.path.dirname(self.log_path)):
            if folder is not None:
                Path(folder).mkdir(parents=True, exist_ok=True)
        if self.parent is None and not self._told:
            self._told = True
            _warn_if_divided("eval_freq", self.eval_freq, self.model.n_envs)

    def _on_training_start(self) -> None:
        self._multiples.start(self.num_timesteps)
        super()._on_training_start()

    def _on_step(self) -> bool:
        if not self._multiples.reached(self.eval_freq, self.num_timesteps):
            return True
        sync_envs_normalization(self.model.get_vec_normalize_env(), self.eval_env)
        episodes = evaluate_every_seed(
            self.model, self.eval_env, self.n_eval_episodes, self.deterministic, self.render, self.warn,
            use_masking=self.use_masking, epsilon=self.epsilon,
        )  # fmt: skip
        self.last_mean_reward = float(episodes.returns.mean())
        self._keep(episodes)
        self._log(episodes)
        go_on = True
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            go_on = self._on_new_best()
        # Both are triggered, also where the first one stops training: rules that count evaluations see all.
        return self._on_event() and go_on

    def _on_new_best(self) -> bool:
        if self.verbose >= 1:
            print("a new best mean return")
        if self.best_model_save_path is not None:
            self.model.save(os.path.join(self.best_model_save_path, "best_model.zip"))
        return _triggered(self.callback_on_new_best)

    def _keep(self, episodes: Episodes) -> None:
        """Add an evaluation to the lists and to the file."""
        # One seed's rows have SB3's shape.
        returns, lengths, successes = (x[0] if len(x) == 1 else x for x in episodes)
        self.evaluations_timesteps.append(self.num_timesteps)
        self.evaluations_results.append(returns)
        self.evaluations_length.append(lengths)
        self.evaluations_successes.append(successes)
        if self.log_path is None:
            return
        rows = {
            "timesteps": self.evaluations_timesteps,
            "results": self.evaluations_results,
            "ep_lengths": self.evaluations_length,
        }
        if not np.isnan(self.evaluations_successes).all():
            rows["successes"] = self.evaluations_successes
        data = io.BytesIO()
        np.savez(data, **{name: np.asarray(row) for name, row in rows.items()})
        replace_file(Path(f"{self.log_path}.npz"), data.getvalue())

    def _log(self, episodes: Episodes) -> None:
        """A row of the log, and lines on the screen."""
        returns, lengths = episodes.returns, episodes.lengths
        self.logger.record("eval/mean_reward", self.last_mean_reward)
        self.logger.record("eval/mean_ep_length", float(lengths.mean()))
        scales = self.model.reward_scales()
        if scales is not None:
            self.logger.record("eval/mean_normalized_reward", float((returns / scales[:, None]).mean()))
        said = f"length {lengths.mean():.1f} +/- {lengths.std():.1f}"
        if not np.isnan(episodes.successes).all():
            rate = float(np.nanmean(episodes.successes))
            self.logger.record("eval/success_rate", rate)
            said += f", success rate {rate:.1%}"
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            print(
                f"evaluation at step {self.num_timesteps:,} ({returns.size} episodes):"
                f" return {returns.mean():.2f} +/- {returns.std():.2f}, {said}"
            )

    def children(self) -> list[BaseCallback]:
        new_best = [] if self.callback_on_new_best is None else [self.callback_on_new_best]
        return [*new_best, *super().children()]


class MaskableEvalCallback(EvalCallback):
    """SB3-contrib's name for `EvalCallback`, which masks by itself; `use_masking=False` lets it choose any action."""

    def __init__(self, *args: Any, use_masking: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.use_masking = use_masking


class CheckpointCallback(BaseCallback):
    """Save the model at every multiple of `save_freq` steps, as `{name_prefix}_{steps}_steps.zip`.

    A file holds the model of that moment, with all its seeds, as `model.save` writes it: parameters as after
    the last update. All that a run needs to go on is in the checkpoints of `learn(checkpoint_dir=...)`.

    Args:
        save_freq: environment steps between files, over the parallel environments (of each seed).
        save_path: their folder, made when training starts.
        name_prefix: how their names begin.
        save_replay_buffer: also save the replay memory, where the algorithm keeps one, as
            `model.load_replay_buffer` reads it: `{name_prefix}_replay_buffer_{steps}_steps.pkl` (SB3's name; no
            pickle).
        save_vecnormalize: also save the statistics, where the model normalises, as `VecNormalize.load` reads
            them: `{name_prefix}_vecnormalize_{steps}_steps.pkl` (SB3's name; no pickle). The model's file has
            them too.
        verbose: 0 for no output, 2 for a line with each file's name.

    Raises:
        ValueError: `save_freq` is not a whole number of at least 1, or `name_prefix` is no part of a file name.
        OSError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        save_freq: int | float,
        save_path: Folder,
        name_prefix: str = "rl_model",
        save_replay_buffer: bool = False,
        save_vecnormalize: bool = False,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.save_freq = whole("save_freq", save_freq)
        self.save_path, self.name_prefix = save_path, name_prefix
        self.save_replay_buffer, self.save_vecnormalize = save_replay_buffer, save_vecnormalize
        if os.path.basename(name_prefix) != name_prefix:
            raise ValueError(f"name_prefix={name_prefix!r} has to be part of a file name: folders go in save_path")
        self._multiples = Multiples()
        self._told = False

    def _init_callback(self) -> None:
        Path(self.save_path).mkdir(parents=True, exist_ok=True)
        # Triggered by another callback, SB3's scripts write 1: at each of its events.
        if self.parent is None and not self._told:
            self._told = True
            _warn_if_divided("save_freq", self.save_freq, self.model.n_envs)

    def _on_training_start(self) -> None:
        self._multiples.start(self.num_timesteps)

    def _on_step(self) -> None:
        if self._multiples.reached(self.save_freq, self.num_timesteps):
            path = os.path.join(self.save_path, f"{self.name_prefix}_{self.num_timesteps}_steps.zip")
            self.model.save(path)
            statistics = self.model.get_vec_normalize_env() if self.save_vecnormalize else None
            if statistics is not None:
                name = f"{self.name_prefix}_vecnormalize_{self.num_timesteps}_steps.pkl"
                statistics.save(os.path.join(self.save_path, name))
            if self.save_replay_buffer and hasattr(self.model.algorithm, "learn"):
                name = f"{self.name_prefix}_replay_buffer_{self.num_timesteps}_steps.pkl"
                self.model.save_replay_buffer(os.path.join(self.save_path, name))
            if self.verbose >= 2:
                print(f"saved the model to {path}")


# -- when to stop ---------------------------------------------------------------------------------------


class _EvaluationRule(BaseCallback):
    """A stop rule that reads the results of the `EvalCallback` that triggers it."""

    parent: Any
    place: str
    """The argument of `EvalCallback` that it belongs to."""

    def _init_callback(self) -> None:
        if not hasattr(self.parent, "best_mean_reward"):
            name = type(self).__name__
            raise ValueError(
                f"{name} reads evaluations, and no EvalCallback triggers it:"
                f" give it as EvalCallback(..., {self.place}={name}(...))"
            )


class StopTrainingOnRewardThreshold(_EvaluationRule):
    """Stop as soon as the best mean return of evaluations reaches a threshold.

    Belongs into `EvalCallback(..., callback_on_new_best=...)`.

    Args:
        reward_threshold: the mean return per episode that is good enough.
        verbose: 0 for no output, 1 for a line when it stops.

    Raises:
        ValueError: `reward_threshold` is not a number; when training starts, no `EvalCallback` triggers it.
    """

    place = "callback_on_new_best"

    def __init__(self, reward_threshold: int | float, verbose: int = 0):
        super().__init__(verbose)
        if reward_threshold != reward_threshold:
            raise ValueError("reward_threshold=nan is never reached: give the return that is good enough")
        self.reward_threshold = reward_threshold

    def _on_step(self) -> bool:
        go_on = bool(self.parent.best_mean_reward < self.reward_threshold)
        if self.verbose >= 1 and not go_on:
            best, threshold = self.parent.best_mean_reward, self.reward_threshold
            print(f"training stops: the mean return {best:.2f} has reached the threshold {threshold}")
        return go_on


class StopTrainingOnNoModelImprovement(_EvaluationRule):
    """Stop after more than a number of evaluations in a row without a new best mean return.

    Belongs into `EvalCallback(..., callback_after_eval=...)`.

    Args:
        max_no_improvement_evals: how many evaluations in a row may bring nothing; one more stops.
        min_evals: the first evaluations that are not counted.
        verbose: 0 for no output, 1 for a line when it stops.

    Attributes:
        no_improvement_evals: evaluations since the last new best one.
        last_best_mean_reward: the best mean return up to the last evaluation.

    Raises:
        ValueError: a number is not whole, or negative; when training starts, no `EvalCallback` triggers it.
    """

    place = "callback_after_eval"
    RESUMED = ("last_best_mean_reward", "no_improvement_evals")

    def __init__(self, max_no_improvement_evals: int | float, min_evals: int | float = 0, verbose: int = 0):
        super().__init__(verbose)
        self.max_no_improvement_evals = whole("max_no_improvement_evals", max_no_improvement_evals, 0)
        self.min_evals = whole("min_evals", min_evals, 0)
        self.last_best_mean_reward = -np.inf
        self.no_improvement_evals = 0

    def _on_step(self) -> bool:
        best = self.parent.best_mean_reward
        if self.n_calls > self.min_evals:
            more = self.no_improvement_evals + 1
            self.no_improvement_evals = 0 if best > self.last_best_mean_reward else more
        self.last_best_mean_reward = best
        go_on = self.no_improvement_evals <= self.max_no_improvement_evals
        if self.verbose >= 1 and not go_on:
            count = self.no_improvement_evals
            print(f"training stops: no new best mean return in the last {count} evaluations")
        return go_on


class StopTrainingOnMaxEpisodes(BaseCallback):
    """Stop after `max_episodes * n_envs` episodes, for each seed; all calls of `learn` count together.

    With several seeds it is their mean that counts. On JAX environments training stops at the end of the
    segment in which the number is reached.

    Args:
        max_episodes: episodes, on average over the parallel environments.
        verbose: 0 for no output, 1 for a line when it stops.

    Attributes:
        n_episodes: episodes so far, of all environments and seeds.

    Raises:
        ValueError: `max_episodes` is not a whole number of at least 1.
    """

    RESUMED = ("n_episodes",)

    def __init__(self, max_episodes: int | float, verbose: int = 0):
        super().__init__(verbose)
        self.max_episodes = whole("max_episodes", max_episodes)
        self.n_episodes = 0
        self._seen = 0

    def _on_training_start(self) -> None:
        self._seen = self.model._driver.episodes()

    def _on_step(self) -> bool:
        # The driver's count, not `dones`: with JAX environments nobody sees single steps.
        finished = self.model._driver.episodes()
        self.n_episodes += finished - self._seen
        self._seen = finished
        go_on = self.n_episodes < self.max_episodes * self.model.n_envs * self.model.num_seeds
        if self.verbose >= 1 and not go_on:
            print(
                f"training stops at step {self.num_timesteps:,}: {self.n_episodes} episodes are"
                f" max_episodes={self.max_episodes} for each environment"
            )
        return go_on


# -- on the screen --------------------------------------------------------------------------------------


class ProgressBarCallback(BaseCallback):
    """Show how far training is: the bar of `learn(..., progress_bar=True)`, with steps and speed only."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: LiveProgress | None = None

    def _on_training_start(self) -> None:
        self._start, self._began = self.num_timesteps, time.perf_counter()
        total = int(self.locals["total_timesteps"]) - self._start
        self._bar = LiveProgress(total, type(self.model).__name__)
        self._bar.phase("compiling")
        self._bar.__enter__()

    def _on_step(self) -> None:
        if self._bar is not None:
            done, seeds = self.num_timesteps - self._start, self.model.num_seeds
            seconds = max(time.perf_counter() - self._began, 1e-9)
            self._bar.update(done, fps=done * seeds / seconds, seeds=seeds)

    def _on_training_end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


# -- help -----------------------------------------------------------------------------------------------


def _triggered(callback: BaseCallback | None) -> bool:
    """Whether training goes on after a callback, if there is one; only False stops it."""
    if callback is None:
        return True
    go_on = callback.on_step()
    return go_on is None or bool(go_on)
