"""A process that steps some environments of `AsyncEnvs`; it imports no JAX.

What has a fixed size goes through memory shared with the parent (`Block`), the rest through a pipe:

    parent                                       worker
    START (functions, Gymnasium's registry)  ->
                                             <-  spaces
    MEMORY (layout)                          ->  ...
    STEP, the actions lie in the block       ->  one environment after the other, ended episodes reset
                                             <-  DONE, or the infos where one is not empty

Messages are Python objects between two processes of one program; nothing is ever read from a file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import mmap
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from advantage.envs.recorder import recorded
from advantage.envs.single import final_mask_row, has_masks, mask_row, silence_passive_checker

STEP, DONE, CLOSE = b"s", b".", b"c"
ALIGNMENT = 64
STEPPING, RESETTING, OTHERWISE = 1, 2, 0
DOING = {STEPPING: "in step()", RESETTING: "in reset()", OTHERWISE: "outside of step() and reset()"}


class Leaf(NamedTuple):
    """An array of an observation: the keys that lead to it, and its shape and dtype."""

    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    dtype: str


class Layout(NamedTuple):
    """What the block of one worker holds for each of its environments."""

    count: int
    obs: tuple[Leaf, ...]
    action: Leaf
    choices: int  # entries of a mask of legal actions; 0: there are none


def _arrays(layout: Layout) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of a block's arrays in their order."""
    count = layout.count
    obs = [((count, *leaf.shape), leaf.dtype) for leaf in layout.obs]
    action = ((count, *layout.action.shape), layout.action.dtype)
    mask = ((count, layout.choices), "bool")
    rest = [((count,), "float32"), ((2, count), "bool"), mask, mask, ((2,), "int32")]
    return [*obs, *obs, action, *rest]


def _aligned(shape: tuple[int, ...], dtype: str) -> int:
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


def block_size(layout: Layout) -> int:
    """Bytes of a block."""
    return sum(_aligned(*array) for array in _arrays(layout))


class Block:
    """A worker's arrays, in memory that it shares with the parent.

    Attributes:
        obs: `[count, ...]` of each leaf: what a policy sees next.
        final: the last observations of episodes that ended with this step; elsewhere anything.
        action, reward, mask: `[count, ...]`.
        final_mask: what was legal after `final` where an episode was cut; elsewhere everything.
        ends: `[2, count]`, terminated and truncated.
        doing: what the worker does (see `DOING`) and with which of its environments: read when it has died.
    """

    def __init__(self, layout: Layout, memory: mmap.mmap):
        arrays, place = [], 0
        for shape, dtype in _arrays(layout):
            arrays.append(np.ndarray(shape, dtype, memory, place))
            place += _aligned(shape, dtype)
        count = len(layout.obs)
        self.obs, self.final = arrays[:count], arrays[count : 2 * count]
        self.action, self.reward, self.ends, self.mask, self.final_mask, self.doing = arrays[2 * count :]


class Hello(NamedTuple):
    """What a worker says of its environments once they are made: the spaces and id are the first one's."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    masks: tuple[bool, ...]  # which name their legal actions
    env_id: str | None
    render_mode: str | None


class Fault(NamedTuple):
    """An exception in an environment's code."""

    place: int  # among the worker's environments
    said: str  # for people: "raised ZeroDivisionError: ... in step(...)"
    text: str  # the traceback
    error: BaseException | None  # the exception, where it can be sent


class Value(NamedTuple):
    """An answer that is not infos."""

    value: Any


class EnvironmentFault(Exception):
    """Carries a `Fault` to where it is sent."""

    def __init__(self, place: int, said: str):
        super().__init__(said)
        self.place, self.said = place, said


def packed(message: Any) -> bytes:
    """A message with functions or classes in it, also such as are known to `__main__` only."""
    return bytes(ForkingPickler.dumps(CloudpickleWrapper(message)))


def unpacked(data: bytes) -> Any:
    """What `packed` was given, or a plain message."""
    message = ForkingPickler.loads(data)
    return message.fn if isinstance(message, CloudpickleWrapper) else message


