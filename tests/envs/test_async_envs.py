"""Environments in worker processes: the bits of `SyncEnvs`, faults told in full, nothing left behind."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import cloudpickle
import gymnasium
import jax
import numpy as np
import pytest

from advantage.envs.async_envs import AsyncEnvs
from advantage.envs.process import WorkerTraceback
from advantage.envs.vector import EnvironmentFailure, SyncEnvs

# Sent to workers as code: they need not import this file, and JAX with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def nested():
    """Random episodes of Dict and Tuple observations, with masks and with infos."""

    class Nested(gymnasium.Env):
        spaces = gymnasium.spaces
        observation_space = spaces.Dict(
            b=spaces.Box(-1.0, 1.0, (2,)),
            a=spaces.Tuple([spaces.Discrete(5), spaces.Box(0, 255, (2, 3), np.uint8), spaces.MultiBinary(3)]),
        )
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.steps, self.length = 0, int(self.np_random.integers(2, 6))
            return self.seen(), {}

        def seen(self):
            draw = self.np_random
            picture = draw.integers(0, 255, (2, 3)).astype(np.uint8)
            flags = draw.integers(0, 2, 3).astype(np.int8)
            return {"a": (int(draw.integers(5)), picture, flags), "b": draw.uniform(-1, 1, 2).astype(np.float32)}

        def step(self, action):
            self.steps += 1
            over, cut = self.steps == self.length, bool(self.np_random.random() < 0.1)
            info = {"steps": self.steps, "episode": {"r": 1.5, "l": 3}} if over else {"action": int(action)}
            return self.seen(), float(self.np_random.normal()), over, cut, info

        def action_masks(self):
            return np.array([True, self.steps % 2 == 0, True])

    return Nested()


def cart_pole():
    """Gymnasium's, in short episodes."""
    return gymnasium.make("CartPole-v1", max_episode_steps=9)


def trouble():
    """Does what it is told by `tell`: raises, dies or hangs at its next step or reset."""

    class Mishap(Exception):
        def __init__(self, what, code):  # cannot be received: unpickling gives one argument
            super().__init__(f"{what} ({code})")

    class Trouble(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,))
        action_space = gymnasium.spaces.Discrete(2)
        told, resets = None, 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.obey("reset")
            self.steps, self.resets = 0, self.resets + 1
            self.draw = float(self.np_random.integers(1, 10**6))
            return np.array([self.draw, 0.0], np.float32), {}

        def step(self, action):
            self.obey("step")
            self.steps += 1
            return np.array([self.draw, self.steps], np.float32), 1.0, False, self.steps == 4, {}

        def tell(self, what, where="step"):
            self.told = what, where

        def obey(self, where):
            what, place = self.told or (None, where)
            if place != where:
                return
            self.told = None
            if what == "mishap":
                raise Mishap("out of order", 7)
            if what == "raise":
                raise ZeroDivisionError("no such number")
            if what == "exit":
                os._exit(3)
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if what == "hang":
                time.sleep(60)

    return Trouble()


def same(ours, theirs):
    """Structure, shapes, dtypes and bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


@pytest.fixture(scope="module")
def troubled():
    """Two seeds of two environments in two workers; closed by the last test that reads it."""
    envs = AsyncEnvs([[trouble] * 2] * 2, num_workers=2, max_restarts=100, timeout=5.0)
    yield envs
    envs.close()


def fresh(envs):
    return envs.reset(np.array([[11, 12], [21, 22]]))


def go(envs):
    return envs.step(np.zeros(envs.shape, np.int32))


@pytest.mark.parametrize("make", [nested, cart_pole])
def test_the_bits_of_sync_envs(make):
    """Observations, masks, rewards, endings, final observations and infos; after two resets; env i is env i."""
    ours = AsyncEnvs([[make] * 3] * 2, num_workers=2 if make is nested else 6)
    theirs = SyncEnvs([[make() for _ in range(3)] for _ in range(2)])
    rng, ended = np.random.default_rng(0), 0
    for seeds in (np.arange(6).reshape(2, 3), None):
        same(ours.reset(seeds), theirs.reset(seeds))
        kept = []
        for _ in range(40):
            action = rng.integers(0, 2, (2, 3)).astype(np.int32)
            one, other = ours.step(action), theirs.step(action)
            same(one, other)
            same(list(ours.infos), list(theirs.infos))
            ended += int((one.terminated | one.truncated).sum())
            kept.append((one, jax.tree.map(np.copy, one)))
        for step, copy in kept:  # what was handed out is not written again
            same(step, copy)
    assert ended > 20
    ours.close()
    theirs.close()


def test_a_worker_is_lean(troubled):
    """No JAX, one thread, several environments in one, deaf to Ctrl-C, and every environment its own stream."""
    facts = troubled.each(lambda env: ("jax" in sys.modules, os.environ["OMP_NUM_THREADS"], os.getpid()))
    assert [fact[:2] for fact in facts] == [(False, "1")] * 4
    pids = [fact[2] for fact in facts]
    assert pids[0] == pids[1] != pids[2] == pids[3] and os.getpid() not in pids
    for pid in set(pids):
        os.kill(pid, signal.SIGINT)
    drawn = fresh(troubled).obs[..., 0].ravel()
    assert len(set(drawn.tolist())) == 4
    single = trouble()
    assert drawn.tolist() == [single.reset(seed=seed)[0][0] for seed in (11, 12, 21, 22)]


@pytest.mark.parametrize("where", ["step", "reset"])
def test_an_exception_is_told_in_full(troubled, where):
    """The environment's name, seed and own traceback; the exception is the cause; then all goes on."""
    fresh(troubled)
    troubled.each(lambda env: env.unwrapped.tell("raise", where), None, [3])
    expected = rf"env 1 of seed index 1 \(reset with seed 22\) raised ZeroDivisionError: no such number in {where}\("
    with pytest.raises(EnvironmentFailure, match=expected) as caught:
        for _ in range(4):
            go(troubled)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    text = str(caught.value.__cause__.__cause__)
    assert "in obey" in text and "no such number" in text and "Traceback" in text
    fresh(troubled)
    assert go(troubled).valid is None


