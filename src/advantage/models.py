"""The familiar face: `PPO("MlpPolicy", env, learning_rate=3e-4).learn(100_000)`, in SB3's words.

A face builds a `Config`, a driver for the kind of environment given, and holds what was learned. There
is no algorithm in here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import pathlib
import uuid
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

import advantage
from advantage.algorithms import a2c, c51, crossq, ddpg, discrete_sac, double_dqn, dqn, iqn, ppo, qrdqn, rainbow, reinforce, sac, td3, tqc, trpo
from advantage.algorithms.normalised import Normalised, normalised_agent
from advantage.algorithms.recurrent import Recurrent, RecurrentOnPolicy
from advantage.drivers.common import streams
from advantage.drivers.filed import filed_or_refused
from advantage.drivers.fused import FusedDriver
from advantage.drivers.hindsight import FurtherRows
from advantage.drivers.host import HostDriver
from advantage.drivers.snapshot import memory as memory_of
from advantage.envs.atari import is_atari_id
from advantage.envs.goal_rewards import GoalRewards
from advantage.envs.jax import is_jax_env
from advantage.envs.masking import given_masks, require_masks, spec_of
from advantage.envs.make import host_envs, is_gymnasium_id, reserve_threads, resolve_env
from advantage.envs.normalise import VecNormalize, taken_off
from advantage.envs.running import is_normalised
from advantage.envs.vec_env import DummyVecEnv, known_kind
from advantage.envs.vector import HostEnvs, to_rows
from advantage.equations.schedules import Linear, Schedule
from advantage.memory.goals import HerReplayBuffer, Hindsight
from advantage.memory.prioritised import PrioritizedReplayBuffer
from advantage.memory.replayed import WINDOWS, kind_of, with_memory
from advantage.memory.sequences import check_windows
from advantage.memory.settings import replay_settings
from advantage.networks import dueling
from advantage.networks.extractors import check_policy, with_policy
from advantage.networks.policy_kwargs import EXTRACTOR_WORDS, network_fields
from advantage.networks.recurrent import Recurrence
from advantage.normalising import Held, composed, merged, plain_settings, read, settings_of, taking
from advantage.training import loggers
from advantage.training.callbacks import as_callback
from advantage.training.checkpoints import Checkpoints, NotACheckpoint
from advantage.training.checkpoints import find as find_checkpoint
from advantage.training.checkpoints import read as read_checkpoint
from advantage.training.files import NotAModel, Target, named_arrays, read_model, restored, write_arrays, write_model
from advantage.training.hyperparameters import (
    configured,
    describe,
    describe_schedule,
    undescribe,
    undescribe_schedule,
    undisturbed,
    whole,
)
from advantage.training.loop import Run, train
from advantage.training.progress import LiveProgress
from advantage.training.resuming import (
    KEPT,
    check_env_id,
    check_normalised,
    check_versions,
    env_is_plain,
    env_to_resume,
    planned_checkpoints,
    require_in_memory,
    restore_driver,
    take_memory,
)
from advantage.types import Agent, Observed, Space, Spec

# What a face takes besides its algorithm's hyper-parameters, with defaults; SB3's names, then ours.
FACE_OPTIONS: dict[str, Any] = {
    "stats_window_size": 100,
    "tensorboard_log": None,
    "policy_kwargs": None,
    "verbose": 0,
    "seed": None,
    "device": "auto",
    "n_envs": 1,
    "seeds": 1,
    "normalize": False,
    "vec_env": "sync",
}
# What faces of algorithms with a replay memory take besides, with what `help` says; all are None by default.
REPLAY_OPTIONS = {
    "replay_buffer_class": "HerReplayBuffer relabels goals in hindsight, PrioritizedReplayBuffer draws what surprised most; None: neither",
    "replay_buffer_kwargs": "the settings of replay_buffer_class",
}
STORED_OPTIONS = ("seed", "verbose", "stats_window_size", "n_envs", "vec_env")
# Fields that the face fills from elsewhere: `policy_kwargs`, or the driver.
HIDDEN_FIELDS = {
    "net_arch", "activation_fn", "ortho_init", "log_std_init", "full_std", "use_expln",
    "features_extractor", "exploration_rate", "n_critics", "clip_mean", "n_quantiles",
    "batch_norm_momentum", "batch_norm_eps", "renorm_warmup_steps", "replay_beta",
    "block", "layer_norm", "dropout_rate", "recurrence", "share_features_extractor",
}  # fmt: skip


POLICIES = (
    "MlpPolicy", "CnnPolicy", "MultiInputPolicy", "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy",
)  # fmt: skip


@functools.cache  # programs are compiled for an agent: one object for each algorithm
def agent_of(algorithm: Any, prioritised: PrioritizedReplayBuffer | None = None) -> Agent:
    """An algorithm with its update and its memory, which may be `prioritised`."""
    inner = algorithm.algorithm if isinstance(algorithm, Normalised) else algorithm
    if hasattr(algorithm, "learn"):
        agent = with_memory(algorithm, WINDOWS if isinstance(inner, Recurrent) else kind_of(prioritised))
    else:
        agent = Agent(algorithm, algorithm.update, _no_memory)
    return normalised_agent(agent) if isinstance(algorithm, Normalised) else agent


def replay_bytes(
    algorithm: Any, config: Any, spec: Spec, num_envs: int, prioritised: PrioritizedReplayBuffer | None = None
) -> int:
    """Bytes of one seed's replay memory, which is not allocated for it; 0 where nothing is remembered."""
    arrays = replay_shapes(algorithm, config, spec, num_envs, prioritised)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))


def replay_shapes(
    algorithm: Any, config: Any, spec: Spec, num_envs: int, prioritised: PrioritizedReplayBuffer | None = None
) -> PyTree:
    """Shapes and dtypes of one seed's replay memory."""
    make = agent_of(algorithm, prioritised).init_memory
    return jax.eval_shape(lambda: make(config, spec, num_envs))


def _no_memory(config: Any, spec: Spec, num_envs: int) -> tuple[()]:
    return ()