def main(pipe: int, memory: int, trace: int, parent: int) -> None:
    """Serve the parent until it says CLOSE or is gone.

    Args:
        pipe: file descriptor of the connection.
        memory: of the memory shared; its size comes with the MEMORY message.
        trace: of a file for the Python traceback of a crash, or of a hang (at SIGUSR1).
        parent: the parent's process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGUSR1, trace, all_threads=True, chain=False)
    # A worker that waits sees the pipe's end; one that hangs in an environment does not.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    server = Server(Connection(pipe), memory)
    with contextlib.suppress(EOFError, OSError):
        server.serve()
    for env in server.envs:
        with contextlib.suppress(Exception):
            env.close()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class Server:
    """Answers the parent's messages."""

    def __init__(self, connection: Connection, memory: int):
        self.connection, self.memory = connection, memory
        self.envs: list[gymnasium.Env] = []
        self.masks: list[Callable[[], Any]] = []
        self.block: Block | None = None
        self.layout: Layout | None = None

    def serve(self) -> None:
        """Until CLOSE."""
        while (data := self.connection.recv_bytes()) != CLOSE:
            try:
                if data == STEP:
                    infos = self.step()
                    answer = self._bytes(infos) if any(infos) else DONE
                else:
                    name, *arguments = unpacked(data)
                    answer = self._bytes(Value(getattr(self, name)(*arguments)))
            except EnvironmentFault as fault:
                answer = packed(_fault(fault.place, fault.said, fault.__cause__))
            except Exception as error:  # such as a function that cannot be imported here
                answer = packed(_fault(0, f"raised {_kind(error)}", error))
            self.connection.send_bytes(answer)

    def start(self, functions: Sequence[Callable[[], gymnasium.Env]], registry: bytes) -> Hello:
        """Make the environments."""
        for i, function in enumerate(functions):
            with _blamed(i, "when it was made"):
                self.envs.append(recorded(_made(function, registry)))
            silence_passive_checker(self.envs[-1])
        first = self.envs[0]
        masks = tuple(has_masks(env) for env in self.envs)
        name = getattr(getattr(first, "spec", None), "id", None)
        mode = getattr(first, "render_mode", None)
        return Hello(first.observation_space, first.action_space, masks, name, mode)

    def share(self, layout: Layout) -> None:
        """Use the memory shared."""
        self.block, self.layout = Block(layout, mmap.mmap(self.memory, block_size(layout))), layout
        self.masks = [env.get_wrapper_attr("action_masks") for env in self.envs] if layout.choices else []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new episodes everywhere."""
        for i, seed in enumerate(seeds):
            self._reset_one(i, seed)

    def step(self) -> list[dict[str, Any]]:
        """Step every environment by its action in the block; ended episodes begin anew. Returns the infos."""
        block, infos = self.block, []
        terminated, truncated = block.ends
        block.final_mask[:] = True
        actions = block.action.copy()  # environments may keep what they are given
        for i, env in enumerate(self.envs):
            block.doing[:] = STEPPING, i
            try:
                answer = env.step(actions[i])
            except Exception as error:
                raise EnvironmentFault(i, f"raised {_kind(error)} in step({actions[i]!r})") from error
            try:
                obs, block.reward[i], over, cut, info = answer
                terminated[i], truncated[i] = over, cut
                self._write(block.final if over or cut else block.obs, i, obs)
            except Exception as error:
                raise EnvironmentFault(i, f"answered {answer!r} to step: {_kind(error)}") from error
            infos.append(info)
            if over or cut:
                if self.masks and not over:
                    block.final_mask[i] = final_mask_row(self.masks[i], self.layout.choices)
                self._reset_one(i, None)
            elif self.masks:
                self._write_mask(i)
        block.doing[:] = OTHERWISE, 0
        return infos

    def each(self, function: Callable[..., Any], arguments: Sequence[tuple], places: Sequence[int]) -> list[Any]:
        """`function(env, *arguments)` of the environments in `places`."""
        results = []
        for i, given in zip(places, arguments, strict=True):
            with _blamed(i, f"in {getattr(function, '__name__', 'a function')}{given!r}"):
                results.append(function(self.envs[i], *given))
        return results

    def _reset_one(self, i: int, seed: int | None) -> None:
        self.block.doing[:] = RESETTING, i
        with _blamed(i, "in reset()"):
            self._write(self.block.obs, i, self.envs[i].reset(seed=seed)[0])
        if self.masks:
            self._write_mask(i)
        self.block.doing[:] = OTHERWISE, 0

    def _write(self, rows: list[np.ndarray], i: int, obs: Any) -> None:
        for row, leaf in zip(rows, self.layout.obs, strict=True):
            x = obs
            for key in leaf.path:
                x = x[key]
            x = np.asarray(x, row.dtype)
            if x.shape != leaf.shape:
                raise ValueError(f"observations have shape {x.shape}, expected {leaf.shape}")
            row[i] = x

    def _write_mask(self, i: int) -> None:
        with _blamed(i, "in action_masks()"):
            self.block.mask[i] = mask_row(self.masks[i](), self.layout.choices)

    def _bytes(self, message: Any) -> bytes:
        try:
            return bytes(ForkingPickler.dumps(message))
        except Exception:  # a class of the parent's `__main__` in it, or what cannot be sent at all
            try:
                return packed(message)
            except Exception as error:
                return packed(_fault(0, f"gave what cannot be sent to another process: {_kind(error)}", error))


@contextlib.contextmanager
def _blamed(place: int, where: str) -> Iterator[None]:
    """What goes wrong inside is an environment's fault."""
    try:
        yield
    except Exception as error:
        raise EnvironmentFault(place, f"raised {_kind(error)} {where}") from error


def _made(function: Callable[[], gymnasium.Env], registry: bytes) -> gymnasium.Env:
    """The function's environment; ids registered in the parent's script are known here only when asked for."""
    try:
        return function()
    except Exception as error:
        unknown = gymnasium.error.UnregisteredEnv
        if not isinstance(error, unknown) and not isinstance(error.__context__, unknown):
            raise
        missing = {name: spec for name, spec in unpacked(registry).items() if name not in gymnasium.registry}
        if not missing:
            raise
        gymnasium.registry.update(missing)
        return function()


def _fault(place: int, said: str, error: BaseException | None) -> Fault:
    text = "".join(traceback.format_exception(error))
    try:
        unpacked(packed(error))  # some exceptions can be sent and not be received
    except Exception:
        error = None
    return Fault(place, said, text, error)


def _kind(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
