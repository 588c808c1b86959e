"""Callbacks with Stable-Baselines3's shape: code that training calls at its events, and that may stop it.

The ready-made ones (`EvalCallback`, ...) are in `ready_callbacks` and can be imported from here too.

Interface: https://stable-baselines3.readthedocs.io/en/master/guide/callbacks.html
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from advantage.training.ready_callbacks import (
        CheckpointCallback,
        EvalCallback,
        MaskableEvalCallback,
        EventCallback,
        EveryNTimesteps,
        LogEveryNTimesteps,
        ProgressBarCallback,
        StopTrainingOnMaxEpisodes,
        StopTrainingOnNoModelImprovement,
        StopTrainingOnRewardThreshold,
    )

_READY = (
    "CheckpointCallback", "EvalCallback", "MaskableEvalCallback", "EventCallback", "EveryNTimesteps", "LogEveryNTimesteps",
    "ProgressBarCallback", "StopTrainingOnMaxEpisodes", "StopTrainingOnNoModelImprovement",
    "StopTrainingOnRewardThreshold",
)  # fmt: skip

__all__ = ["BaseCallback", "CallbackList", "ConvertCallback", "as_callback", *_READY]

CallbackFunction = Callable[[Mapping[str, Any], Mapping[str, Any]], bool | None]
"""`f(locals, globals)`, called after every vector step; False stops training."""


class BaseCallback(ABC):
    """What training calls at its events. Subclass it, write `_on_step`, and what else is of use.

    The methods without underscore belong to the caller: they keep the attributes up to date and then call
    their underscored namesake, which is what a subclass overrides.

    Attributes:
        model: the model in training, from `init_callback` on.
        n_calls: how often `on_step` was called (vector steps, not environment steps).
        num_timesteps: environment steps taken, summed over the parallel environments.
        locals, globals: what the training loop shows, a mapping; see `update_locals`.
        parent: the callback that triggers this one, or None.
        verbose: 0 for no output, 1 for messages, 2 for details.
        RESUMED: names of attributes that a checkpoint keeps and a resumed run gets back: numbers, text, NumPy
            arrays, or lists and dicts of these. Set it in a subclass.
    """

    model: Any
    RESUMED: ClassVar[tuple[str, ...]] = ()

    def __init__(self, verbose: int = 0):
        self.n_calls = 0
        self.num_timesteps = 0
        self.verbose = verbose
        self.locals: Mapping[str, Any] = {}
        self.globals: Mapping[str, Any] = {}
        self.parent: BaseCallback | None = None
        self._training_locals: Mapping[str, Any] = {}

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        # Code that comes from SB3 may still derive its callbacks from SB3's own class: same methods, welcome.
        events = ("init_callback", "on_training_start", "on_rollout_start", "on_step", "on_rollout_end")
        if cls is BaseCallback and all(hasattr(other, event) for event in (*events, "on_training_end")):
            return True
        return NotImplemented

    @property
    def training_env(self) -> Any:
        """The environments in training, as `model.get_env()` gives them.

        Raises:
            ValueError: the model has no environment.
        """
        env = self.model.get_env()
        if env is None:
            raise ValueError("this model has no environment: give it one with model.set_env(env)")
        return env

    @property
    def logger(self) -> Any:
        """The model's `advantage.training.loggers.Logger`."""
        return self.model.logger

    def init_callback(self, model: Any) -> None:
        """Bind the callback to a model, once per `learn`, before training starts."""
        self.model = model
        self._init_callback()

    def on_training_start(self, locals_: Mapping[str, Any], globals_: Mapping[str, Any]) -> None:
        """Training starts; the mappings are kept as references."""
        self.locals = self._training_locals = locals_
        self.globals = globals_
        # Not zero where `learn` goes on from an earlier call.
        self.num_timesteps = self.model.num_timesteps
        self._on_training_start()

    def on_rollout_start(self) -> None:
        """A chunk of experience is about to be collected."""
        self._on_rollout_start()

    def on_step(self) -> bool:
        """One vector step was taken. Returns False if training should stop.

        Unlike in SB3, where a forgotten `return True` ends training after one step, None goes on.
        """
        self.n_calls += 1
        self.num_timesteps = self.model.num_timesteps
        go_on = self._on_step()
        return go_on is None or bool(go_on)

    def on_rollout_end(self) -> None:
        """A chunk is complete; the update follows."""
        self._on_rollout_end()

    def on_training_end(self) -> None:
        """Training is over, also when it was stopped."""
        self._on_training_end()

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the number of calls and the attributes named in `RESUMED`."""
        return {"n_calls": self.n_calls, **{name: getattr(self, name) for name in self.RESUMED}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept; called once a resumed run has started."""
        for name, value in state.items():
            setattr(self, name, value)

    def children(self) -> list[BaseCallback]:
        """The callbacks inside this one."""
        return []

    def update_locals(self, locals_: Mapping[str, Any]) -> None:
        """Show the training loop's newest variables in `locals`, over those of the training's start.

        A plain dict is merged in as SB3 does. Any other mapping is laid on top unread, since reading a
        lazy entry (`values`, `log_probs`) computes it.
        """
        if type(locals_) is dict and isinstance(self.locals, dict):
            self.locals.update(locals_)
        else:
            self.locals = ChainMap(locals_, self._training_locals)
        self.update_child_locals(locals_)

    def update_child_locals(self, locals_: Mapping[str, Any]) -> None:
        """Pass `update_locals` on to the callbacks inside this one."""

    def _init_callback(self) -> None:
        """The model is known."""

    def _on_training_start(self) -> None:
        """Before the first chunk."""

    def _on_rollout_start(self) -> None:
        """Before each chunk."""

    @abstractmethod
    def _on_step(self) -> bool | None:
        """After each vector step; False stops training."""

    def _on_rollout_end(self) -> None:
        """After each chunk, before its update."""

    def _on_training_end(self) -> None:
        """After the last update."""


