"""Callbacks: order of events, counters, what stops training, lazy locals."""

from collections.abc import Mapping

import numpy as np
import pytest

from advantage.training.callbacks import BaseCallback, CallbackList, ConvertCallback, as_callback


class Model:
    num_timesteps = 0
    logger = "the logger"

    def get_env(self):
        return "the env"


class Recorder(BaseCallback):
    def __init__(self, answers=()):
        super().__init__(verbose=1)
        self.events = []
        self.answers = list(answers)

    def _init_callback(self):
        self.events.append("init")

    def _on_training_start(self):
        self.events.append(f"training start {self.num_timesteps}")

    def _on_rollout_start(self):
        self.events.append("rollout start")

    def _on_step(self):
        self.events.append(f"step {self.n_calls} {self.num_timesteps}")
        return self.answers.pop(0) if self.answers else True

    def _on_rollout_end(self):
        self.events.append("rollout end")

    def _on_training_end(self):
        self.events.append("training end")


class Lazy(Mapping):
    """A mapping whose entries cost something: fails when an entry is computed unasked."""

    def __init__(self):
        self.computed = []

    def __getitem__(self, key):
        if key not in ("values", "rewards"):
            raise KeyError(key)
        self.computed.append(key)
        return f"computed {key}"

    def __iter__(self):
        return iter(("values", "rewards"))

    def __len__(self):
        return 2


def drive(callback, steps=2, by=4):
    model = Model()
    model.num_timesteps = 100
    callback.init_callback(model)
    callback.on_training_start({"total_timesteps": 108}, {})
    callback.on_rollout_start()
    answers = []
    for step in range(steps):
        model.num_timesteps += by
        callback.update_locals({"rewards": step})
        answers.append(callback.on_step())
    callback.on_rollout_end()
    callback.on_training_end()
    return answers


EVENTS = [
    "init", "training start 100", "rollout start", "step 1 104", "step 2 108", "rollout end", "training end",
]  # fmt: skip


def test_events_come_in_order_and_count_environment_steps():
    callback = Recorder()
    assert drive(callback) == [True, True]
    assert callback.events == EVENTS
    assert callback.n_calls == 2 and callback.num_timesteps == 108
    assert callback.training_env == "the env" and callback.logger == "the logger"
    assert dict(callback.locals) == {"total_timesteps": 108, "rewards": 1}


def test_a_model_without_environment_is_an_error():
    callback = Recorder()
    model = Model()
    model.get_env = lambda: None
    callback.init_callback(model)
    with pytest.raises(ValueError, match="set_env"):
        _ = callback.training_env


def test_a_list_calls_every_member_also_after_one_has_said_stop():
    first, second = Recorder([False, True]), Recorder()
    assert drive(CallbackList([first, second])) == [False, True]
    assert first.events == second.events == EVENTS


def test_a_list_ends_every_member_also_after_one_has_raised():
    class Broken(Recorder):
        def _on_training_end(self):
            raise RuntimeError("at the end")

    first, last = Recorder(), Recorder()
    with pytest.raises(RuntimeError, match="at the end"):
        drive(CallbackList([first, Broken(), last]))
    assert first.events == last.events == EVENTS


def test_nested_lists_share_the_outer_parent_and_see_the_locals():
    inner = Recorder()
    outer = CallbackList([[inner]])
    outer.parent = parent = Recorder()
    drive(outer)
    assert inner.parent is parent
    assert inner.locals["rewards"] == 1


@pytest.mark.parametrize(
    "answer, goes_on", [(True, True), (None, True), (False, False), (np.bool_(False), False)]
)
def test_a_function_stops_training_only_by_false(answer, goes_on):
    seen = []

    def function(locals_, globals_):
        seen.append((locals_["rewards"], globals_))
        return answer

    assert drive(ConvertCallback(function), steps=1) == [goes_on]
    assert seen == [(0, {})]


def test_a_forgotten_return_goes_on():
    assert drive(Recorder([None])) == [True, True]


def test_lazy_locals_are_computed_only_when_read():
    callback = CallbackList([Recorder(), Recorder()])
    drive(callback)
    lazy = Lazy()
    callback.update_locals(lazy)
    assert callback.on_step()
    assert lazy.computed == []
    child = callback.callbacks[0]
    assert child.locals["values"] == "computed values"
    assert child.locals["total_timesteps"] == 108
    assert lazy.computed == ["values"]
    assert "log_probs" not in child.locals


def test_as_callback_takes_what_users_pass():
    recorder = Recorder()
    assert as_callback(recorder) is recorder
    assert drive(as_callback(None)) == [True, True]
    assert isinstance(as_callback(lambda a, b: True), ConvertCallback)
    mixed = as_callback([recorder, lambda a, b: False])
    assert isinstance(mixed, CallbackList) and drive(mixed, steps=1) == [False]


def test_as_callback_takes_foreign_objects_of_the_same_shape():
    """A callback derived from SB3's class, in a script that changed only half of its imports."""
    methods = [name for name in vars(BaseCallback) if name.startswith(("on_", "init_", "update_"))]
    foreign = type("Foreign", (), {name: lambda self, *args: True for name in methods})()
    assert as_callback(foreign) is foreign
    assert drive(as_callback([foreign])) == [True, True]


def test_as_callback_refuses_the_rest():
    with pytest.raises(TypeError, match="class Recorder: give an instance"):
        as_callback(Recorder)
    with pytest.raises(TypeError, match="is a int"):
        as_callback(3)


def test_base_callback_needs_on_step():
    with pytest.raises(TypeError):
        BaseCallback()