def test_an_exception_that_cannot_be_sent(troubled):
    """Its text is told, and the cause is the traceback."""
    fresh(troubled)
    troubled.each(lambda env: env.unwrapped.tell("mishap"), None, [0])
    with pytest.raises(EnvironmentFailure, match=r"env 0 .* raised Mishap: out of order \(7\)") as caught:
        go(troubled)
    assert isinstance(caught.value.__cause__, WorkerTraceback) and "in obey" in str(caught.value.__cause__)


def test_a_result_that_cannot_be_sent(troubled):
    with pytest.raises(EnvironmentFailure, match="cannot be sent to another process"):
        troubled.each(lambda env: (x for x in ()))
    assert troubled.each(lambda env, x: x + env.unwrapped.resets * 0, [(1,), (2,)], [3, 0]) == [1, 2]


@pytest.mark.parametrize(
    "what,told",
    [("exit", "ended with exit code 3"), ("kill", "was killed by SIGKILL"), ("crash", "was killed by SIGSEGV")],
)
def test_a_dead_worker_begins_anew(troubled, what, told):
    """A warning says how and where; the lost rows are no experience, the other worker's go on."""
    first = fresh(troubled)
    go(troubled)
    before = go(troubled)
    troubled.each(lambda env, what: env.unwrapped.tell(what), [(what,)], [1])
    with pytest.warns(RuntimeWarning) as warned:
        step = go(troubled)
    message = str(warned[0].message)
    assert f"the process of env 0 of seed index 0 to env 1 of seed index 0 {told} in step() of env 1" in message
    assert ("in obey" in message) == (what == "crash")  # Python could still write its traceback
    assert step.valid.tolist() == [[False, False], [True, True]]
    assert step.truncated.tolist() == [[True, True], [False, False]] and not step.terminated.any()
    assert step.observed.is_first.tolist() == step.truncated.tolist()
    assert step.reward.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    same(step.final_obs[0], before.observed.obs[0])  # the last that is known
    assert step.final_obs[1, :, 1].tolist() == [3.0, 3.0]
    assert troubled.infos[0] == {"worker_restarted": True} and troubled.infos[2] == {}
    # Not the episodes of the beginning again.
    assert not set(step.observed.obs[0, :, 0].tolist()) & set(first.obs[..., 0].ravel().tolist())
    after = go(troubled)
    assert after.valid is None and after.observed.obs[..., 1].tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_a_death_in_reset_and_between_steps(troubled):
    """Both begin anew; a call of a method is made again."""
    fresh(troubled)
    troubled.each(lambda env: env.unwrapped.tell("exit", "reset"), None, [2])
    with pytest.warns(RuntimeWarning, match=r"exit code 3 in reset\(\) of env 0 of seed index 1"):
        first = troubled.reset(None)
    assert first.is_first.all() and (first.obs[..., 1] == 0).all()
    os.kill(troubled.workers[0].process.pid, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="SIGKILL"):
        assert troubled.each(lambda env: env.unwrapped.resets) == [1, 1, 1, 1]