class CallbackList(BaseCallback):
    """Several callbacks in order as one. Functions and nested lists are converted by `as_callback`."""

    def __init__(self, callbacks: Iterable[Any]):
        super().__init__()
        self.callbacks = [as_callback(callback) for callback in callbacks]

    def _init_callback(self) -> None:
        for callback in self.callbacks:
            # A list is transparent: its members belong to whoever triggers the list (SB3 issue 1791). Before
            # `init_callback`, so that lists in lists pass it on.
            callback.parent = self.parent
            callback.init_callback(self.model)

    def _on_training_start(self) -> None:
        # Where one raises, those before it end: what they opened (a progress bar, a file) has to be closed.
        with ExitStack() as started:
            for callback in self.callbacks:
                callback.on_training_start(self.locals, self.globals)
                started.callback(callback.on_training_end)
            started.pop_all()

    def _on_rollout_start(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_start()

    def _on_step(self) -> bool:
        # A list, not a generator: every callback sees every step, also the one at which another stops.
        return all([callback.on_step() for callback in self.callbacks])

    def _on_rollout_end(self) -> None:
        for callback in self.callbacks:
            callback.on_rollout_end()

    def _on_training_end(self) -> None:
        # In order, and all of them, also where one raises.
        with ExitStack() as ends:
            for callback in reversed(self.callbacks):
                ends.callback(callback.on_training_end)

    def children(self) -> list[BaseCallback]:
        return self.callbacks

    def update_child_locals(self, locals_: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.update_locals(locals_)


class ConvertCallback(BaseCallback):
    """A plain function `f(locals, globals) -> bool | None` as a callback; only False stops training."""

    def __init__(self, callback: CallbackFunction | None, verbose: int = 0):
        super().__init__(verbose)
        self.callback = callback

    def _on_step(self) -> object:
        # Not `bool`: comparisons of NumPy numbers give `numpy.bool`.
        return None if self.callback is None else self.callback(self.locals, self.globals)


def as_callback(callback: Any) -> BaseCallback:
    """Turn what users pass as `callback=` into one callback.

    Takes None (does nothing), a function `f(locals, globals) -> bool | None`, a callback (ours, or any
    object with the same methods, such as one of SB3's), or a list or tuple of these.

    Raises:
        TypeError: anything else, also a callback's class where its instance was meant.
    """
    if callback is None:
        return CallbackList([])
    if isinstance(callback, list | tuple):
        return CallbackList(callback)
    if isinstance(callback, type):
        name = callback.__name__
        raise TypeError(f"callback is the class {name}: give an instance, {name}(...)")
    if isinstance(callback, BaseCallback):
        return callback
    if callable(callback):
        return ConvertCallback(callback)
    raise TypeError(
        f"callback is a {type(callback).__name__}: expected None, a function f(locals, globals) -> bool, "
        "a BaseCallback, or a list of these"
    )


def state_of(callback: Any) -> dict[str, Any]:
    """What a checkpoint keeps of a callback and of those inside it. One of SB3's own keeps nothing."""
    if not hasattr(callback, "get_state"):
        return {"kind": type(callback).__name__, "state": {}, "children": []}
    children = [state_of(child) for child in callback.children()]
    return {"kind": type(callback).__name__, "state": callback.get_state(), "children": children}


def give_state(callback: Any, kept: Mapping[str, Any]) -> bool:
    """Give a callback, and those inside it, what a checkpoint kept; False where it kept other callbacks'."""
    if _kinds(state_of(callback)) != _kinds(kept):
        return False
    if hasattr(callback, "set_state"):
        callback.set_state(kept["state"])
        for child, own in zip(callback.children(), kept["children"], strict=True):
            give_state(child, own)
    return True


def _kinds(kept: Mapping[str, Any]) -> tuple:
    return (kept["kind"], *map(_kinds, kept["children"]))


def __getattr__(name: str) -> Any:
    # Late: they build on the classes above, so that neither file could import the other's names at its top.
    if name not in _READY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("advantage.training.ready_callbacks"), name)