class Model:
    """What all faces share. Use `DQN`, `PPO`, ..."""

    algorithm: ClassVar[ModuleType]
    about: ClassVar[ModuleType | None] = None  # whose docstring names the paper; the algorithm's by default
    log_interval: ClassVar[int]
    log_episodes: ClassVar[bool]
    policies: ClassVar[tuple[str, ...]] = POLICIES  # what it takes; the first one is that of the command line
    masks_needed: ClassVar[bool] = False  # whether environments have to say which actions are legal
    defaults: ClassVar[Mapping[str, Any]] = {}  # of hyper-parameters, where they are not the algorithm's

    def __init__(self, policy: str, env: Any = None, *args: Any, **kwargs: Any):
        options, fields = self._arguments(args, kwargs)
        reserve_threads(env)
        replay = replay_settings(*(options[name] for name in REPLAY_OPTIONS))
        self._set(
            policy=_known_policy(policy, type(self)), verbose=options["verbose"], tensorboard_log=options["tensorboard_log"],
            policy_kwargs=dict(options["policy_kwargs"] or {}), stats_window_size=options["stats_window_size"],
            num_timesteps=0, num_seeds=whole("seeds", options["seeds"]), _env=None, _driver=None, _spec=None,
            _state=None, _logger=None, _given_logger=None, _run=None, _run_id=None, _resumed=None, env_id=None,
            _acting={}, _stop=0, _predictions=0, _write_log=None, _device=_device(options["device"]),
            n_envs=whole("n_envs", options["n_envs"]), _wrapper=None,
            vec_env=known_kind(options["vec_env"]), _env_plain=True,
            algorithm=composed(_recurrent(self.algorithm) if _remembers(policy) else self.algorithm, options["normalize"]),
            **{name: options[name] for name in REPLAY_OPTIONS},
            _hindsight=replay if isinstance(replay, HerReplayBuffer) else None,
            _prioritised=replay if isinstance(replay, PrioritizedReplayBuffer) else None,
        )  # fmt: skip
        self._set(_config=None, _schedules={})
        words = with_policy(self.policy_name, self.algorithm.Config, self.policy_kwargs)
        fields = {**_recurrence(policy), **network_fields(self.algorithm.Config, words), **fields}
        _check_recurrent_words(policy, self.policy_kwargs, self.algorithm)
        own = {name: value for name, value in self.defaults.items() if name not in REPLAY_OPTIONS}
        config, schedules = configured(self.algorithm.Config(**own), {}, fields)
        seed = options["seed"]
        self._set(_config=config, _schedules=schedules, seed=None if seed is None else whole("seed", seed, 0))
        if env is not None:
            self._attach(env, self.n_envs, self.vec_env)

    # -- training --------------------------------------------------------------------------------

    def learn(
        self,
        total_timesteps: int | float | None = None,
        callback: Any = None,
        log_interval: int | None = -1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | float | None = None,
        checkpoint_keep: int | float | None = KEPT,
    ) -> Model:
        """Train for `total_timesteps` environment steps (of each seed), exactly.

        Args:
            total_timesteps: left out after `resume`, which goes on to the end that was planned.
            callback: a function `f(locals, globals) -> bool`, a `BaseCallback`, or a list of these.
            log_interval: rollouts (on-policy) or episodes (off-policy) between logs; None: no log.
            tb_log_name: the run's name under `tensorboard_log`; the algorithm's by default.
            reset_num_timesteps: begin new episodes and count from 0, else go on.
            progress_bar: show live progress.
            checkpoint_dir: folder for checkpoints, from which `resume` goes on; the last one is written when
                training ends or is stopped.
            checkpoint_every: environment steps (of each seed) between checkpoints.
            checkpoint_keep: how many of the newest stay; None: all.

        Raises:
            ValueError: no environment, or a number that is not positive; before anything is trained.
            OSError: a checkpoint cannot be written; the model is as trained so far.
            KeyboardInterrupt: after Ctrl-C; the model can go on, predict and save.
            EnvironmentFailure, TrainingFailure: see `advantage.training.loop.train`.
        """
        if self._driver is None:
            raise ValueError("this model has no environment: give one with set_env(env) or load(path, env=env)")
        resumed = self._resumed if total_timesteps is None else None
        if total_timesteps is None and resumed is None:
            raise ValueError("total_timesteps is missing: only a model from resume(...) knows where it was to end")
        run_id = resumed["run_id"] if resumed else self._run_id
        if run_id is None or (reset_num_timesteps and not resumed):
            run_id = uuid.uuid4().hex
        checkpoints = planned_checkpoints(checkpoint_dir, checkpoint_every, checkpoint_keep, resumed, run_id)
        if checkpoints is not None:
            require_in_memory(self._filed, "a checkpoint has")
        steps = resumed["plan"]["stop"] - self.num_timesteps if resumed else whole("total_timesteps", total_timesteps)
        if reset_num_timesteps and self.num_timesteps and resumed is None:
            self._driver.reset()
            self._set(num_timesteps=0)
        self._warn_of_chance(steps)
        name = tb_log_name or (resumed["plan"]["name"] if resumed else type(self).__name__)
        self._set(_logger=self._make_logger(name, reset_num_timesteps, resumed))
        if log_interval == -1:
            log_interval = resumed["plan"]["log_interval"] if resumed else self.log_interval
        run = Run(
            self, self._driver, self._config, self._active_schedules(), self.num_timesteps, self.num_timesteps + steps,
            as_callback(callback), self._logger, log_interval, self.log_episodes, self._logged(),
            LiveProgress(steps, f"{type(self).__name__} {self._env_name()}", progress_bar), name, checkpoints, resumed,
        )  # fmt: skip
        self._set(_stop=run.stop, _run=run, _run_id=run_id)
        if hasattr(self._logger, "settings"):  # a logger of the user's may know SB3's methods only
            self._logger.settings(self._settings())
        run.callback.init_callback(self)
        with self._on_device():
            train(run)
        return self

    def _warn_of_chance(self, steps: int) -> None:
        """Warn where `learn` would end before learning begins."""
        if not hasattr(self._config, "learning_starts"):
            return
        # The agent counts its steps for life; a full memory is learned from in any case.
        starts = min(self._config.learning_starts, self._config.buffer_size - 1)
        state = self._full_state()
        done = int(np.min(np.asarray(getattr(state, "inner", state).steps)))
        if done + steps <= starts:
            warnings.warn(
                f"learning_starts={self._config.learning_starts} is not reached in total_timesteps={steps}: all steps are"
                " random, nothing is learned; lower it or train longer", UserWarning, stacklevel=3,
            )  # fmt: skip

    def save_checkpoint(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Write a checkpoint of the last `learn` as it is now, also after Ctrl-C; `resume(folder)` reads it.

        Raises:
            ValueError: nothing was trained.
            OSError: it cannot be written.
        """
        if self._run is None:
            raise ValueError("save_checkpoint() writes what learn(...) has begun: nothing was trained with this model")
        require_in_memory(self._filed, "a checkpoint has")
        checkpoints = Checkpoints(folder, None, None, self._run_id)
        checkpoints.prepare()
        return checkpoints.write(self._run)

    @classmethod
    def resume(
        cls, folder: str | os.PathLike[str], env: Any = None, at: int | None = None, device: str = "auto", **overrides: Any
    ) -> Model:
        """The model of a checkpoint, ready for `learn()`, which goes on to the planned end with the same bits.

        Args:
            folder: the `checkpoint_dir` of `learn`.
            env: what the run was trained on; None makes it by its id.
            at: steps of an earlier checkpoint; None: the newest.
            overrides: functions that a file only names (a network, loss or schedule of yours), given again.

        Raises:
            NotACheckpoint: there is none, it is damaged, or it belongs to another algorithm.
            ValueError: `env` is missing, or is not the run's; the difference is named.
        """
        path = find_checkpoint(folder, at)
        header, kept = read_checkpoint(path)
        stored = read_model(path / "model.zip")[0]
        face = ALGORITHMS[stored["algorithm"]] if cls is Model else cls
        if stored["algorithm"] != face.__name__:
            name = stored["algorithm"]
            raise NotACheckpoint(f"{path} holds a run of {name}: go on with {name}.resume(...)")
        env = env_to_resume(env, stored)
        check_env_id(env if isinstance(env, str) else None, stored)
        reserve_threads(env)
        check_versions(header, stored["schedules"], overrides)
        model = face.load(path / "model.zip", device=device, **overrides)
        state, normalised = model._state, model.normalize
        model.set_env(env)
        check_env_id(model.env_id, stored)
        check_normalised(normalised, model.normalize)
        require_in_memory(model._filed, "a checkpoint has")
        model._put_state(state)  # statistics of a `VecNormalize` given here are not the run's
        with model._on_device():
            restore_driver(model._driver, model._config, kept, str(path))
        model._set(
            _predictions=header["predictions"], _resumed={**header, "folder": path.parent}, _run_id=header["run_id"]
        )
        return model

    def dump_logs(self) -> None:
        """Write a row of the log now, besides those of `log_interval`: for callbacks, while `learn` runs.

        Raises:
            ValueError: no training is going on.
        """
        if self._write_log is None:
            raise ValueError("dump_logs() writes what training shows at this moment: call it in a callback of learn")
        self._write_log()

    def _make_logger(self, name: str, reset: bool, resumed: Mapping[str, Any] | None = None) -> loggers.Logger:
        if resumed is None:
            return self._given_logger or loggers.configure_run(self.verbose, self.tensorboard_log, name, reset)
        logger = self._given_logger or loggers.resumed_logger(resumed["logger"], self.num_timesteps)
        loggers.give_pending(logger, resumed["logger"])
        return logger

    def _settings(self) -> dict[str, Any]:
        """What trackers keep of a run: hyper-parameters, also those that are functions, and the environment."""
        plain, labels = describe(self._config)
        known = {name: isinstance(s, Linear) for name, s in self._schedules.items()}
        schedules = {name: describe_schedule(s) if known[name] else "function" for name, s in self._schedules.items()}
        own = {"algorithm": type(self).__name__, "env": self._env_name(), "n_envs": self._driver.num_envs}
        own |= {"seeds": self.num_seeds, "seed": self.seed, "normalize": self.normalize}
        own |= {name: kept for name, kept in self._replay().items() if kept is not None}
        return own | plain | labels | schedules

    def _env_name(self) -> str:
        return self.env_id or type(self._env).__name__

    # -- acting ----------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
        seed_index: int = 0,
    ) -> tuple[np.ndarray, Any]:
        """`(action, state)` for one observation or a batch of them.

        Args:
            observation: `[*shape]` or `[N, *shape]`, of the observation space's structure. A model that
                normalises takes it raw; what a `VecNormalize` gave is normalised already, and known to be.
            state: what the last call returned, for policies with a memory; None: nothing is remembered.
            episode_start: `[N]` bool, where episodes begin and the memory is emptied; None: nowhere.
            deterministic: the best action instead of a sampled one.
            action_masks: `[N, choices]` bool, True where an action is legal; of one observation also a tuple by component.
            seed_index: which of the agents trained side by side acts.

        Raises:
            ValueError: the observation does not have the space's shape, nothing is legal, or `state`, `episode_start` or
                `action_masks` is of another number of observations or choices.
        """
        if not 0 <= seed_index < self.num_seeds:
            raise ValueError(f"seed_index={seed_index} has to be within the {self.num_seeds} seeds trained")
        algorithm, spec = self.algorithm, self._require_spec()
        inner = isinstance(algorithm, Normalised) and is_normalised(observation)
        if inner:
            algorithm, spec = algorithm.algorithm, algorithm.inner_spec(spec)
        obs, batch, single = _batched(spec.observation, observation)
        # As in SB3: what is handed on is kept unless an episode is said to begin.
        begins = np.full(batch, state is None) if episode_start is None else episode_start
        is_first = np.asarray(begins, bool)
        if is_first.size != batch:
            raise ValueError(f"episode_start is of {is_first.size} environments, observation of {batch}: give one for each")
        is_first = is_first.reshape(batch)
        mask = None if action_masks is None else given_masks(action_masks, spec.action, batch)
        config = undisturbed(self._config)
        with self._on_device():
            if state is None:
                state = algorithm.initial_carry(config, spec, batch)
            else:
                _check_carry(state, _carry_shapes(algorithm, config, spec, batch), batch)
            act = _acting_program(algorithm, config, not deterministic)
            self._set(_predictions=self._predictions + 1)
            actor = self._actor(seed_index).inner if inner else self._actor(seed_index)
            action, carry = act(actor, state, Observed(obs, is_first, mask), self._base_seed(), self._predictions)
        action = self.algorithm.to_env(self._spec.action, np.array(action))
        return action[0, ...] if single else action, carry if jax.tree.leaves(carry) else None

    def best_seed(self, evaluation: Any) -> int:
        """The index of the best seed, to be given as `seed_index`: a choice that is always explicit.

        Args:
            evaluation: a score per seed `[S]`, or its episodes' returns `[S, episodes]`, such as
                `advantage.training.evaluation.evaluate_seeds` gives.

        Raises:
            ValueError: the scores are not one row per seed, or all are NaN.
        """
        scores = np.asarray(evaluation, np.float64)
        if scores.ndim not in (1, 2) or scores.shape[0] != self.num_seeds or scores.size == 0:
            raise ValueError(
                f"evaluation has shape {scores.shape}, expected ({self.num_seeds},) or ({self.num_seeds}, episodes):"
                " a score per seed, or evaluate_seeds' result"
            )
        means = scores.reshape(self.num_seeds, -1).mean(axis=1)
        if np.isnan(means).all():
            raise ValueError("evaluation has a NaN in every seed: no seed is best")
        return int(np.nanargmax(means))

    def _actor(self, seed_index: int) -> PyTree:
        """The acting parameters of a seed."""

        def of_state(state: PyTree) -> PyTree:
            return jax.tree.map(jnp.array, self.algorithm.actor(undisturbed(self._resolved()[0]), state))

        return self._kept("actor", seed_index, of_state)

    def _statistics(self, seed_index: int) -> dict[str, Any]:
        """A seed's normaliser: statistics and switches, as `VecNormalize` has them."""
        return self._kept("statistics", seed_index, lambda state: read(state.normaliser))

    def _kept(self, what: str, seed_index: int, of_state: Callable[[PyTree], Any]) -> Any:
        """What is computed of a seed's state; kept until training goes on."""
        version = None if self._driver is None else self._driver.version
        now = (version, self.num_timesteps, self._config)
        if self._acting.get((what, seed_index), (None,))[0] != now:
            self._acting[what, seed_index] = (now, of_state(self._seed_state(seed_index)))
        return self._acting[what, seed_index][1]

    # -- files -----------------------------------------------------------------------------------

    def save(self, path: Target) -> None:
        """Write a model file: a path (`.zip` is added), a Path or an open binary file.

        It holds parameters, optimiser, hyper-parameters, spaces and counters of every seed, and no code.

        Raises:
            OSError: the path cannot be written.
        """
        write_model(path, self._header(self._config, self._schedules), named_arrays(self._full_state()))

    def _header(self, config: Any, schedules: Mapping[str, Schedule]) -> dict[str, Any]:
        """What a file says of this model besides its arrays."""
        plain, labels = describe(config)
        return {
            "algorithm": type(self).__name__,
            "advantage": advantage.__version__,
            "config": plain,
            "callables": labels,
            "schedules": {name: describe_schedule(s) for name, s in schedules.items()},
            "policy": self.policy_name,
            "observation_space": _plain_space(self._require_spec().observation),
            "action_space": _plain_space(self._spec.action),
            "masked": self._spec.masked,
            "stacked": self._spec.stacked,
            "env_id": self.env_id,
            "env_plain": self._env_plain,
            "counters": {"num_timesteps": self.num_timesteps, "stop": self._stop, "seeds": self.num_seeds},
            "options": {name: getattr(self, name) for name in STORED_OPTIONS},
            "normalize": self.normalize,
            **self._replay(),
        }

    def _replay(self) -> dict[str, dict[str, Any] | None]:
        """What a file says of the replay memory; None: it is not of that kind."""
        kinds = {"hindsight": self._hindsight, "prioritised": self._prioritised}
        return {name: None if one is None else dataclasses.asdict(one) for name, one in kinds.items()}

    @classmethod
    def load(cls, path: Target, env: Any = None, device: str = "auto", **overrides: Any) -> Model:
        """Read a model file; `overrides` change hyper-parameters, `env` lets it train on.

        Callables the file only names (a network or loss of your own) have to be given again by keyword.

        Raises:
            FileNotFoundError, NotAModel: there is no such file, or it is no model of this algorithm.
            ValueError: `env` has other spaces than the model.
        """
        reserve_threads(env)
        header, arrays = read_model(path)
        name = header.get("algorithm")
        if name != cls.__name__:
            raise NotAModel(f"{path} holds a {name} model: load it with {name}.load")
        options = {k: overrides.pop(k) for k in (*STORED_OPTIONS, "tensorboard_log") if k in overrides}
        for name in {"seeds", "normalize", *REPLAY_OPTIONS} & overrides.keys():
            raise TypeError(f"load takes no {name}: the file holds what was trained")
        overrides.pop("custom_objects", None)
        fields = _changed_fields(cls.algorithm, header, overrides.pop("policy_kwargs", {}))
        fields.update(cls._arguments((), overrides)[1])
        configured(cls.algorithm.Config(), {}, fields)  # what is wrong with them is not the file's fault
        try:
            model = cls._from_file(header, arrays, fields, {"device": device, **options})
        except NotAModel:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotAModel(
                f"{path} is not an advantage model or is damaged ({type(error).__name__}: {error})"
            ) from None
        if env is not None:
            model.set_env(env)
        return model

    @classmethod
    def _from_file(
        cls, header: dict[str, Any], arrays: dict[str, np.ndarray], fields: dict[str, Any], options: dict[str, Any]
    ) -> Model:
        """The model a file describes, with `fields` and `options` in place of its own; raises whatever."""
        counters, stored_options = header["counters"], header["options"]
        seeds = whole("seeds", counters["seeds"])
        if any(x.shape[:1] != (seeds,) for x in arrays.values()):
            raise NotAModel(f"the file holds arrays of another number of seeds than {seeds}: it is damaged")
        options = {k: stored_options[k] for k in STORED_OPTIONS if k in stored_options} | options
        kinds = {"hindsight": HerReplayBuffer, "prioritised": PrioritizedReplayBuffer}
        kept = {kind: header[name] for name, kind in kinds.items() if header.get(name) is not None}
        none = {name: None for name in REPLAY_OPTIONS if name in inspect.signature(cls).parameters}
        replay = dict(zip(REPLAY_OPTIONS, *kept.items(), strict=True)) if kept else none
        model = cls(header["policy"], None, seeds=seeds, normalize=header.get("normalize"), **replay, **options)
        stored = undescribe(model._config, header["config"], header["callables"], fields)
        stored |= {k: undescribe_schedule(v) for k, v in header["schedules"].items()}
        config, schedules = configured(model._config, {}, {**stored, **fields})
        spec = Spec(_space(header["observation_space"]), _space(header["action_space"]), bool(header.get("masked")), bool(header.get("stacked")))
        template = jax.eval_shape(lambda: _initial_state(model.algorithm, config, spec, seeds))
        model._set(
            _config=config, _schedules=schedules, _spec=spec, _state=restored(template, arrays, "the file"),
            num_timesteps=int(counters["num_timesteps"]), _stop=int(counters["stop"]), env_id=header.get("env_id"),
            _env_plain=header.get("env_plain", True),
        )  # fmt: skip
        return model

    def save_replay_buffer(self, path: str | os.PathLike[str]) -> None:
        """Write the replay memories of all seeds to a file of their own, beside `save`; no pickle.

        Raises:
            ValueError: the algorithm keeps none, or there is no environment, or its observations are in a file (they
                are more than memory holds, and would be in memory at once).
            OSError: the path cannot be written.
        """
        write_arrays(path, memory_of(self._replaying()))

    def load_replay_buffer(self, path: str | os.PathLike[str], truncate_last_traj: bool = True) -> None:
        """Take up what `save_replay_buffer` wrote. An episode that was going on there has no end here, and none is
        made up: nothing reaches over it, whatever `truncate_last_traj` says.

        Raises:
            FileNotFoundError, NotAModel: there is no such file, or it is of other sizes than this model's memory.
        """
        driver = self._replaying()
        with self._on_device():
            take_memory(driver, path)

    def _replaying(self) -> Any:
        if not hasattr(self.algorithm, "learn") or self._driver is None:
            why = "has no environment yet" if hasattr(self.algorithm, "learn") else "keeps no replay memory"
            raise ValueError(f"{type(self).__name__} {why}: there is nothing to save or load")
        require_in_memory(self._filed, "save_replay_buffer() and load_replay_buffer() pass")
        return self._driver

    def get_parameters(self, seed_index: int = 0) -> dict[str, dict[str, np.ndarray]]:
        """Copies of a seed's arrays by name: `{"policy": {...}, "policy.optimizer": {...}}`.

        The statistics of a normaliser are with the first.
        """
        arrays = named_arrays(self._seed_state(seed_index))
        optimizer = {k: v for k, v in arrays.items() if k.startswith((".optimizer", ".inner.optimizer"))}
        return {"policy": {k: v for k, v in arrays.items() if k not in optimizer}, "policy.optimizer": optimizer}

    def set_parameters(self, parameters: Any, exact_match: bool = True, device: str = "auto") -> None:
        """Set every seed's arrays from `get_parameters`' result, or from a model file's path.

        Raises:
            NotAModel: a name or shape does not fit (with `exact_match`, also a missing or unknown name).
        """
        state = self._full_state()
        if isinstance(parameters, Mapping):
            known = named_arrays(jax.tree.map(lambda x: x[0], state))
            current = {} if exact_match else known
            given = {k: np.asarray(v) for part in parameters.values() for k, v in part.items()}
            unknown = sorted(set(given) - set(known))
            if exact_match and unknown:
                raise NotAModel(f"parameters has {unknown[0]!r}, which the model lacks: drop it or set exact_match=False")
            like = jax.tree.map(lambda x: x[0], state)
            one = restored(like, {**current, **given}, "parameters")
            new = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], self.num_seeds, axis=0), one)
        else:
            new = restored(state, read_model(parameters)[1], str(parameters))
        self._put_state(new)

    # -- environments ----------------------------------------------------------------------------

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train on another environment of the same spaces; what was learned is kept, a replay memory is not.

        A `VecNormalize` is taken off: see `advantage.VecNormalize`.

        Raises:
            ValueError: the spaces differ, and how, or what is normalised.
        """
        state = self._full_state() if self._spec is not None else None
        # An id or a JAX environment has no number of its own.
        n_envs = self.n_envs if isinstance(env, str) or is_jax_env(env) else 1
        self._attach(env, n_envs, self.vec_env if is_gymnasium_id(env) else "sync", state)

    def get_env(self) -> Any:
        """The environments in training: a `DummyVecEnv`, a `SubprocVecEnv`, a `gymnasium.vector` or a JAX environment,
        or the `VecNormalize` that was given around them."""
        return self._env if self._wrapper is None else self._wrapper

    def _attach(self, env: Any, n_envs: int, vec_env: str, state: PyTree | None = None) -> None:
        env, wrapper = taken_off(env)
        env = resolve_env(env, n_envs, vec_env)
        if self.masks_needed:
            require_masks(env, type(self).__name__)
        if self.seed is None:
            # SB3 leaves a run without seed to chance; the number drawn is kept, so that it can be repeated.
            given = getattr(env, "first_seed", None)
            self._set(seed=int(np.random.SeedSequence().generate_state(1)[0] >> 1) if given is None else given)
        jax_env = is_jax_env(env)
        spec = spec_of(env)
        count = n_envs if jax_env else env.num_envs
        filed = self._check(spec, count, jax_env)
        algorithm = taking(self.algorithm, wrapper, spec.observation, self._spec is not None)
        agent, given = agent_of(algorithm, self._prioritised), None if wrapper is None else wrapper.now()
        with self._on_device():
            if jax_env:
                driver = FusedDriver(agent, env, self.seed, self.num_seeds, count, self.stats_window_size,
                                     devices=jax.local_devices(backend=self._device.platform))  # fmt: skip
                driver.init(self._config)
            else:
                envs = host_envs(env, self.num_seeds)
                driver = HostDriver(agent, envs, self.seed, self.stats_window_size, self._looking_back(envs))
                driver.init(self._config, filed)
        if isinstance(algorithm, Normalised):
            state = merged(driver.state, state, given)
        for one, holder in ((self._wrapper, None), (wrapper, Held(self))):
            if one is not None:
                one.attach(holder)
        self._set(
            _env=env, _driver=driver, _filed=filed, _spec=spec, n_envs=count, env_id=_env_id(env), _env_plain=env_is_plain(env), _run=None, _resumed=None, _acting={}, _wrapper=wrapper,
            algorithm=algorithm,
        )  # fmt: skip
        if state is not None:
            self._put_state(state)

    def _looking_back(self, envs: HostEnvs) -> FurtherRows | None:
        """What relabels these environments' goals; raises `ValueError` where they have none."""
        if self._hindsight is None:
            return None
        seeds = range(self.seed, self.seed + self.num_seeds)
        rewards = GoalRewards(envs)
        return FurtherRows(Hindsight(self._hindsight, envs.spec, seeds, envs.num_envs, rewards))

    def _check(self, spec: Spec, num_envs: int, fused: bool) -> bool:
        """Everything that can be known to fail before training; whether the replay's observations go to a file."""
        kind = spec.action.kind
        if kind not in self.algorithm.ACTION_SPACES:
            fit = _faces(lambda algorithm: kind in algorithm.ACTION_SPACES)
            raise ValueError(
                f"{type(self).__name__} cannot choose actions from a {kind} space, only from"
                f" {' or '.join(self.algorithm.ACTION_SPACES)}: use {' or '.join(fit) or 'another environment'}"
            )
        if kind == "box" and not spec.action.dtype.startswith("float"):
            raise ValueError(
                f"{type(self).__name__} cannot choose actions from a Box of {spec.action.dtype}: use MultiDiscrete,"
                " or a Box of float32 that the environment rounds"
            )
        if self._spec is not None and self._spec != spec:
            for name in ("observation", "action"):
                ours, theirs = getattr(self._spec, name), getattr(spec, name)
                if ours != theirs:
                    raise ValueError(
                        f"env's {name} space is {theirs.to_gymnasium()}, the model's {ours.to_gymnasium()}:"
                        " give an environment of the same spaces, or train a new model"
                    )
        notes = check_policy(self.policy_name, spec.observation, self._config.features_extractor)
        episodes = getattr(self._config, "episodes_per_update", None) is not None
        if episodes and (fused or num_envs * self.num_seeds > 1):
            raise ValueError(
                f"train_freq={self._config.train_freq} counts episodes, which works with one Gymnasium environment"
                " and one seed only: give a number of steps"
            )
        if self._hindsight is not None and fused:
            raise ValueError("HerReplayBuffer works with Gymnasium's environments only, and env is a JAX environment")
        if self._hindsight is not None and self._config.n_steps > 1:
            raise ValueError(
                f"n_steps={self._config.n_steps} cannot be used with HerReplayBuffer: each relabelled transition has a"
                " goal of its own, and no return goes on to the next one; leave n_steps out"
            )
        if _remembers(self.policy_name) and hasattr(self.algorithm, "learn"):
            self._check_memory(num_envs)
        for note in notes + self._config.check(spec, num_envs):
            warnings.warn(note, UserWarning, stacklevel=5)
        return self._check_room(spec, num_envs, fused)

    def _check_memory(self, num_envs: int) -> None:
        """Raise `ValueError` for what a recurrent policy that learns from a replay cannot be combined with."""
        if self.replay_buffer_class is not None:
            raise ValueError(
                f"replay_buffer_class={self.replay_buffer_class.__name__} cannot be used with policy={self.policy_name!r},"
                " which remembers whole sequences as they happened: leave it out"
            )
        check_windows(self._config, num_envs)

    def _check_room(self, spec: Spec, num_envs: int, fused: bool) -> bool:
        """Whether the replay's observations go to a file (with a note); `ValueError` where all seeds' fit nowhere."""
        if not hasattr(self._config, "buffer_size"):
            return False
        arrays = replay_shapes(self.algorithm, self._config, spec, num_envs, self._prioritised)
        note = filed_or_refused(arrays, self.num_seeds, self._config.buffer_size, self._device, fused)
        if note is not None:
            warnings.warn(note, UserWarning, stacklevel=5)
        return note is not None

    # -- what was learned --------------------------------------------------------------------------

    def _full_state(self) -> PyTree:
        """`State` of every seed `[S, ...]`."""
        return self._state if self._driver is None else self._driver.state

    def _seed_state(self, seed_index: int) -> PyTree:
        if self._driver is None:
            return jax.tree.map(lambda x: x[seed_index], self._state)
        return self._driver.seed_state(seed_index)

    def _put_state(self, state: PyTree) -> None:
        self._acting.clear()
        if self._driver is None:
            self._set(_state=state)
        else:
            with self._on_device():
                self._driver.state = jax.tree.map(jnp.array, state)

    @property
    def logger(self) -> loggers.Logger:
        """The logger of the last `learn`, or the one set."""
        if self._logger is None:
            self._set(_logger=self._make_logger(type(self).__name__, True))
        return self._logger

    def set_logger(self, logger: loggers.Logger) -> None:
        """Log to this logger from now on."""
        self._set(_logger=logger, _given_logger=logger)

    @property
    def observation_space(self) -> gymnasium.Space:
        """The observations' space."""
        return self._require_spec().observation.to_gymnasium()

    @property
    def action_space(self) -> gymnasium.Space:
        """The actions' space."""
        return self._require_spec().action.to_gymnasium()

    @property
    def device(self) -> jax.Device:
        """Where the model lives."""
        return self._device

    @property
    def policy(self) -> Policy:
        """The acting part, with SB3's `predict`."""
        return Policy(self)

    @property
    def normalize(self) -> dict[str, Any] | None:
        """How observations and rewards are normalised, by `VecNormalize`'s names; None: they are not."""
        return plain_settings(self.algorithm)

    def reward_scales(self) -> np.ndarray | None:
        """What each seed's rewards are divided by `[S]`, where they are normalised now; else None."""
        if self.normalize is None or not self._statistics(0)["norm_reward"]:
            return None
        var = [float(self._statistics(s)["ret_rms"].var) for s in range(self.num_seeds)]
        return np.sqrt(np.asarray(var) + self.normalize["epsilon"])

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The view of the normaliser: the `VecNormalize` given around the environments, or one made here for
        `normalize=True`; None where nothing is normalised, or there are no environments."""
        settings = settings_of(self.algorithm)
        if self._wrapper is not None or settings is None or self._env is None:
            return self._wrapper
        return VecNormalize.view(Held(self), settings, self._env, self.n_envs, self._spec)

    # -- hyper-parameters as attributes --------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not in the instance: hyper-parameters live in the config.
        config = self.__dict__.get("_config")
        if name.startswith("_") or config is None or name not in _field_names(type(config)):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        resolved, schedules = self._resolved()
        return schedules[name] if name in self._schedules else getattr(resolved, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "replay_beta":
            value = _beta(self._prioritised, value)
        if name in _field_names(self.algorithm.Config):
            if self._spec is not None and name in HIDDEN_FIELDS - {"exploration_rate", "replay_beta"}:
                raise ValueError(f"{name} is built into the agent: make a new model with other policy_kwargs")
            before = {"_config": self._config, "_schedules": self._schedules}
            config, schedules = configured(self._config, self._schedules, {name: value})
            self._set(_config=config, _schedules=schedules)
            try:
                if self._driver is not None:
                    self._check(self._spec, self.n_envs, is_jax_env(self._env))
                if self._spec is not None and self._built(config) != self._built(before["_config"]):
                    raise ValueError(f"{name} is built into the agent or its memory: make a new model for another")
            except ValueError:
                self._set(**before)
                raise
        elif name in REPLAY_OPTIONS:
            raise ValueError(f"{name} is built into the agent's memory: make a new model for another")
        elif name == "normalize":
            raise ValueError("normalize is built into the agent: make a new model, or give set_env a VecNormalize")
        else:
            self._set(**{name: value})

    def _built(self, config: Any) -> Any:
        """Structure, shapes and dtypes of what a config's agents consist of."""
        make_memory = agent_of(self.algorithm, self._prioritised).init_memory

        def build() -> PyTree:
            state = self.algorithm.init(config, self._spec, jnp.array(streams(0)[0]))
            carry = self.algorithm.initial_carry(config, self._spec, self.n_envs)
            return state, carry, make_memory(config, self._spec, self.n_envs)

        leaves, structure = jax.tree.flatten(jax.eval_shape(build))
        return structure, [(x.shape, x.dtype) for x in leaves]

    def _resolved(self) -> tuple[Any, dict[str, Schedule]]:
        """The config as it is at this moment of training, and the schedules."""
        schedules = self._active_schedules()
        left = 1.0 - min(self.num_timesteps / max(self._stop, 1), 1.0)
        values = {name: float(schedule(left)) for name, schedule in schedules.items()}
        return dataclasses.replace(self._config, **values), schedules

    def _active_schedules(self) -> dict[str, Schedule]:
        prioritised = {} if self._prioritised is None else {"replay_beta": self._prioritised.schedule()}
        return {**self.algorithm.schedules(self._config), **prioritised, **self._schedules}

    def _logged(self) -> dict[str, str]:
        """The log keys of hyper-parameters."""
        return self.algorithm.LOGGED | ({} if self._prioritised is None else {"replay_beta": "train/beta"})

    @property
    def policy_name(self) -> str:
        """The policy string given."""
        return self.__dict__["_policy_name"]

    def _require_spec(self) -> Spec:
        if self._spec is None:
            raise ValueError("this model has no environment yet: give one with set_env(env)")
        return self._spec

    def _base_seed(self) -> int:
        return self.seed or 0

    def _on_device(self) -> contextlib.AbstractContextManager:
        return jax.default_device(self._device)

    def _set(self, **values: Any) -> None:
        if "policy" in values:
            values["_policy_name"] = values.pop("policy")
        self.__dict__.update(values)

    @classmethod
    def _arguments(cls, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(options of the face, hyper-parameters)`; raises `TypeError` with the nearest name."""
        names = list(inspect.signature(cls).parameters)[2:]
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes at most {len(names) + 2} positional arguments")
        given = dict(zip(names, args, strict=False))
        for name in kwargs:
            if name in given:
                raise TypeError(f"{cls.__name__} got multiple values for argument {name!r}")
            if name in REPLAY_OPTIONS and name not in names:
                fit = [each for each, face in ALGORITHMS.items() if name in inspect.signature(face).parameters]
                raise TypeError(f"{cls.__name__} keeps no replay memory, so it takes no {name}: use {' or '.join(fit)}")
            if name not in names and name != "_init_setup_model":
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(names)}"
                raise TypeError(f"{cls.__name__} has no hyper-parameter {name!r}: {hint}")
        given.update(kwargs)
        given.pop("_init_setup_model", None)
        defaults = FACE_OPTIONS | {name: cls.defaults.get(name) for name in REPLAY_OPTIONS}
        if "replay_buffer_class" in given:  # settings belong to the class by default
            defaults["replay_buffer_kwargs"] = None
        options = {name: given.pop(name, default) for name, default in defaults.items()}
        return options, given

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = _signature(cls.algorithm.Config, cls.defaults)
        cls.__doc__ = f"{cls.__doc__}\n\n{_parameters_doc(cls.algorithm.Config)}"


class Policy:
    """A model's acting part: `model.policy.predict(obs)`."""

    def __init__(self, model: Model):
        self._model = model

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        """As `Model.predict`."""
        return self._model.predict(observation, *args, **kwargs)

    @property
    def parameters(self) -> PyTree:
        """The first seed's acting parameters."""
        return self._model._actor(0)

    def __repr__(self) -> str:
        return f"{self._model.policy_name}({self._model._actor(0)})"


@functools.cache
def _field_names(config_class: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(config_class))


@functools.lru_cache(maxsize=64)
def _acting_program(algorithm: Any, config: Any, explore: bool) -> Any:
    """`act` for `predict`, with a stream of its own: it never changes training."""

    def act(actor, carry, observed, seed, count):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(seed), 0x9E37), count)
        return algorithm.act(config, actor, carry, observed, key, explore)

    return jax.jit(act)


def _initial_state(algorithm: Any, config: Any, spec: Spec, seeds: int) -> PyTree:
    keys = jnp.stack([jnp.array(streams(0)[0])] * seeds)
    return jax.vmap(lambda key: algorithm.init(config, spec, key))(keys)


def _batched(space: Space, observation: Any) -> tuple[PyTree, int, bool]:
    """`(observations [N, ...], N, whether it was a single one)`."""
    try:
        rows = to_rows(space, observation)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"observation is not of the model's observation_space {space.to_gymnasium()}:"
            f" {type(error).__name__}: {error}"
        ) from None
    shapes, expected = ([x.shape for x in jax.tree.leaves(tree)] for tree in (rows, space.zeros()))
    if shapes == expected:
        return jax.tree.map(lambda x: x[None], rows), 1, True
    batch = shapes[0][:1]
    if batch and shapes == [batch + shape for shape in expected]:
        return rows, batch[0], False
    given, one = (x[0] if len(x) == 1 else x for x in (shapes, expected))
    many = ("N", *one) if isinstance(one, tuple) else [("N", *shape) for shape in one]
    raise ValueError(
        f"observation has shape {given}, expected {one} for one or {many} for a batch:"
        " give observations of the model's observation_space"
    )


def usual_policy(face: type[Model], env: Any) -> str:
    """The policy where nobody names one: one of pictures for Atari games, else the face's first."""
    of_pictures = [policy for policy in face.policies if policy.startswith("Cnn")]
    return of_pictures[0] if is_atari_id(env) and of_pictures else face.policies[0]


def _env_id(env: Any) -> str | None:
    """The id an environment was made by, where it has one."""
    first = env.envs[0] if isinstance(env, DummyVecEnv) else env
    return getattr(first, "id", None) or getattr(getattr(first, "spec", None), "id", None)


def _known_policy(policy: Any, face: type[Model]) -> str:
    if policy not in face.policies:
        known = f"is not one that {face.__name__} takes" if policy in POLICIES else "is not known"
        raise ValueError(f"policy={policy!r} {known}: choose from {', '.join(face.policies)}")
    if _remembers(policy) and "recurrence" not in _field_names(face.algorithm.Config):
        fit = _faces(lambda algorithm: "recurrence" in _field_names(algorithm.Config))
        raise ValueError(f"policy={policy!r} is not built for {face.__name__}: use {', '.join(fit[:-1])} or {fit[-1]}")
    return policy


def _faces(fits: Callable[[ModuleType], bool]) -> list[str]:
    """The names of algorithms that fit, each once."""
    return [name for name, face in ALGORITHMS.items() if face.__base__ is Model and fits(face.algorithm)]


def _remembers(policy: Any) -> bool:
    return str(policy).endswith("LstmPolicy")


def _recurrent(algorithm: ModuleType) -> Recurrent | RecurrentOnPolicy:
    """The algorithm with networks that remember."""
    return Recurrent(algorithm) if hasattr(algorithm, "learn") else RecurrentOnPolicy(algorithm)


def _recurrence(policy: str) -> dict[str, Any]:
    """What a recurrent policy is where nothing else is said."""
    return {"recurrence": Recurrence()} if _remembers(policy) else {}


def _check_recurrent_words(policy: str, policy_kwargs: Mapping[str, Any], algorithm: Any) -> None:
    """Raise `ValueError` for words of recurrent policies where the policy is none, or knows no such thing."""
    words = sorted(set(Recurrence._fields) & set(policy_kwargs))
    if words and not _remembers(policy):
        raise ValueError(f"policy_kwargs[{words[0]!r}] is for recurrent policies: use 'MlpLstmPolicy', or leave it out")
    if "burn_in" in words and not hasattr(algorithm, "learn"):
        raise ValueError(
            "policy_kwargs['burn_in'] is for policies that learn from a replay; here every sequence begins with what was"
            " remembered when it was acted: leave it out"
        )
    if "sequence_length" in words and "batch_size" not in _field_names(algorithm.Config):
        raise ValueError(
            "policy_kwargs['sequence_length'] is for policies that learn in minibatches; here a sequence is as long as"
            " n_steps: leave it out"
        )
    if _remembers(policy) and policy_kwargs.get("share_features_extractor"):
        raise ValueError(
            f"policy_kwargs['share_features_extractor'] cannot be True with policy={policy!r}, whose networks remember, and"
            " see, for themselves: leave it out"
        )


def _beta(prioritised: PrioritizedReplayBuffer | None, value: Any) -> Any:
    """The exponent of importance weights as a schedule; a number stays what it is over training."""
    if prioritised is None:
        raise ValueError("replay_beta is for replay_buffer_class=PrioritizedReplayBuffer: make a new model with it")
    if isinstance(value, str) or callable(value):
        return value
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"replay_beta={value!r} is out of range: give a number from 0 to 1, or a schedule")
    return Linear(float(value), float(value))


def _changed_fields(algorithm: Any, header: Mapping[str, Any], policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What `policy_kwargs` change of a file's config; words that are not given keep their stored values."""
    config_class = algorithm.Config
    policy, words = str(header.get("policy")), dict(policy_kwargs)
    _check_recurrent_words(policy, words, algorithm)
    if set(EXTRACTOR_WORDS) & words.keys():
        words = with_policy(policy, config_class, words)
        if "net_arch" not in policy_kwargs:
            words.pop("net_arch", None)
    if set(Recurrence._fields) & words.keys():
        with contextlib.suppress(KeyError, TypeError):  # of a damaged file, which is found out later
            words = {**header["config"]["recurrence"]["recurrence"], **words}
    return network_fields(config_class, words)


@functools.lru_cache(maxsize=64)  # asked for at every `predict` that goes on
def _carry_shapes(algorithm: Any, config: Any, spec: Spec, batch: int) -> PyTree:
    """Structure and shapes of what a policy remembers of `batch` environments."""
    return jax.eval_shape(lambda: algorithm.initial_carry(config, spec, batch))


def _check_carry(state: PyTree, expected: PyTree, batch: int) -> None:
    """Raise `ValueError` unless `predict` returned what a policy remembers, of as many environments as observations."""
    if jax.tree.structure(state) != jax.tree.structure(expected):
        raise ValueError("state is not what predict returned: hand that on, or give state=None to begin anew")
    sizes = {x.shape[0] for x in jax.tree.leaves(state) if np.ndim(x)} - {batch}
    given, wanted = ([np.shape(x) for x in jax.tree.leaves(tree)] for tree in (state, expected))
    if not sizes and given != wanted:
        raise ValueError(f"state has arrays {given}, and this policy's {wanted}: it is of another model")
    if sizes:
        raise ValueError(f"state is of {min(sizes)} environments, observation of {batch}: give state=None to begin anew")


def _device(name: Any) -> jax.Device:
    """A JAX device by SB3's words; a GPU that is not there falls back to the CPU, as SB3 does."""
    if isinstance(name, jax.Device):
        return name
    if name == "auto":
        return jax.local_devices()[0]
    platform = {"cuda": "gpu"}.get(str(name).split(":")[0], str(name).split(":")[0])
    if platform not in ("cpu", "gpu", "tpu"):
        raise ValueError(f"device={name!r} is not known: choose 'auto', 'cpu', 'cuda' or 'tpu'")
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError:
        warnings.warn(f"device={name!r} was not found: the CPU is used", UserWarning, stacklevel=4)
        return jax.local_devices(backend="cpu")[0]


def _plain_space(space: Space) -> dict[str, Any]:
    """A space in JSON's types; bounds that differ by element as lists."""
    plain = {name: getattr(space, name) for name in ("kind", "shape", "dtype", "low", "high", "n", "start")}
    for name, bound in zip(("low", "high"), space.bounds() if space.kind == "box" else (), strict=False):
        if isinstance(plain[name], bytes):
            plain[name] = bound.ravel().tolist()
    return {**plain, "parts": [[name, _plain_space(part)] for name, part in space.parts]}


def _space(plain: Mapping[str, Any]) -> Space:
    def bound(value: Any) -> float | bytes:
        return np.asarray(value, plain["dtype"]).tobytes() if isinstance(value, list) else float(value)

    return Space(
        plain["kind"], tuple(plain["shape"]), plain["dtype"], bound(plain["low"]), bound(plain["high"]),
        tuple(plain["n"]), tuple(plain["start"]), tuple((name, _space(part)) for name, part in plain["parts"]),
    )  # fmt: skip


def _signature(config_class: type, defaults: Mapping[str, Any]) -> inspect.Signature:
    """SB3's order: policy, env, the hyper-parameters, what every face takes."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("policy", kind), inspect.Parameter("env", kind, default=None)]
    for field in dataclasses.fields(config_class):
        if field.name not in HIDDEN_FIELDS:
            parameters.append(inspect.Parameter(field.name, kind, default=defaults.get(field.name, field.default)))
        if field.name == _before_replay_options(config_class):
            parameters += [inspect.Parameter(name, kind, default=defaults.get(name)) for name in REPLAY_OPTIONS]
    parameters += [inspect.Parameter(name, kind, default=value) for name, value in FACE_OPTIONS.items()]
    return inspect.Signature(parameters)


def _before_replay_options(config_class: type) -> str | None:
    """The field after which SB3 has the replay memory's class; None: there is no memory."""
    names = ("action_noise", "gradient_steps")
    return next((name for name in names if name in _field_names(config_class)), None)


def _parameters_doc(config_class: type) -> str:
    """The comments beside the fields are the documentation: read, not repeated."""
    lines = [line.strip() for line in inspect.getsource(config_class).splitlines()]
    notes = {line.split(":")[0]: line.split("  # ")[1] for line in lines if "  # " in line}
    names = [field.name for field in dataclasses.fields(config_class) if field.name not in HIDDEN_FIELDS]
    if after := _before_replay_options(config_class):
        notes |= REPLAY_OPTIONS
        names[names.index(after) + 1 : names.index(after) + 1] = REPLAY_OPTIONS
    described = "\n".join(f"    {name}: {notes[name]}." for name in names if name in notes)
    return f"Hyper-parameters:\n{described}"


class DQN(Model):
    """Deep Q-learning (Mnih et al., 2015): `DQN("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = dqn, 4, True


class DoubleDQN(DQN):
    """Double deep Q-learning (van Hasselt et al., 2016): `DoubleDQN("MlpPolicy", env).learn(total_timesteps)`."""

    about = double_dqn
    defaults: ClassVar[Mapping[str, Any]] = {"bootstrap": double_dqn.double_value}


class DuelingDQN(DQN):
    """DQN with a dueling network (Wang et al., 2016): `DuelingDQN("MlpPolicy", env).learn(total_timesteps)`.

    The paper's agent is a Double DQN too: `DuelingDQN("MlpPolicy", env, bootstrap=double_value)`.
    """

    about = dueling
    defaults: ClassVar[Mapping[str, Any]] = {"network": dueling.dueling_network}


class C51(Model):
    """Categorical DQN (Bellemare et al., 2017): `C51("MlpPolicy", env, v_min=0, v_max=100).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = c51, 4, True


class QRDQN(Model):
    """Quantile regression DQN (Dabney et al., 2018): `QRDQN("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = qrdqn, 4, True


class IQN(Model):
    """Implicit quantile networks (Dabney et al., 2018): `IQN("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = iqn, 4, True


class Rainbow(C51):
    """Six improvements of DQN in one (Hessel et al., 2018): `Rainbow("MlpPolicy", env, v_min=0, v_max=100).learn(total_timesteps)`.

    C51 with the settings of `advantage.algorithms.rainbow`, each of which can be given otherwise.
    """

    about = rainbow
    policies = tuple(policy for policy in POLICIES if not _remembers(policy))  # priorities are of single steps
    defaults: ClassVar[Mapping[str, Any]] = rainbow.SETTINGS


class PPO(Model):
    """Proximal policy optimisation (Schulman et al., 2017): `PPO("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = ppo, 1, False


class RecurrentPPO(PPO):
    """SB3-contrib's name for PPO with a memory: `RecurrentPPO("MlpLstmPolicy", env).learn(total_timesteps)`."""

    policies = tuple(filter(_remembers, POLICIES))
    defaults: ClassVar[Mapping[str, Any]] = {"n_steps": 128, "batch_size": 128}


class MaskablePPO(PPO):
    """SB3-contrib's name for PPO where not every action is legal: `MaskablePPO("MlpPolicy", env).learn(total_timesteps)`.

    The environment says which ones are: see `advantage.ActionMasker`.
    """

    masks_needed = True

    def learn(self, *args: Any, use_masking: bool = True, **kwargs: Any) -> Model:
        """As every model's.

        Raises:
            ValueError: `use_masking=False`, beside what every model's raises.
        """
        if not use_masking:
            raise ValueError("use_masking=False: MaskablePPO always masks; use PPO on an environment without action_masks()")
        return super().learn(*args, **kwargs)


class A2C(Model):
    """Advantage actor-critic (Mnih et al., 2016): `A2C("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = a2c, 100, False


class TRPO(Model):
    """Trust region policy optimisation (Schulman et al., 2015): `TRPO("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = trpo, 1, False


class REINFORCE(Model):
    """The policy gradient with a baseline (Williams, 1992): `REINFORCE("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = reinforce, 1, False


class SAC(Model):
    """Soft actor-critic (Haarnoja et al., 2018): `SAC("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = sac, 4, True


class DiscreteSAC(Model):
    """SAC for discrete actions (Christodoulou, 2019): `DiscreteSAC("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = discrete_sac, 4, True


class TD3(Model):
    """Twin delayed DDPG (Fujimoto et al., 2018): `TD3("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = td3, 4, True


class DDPG(Model):
    """Deep deterministic policy gradient (Lillicrap et al., 2016): `DDPG("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = ddpg, 4, True


class TQC(Model):
    """Truncated quantile critics (Kuznetsov et al., 2020): `TQC("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = tqc, 4, True


class CrossQ(Model):
    """Batch normalisation instead of targets (Bhatt et al., 2024): `CrossQ("MlpPolicy", env).learn(total_timesteps)`."""

    algorithm, log_interval, log_episodes = crossq, 4, True


ALGORITHMS: dict[str, type[Model]] = {
    face.__name__: face
    for face in (
        DQN, DoubleDQN, DuelingDQN, C51, QRDQN, IQN, Rainbow, PPO, RecurrentPPO, MaskablePPO, A2C, TRPO, REINFORCE, SAC, DiscreteSAC,
        TD3, DDPG, TQC, CrossQ,
    )
}  # fmt: skip


def algorithm_named(name: Any) -> type[Model]:
    """The algorithm of this name, in any case.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    known = {one.lower(): one for one in ALGORITHMS}
    lower = str(name).lower()
    if lower not in known:
        near = difflib.get_close_matches(lower, known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else f"choose from {', '.join(ALGORITHMS)}"
        raise ValueError(f"there is no algorithm {name!r}: {hint}")
    return ALGORITHMS[known[lower]]