def test_a_worker_that_hangs(troubled, monkeypatch):
    """After `timeout` seconds it is ended, and the warning shows where it hung."""
    fresh(troubled)
    monkeypatch.setattr(troubled.workers[1], "timeout", 0.3)
    troubled.each(lambda env: env.unwrapped.tell("hang"), None, [3])
    with pytest.warns(RuntimeWarning, match=r"gave no answer for 0.3 s in step\(\) of env 1 of seed index 1") as warned:
        step = go(troubled)
    assert "in obey" in str(warned[0].message)
    assert step.valid.tolist() == [[True, True], [False, False]]


def test_an_interrupted_step_is_finished_first(troubled):
    """After Ctrl-C in the middle of a step its answers are not taken for those of the next."""
    fresh(troubled)
    troubled.send(np.zeros(troubled.shape, np.int32))  # and nobody receives
    first = fresh(troubled)
    same(go(troubled).observed.obs[..., 0], first.obs[..., 0])


def test_too_many_deaths_stop(monkeypatch):
    """Beyond `max_restarts` the error says how the last died; a closed vector says so."""
    envs = AsyncEnvs([[trouble] * 2], num_workers=1, max_restarts=1)
    envs.reset(None)
    envs.each(lambda env: env.unwrapped.tell("exit"), None, [0])
    with pytest.warns(RuntimeWarning, match="restart 1 of at most 1"):
        go(envs)
    envs.each(lambda env: env.unwrapped.tell("crash"), None, [1])
    with pytest.raises(EnvironmentFailure, match=r"env 0 to env 1 was killed by SIGSEGV.*after 1 restarts") as caught:
        go(envs)
    assert "in obey" in str(caught.value.__cause__)
    envs.close()
    with pytest.raises(EnvironmentFailure, match="closed: make new ones"):
        go(envs)


def test_what_cannot_start():
    """Exceptions of constructors are the environment's own; instances and closed files cannot be sent."""

    def broken():
        raise ValueError("no licence")

    with pytest.raises(ValueError, match="no licence") as caught:
        AsyncEnvs([[cart_pole, broken]], num_workers=1)
    assert "env 1" in caught.value.__notes__[0] and "in broken" in str(caught.value.__cause__)
    with pytest.raises(EnvironmentFailure, match="exit code 9, before its environments were made"):
        AsyncEnvs([[lambda: os._exit(9)]])
    with pytest.raises(ValueError, match="lives in this process: give functions"):
        AsyncEnvs([[gymnasium.make("CartPole-v1")]])
    lock = threading.Lock()
    with pytest.raises(ValueError, match="cannot be sent to another process.*vec_env='sync'"):
        AsyncEnvs([[lambda: lock]])
    for wrong in ({"num_workers": 0}, {"max_restarts": -1}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            AsyncEnvs([[cart_pole]], **wrong)


def open_files():
    names = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sorted(os.readlink(name) for name in names if os.path.lexists(name))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
@pytest.mark.parametrize("by", ["close", "collection"])
def test_nothing_is_left(by):
    """No process (not even a dead one that nobody asked for), file, shared memory or warning."""
    gc.collect()
    before, shared = open_files(), set(os.listdir("/dev/shm"))
    envs = AsyncEnvs([[cart_pole] * 3], num_workers=2)
    envs.reset(None)
    step = go(envs)
    pids = [worker.process.pid for worker in envs.workers]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if by == "close":
            envs.close()
            envs.close()
        del envs
        gc.collect()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert open_files() == before and set(os.listdir("/dev/shm")) <= shared
    assert step.observed.obs.shape == (1, 3, 4)  # what was handed out stays


SCRIPT = """
import os, signal, time
import gymnasium, numpy as np
from advantage import make_vec_env

class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        time.sleep(60 if action else 0)
        return np.ones(1, np.float32), 1.0, False, False, {"of": self}

gymnasium.register("Mine-v0", Mine)
venv = make_vec_env("Mine-v0", n_envs=2, vec_env="async", vec_env_kwargs={"num_workers": 2})
venv.reset()
infos = venv.step([0, 0])[3]
assert isinstance(infos[1]["of"].unwrapped, Mine)
print(*[worker.process.pid for worker in venv.host.workers], flush=True)
venv.step_async([1, 0])
time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")
def test_a_script_without_main_guard_that_is_killed(tmp_path):
    """Classes and ids of the script are known to the workers, which end with it: also one that hangs."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids, until = done.stdout.split(), time.monotonic() + 10

    def runs(pid):
        try:  # where nobody reaps orphans they stay as zombies
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    assert len(pids) == 2
    while any(map(runs, pids)):
        assert time.monotonic() < until, f"{pids} run on"
        time.sleep(0.1)
