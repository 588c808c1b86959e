"""The parent's end of a process that steps environments: it starts it, asks it and finds out how it died."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

import gymnasium

from advantage.envs.vector import EnvironmentFailure
from advantage.envs.worker import (
    CLOSE, DOING, DONE, Block, Fault, Hello, Layout, Value, block_size, packed, unpacked,
)  # fmt: skip

Make = Callable[[], gymnasium.Env]
SECONDS_TO_CLOSE = 5.0
"""For environments to close by themselves; then their process is killed."""
BOOT = (
    "import sys; sys.path[:] = {path!r}\n"
    "from advantage.envs.worker import main; main({pipe}, {memory}, {trace}, {parent})"
)
THREADS = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")] + ["VECLIB_MAXIMUM_THREADS"]


class WorkerTraceback(Exception):
    """The text of a traceback in an environment's process."""

    def __str__(self) -> str:
        return f"in the environment's process:\n\n{self.args[0]}"


class WorkerDied(Exception):
    """A process is gone, or was ended for giving no answer; `place` is the environment it was busy with."""

    def __init__(self, reason: str, doing: str = "", place: int | None = None):
        super().__init__(reason)
        self.reason, self.doing, self.place = reason, doing, place


class WorkerFault(Exception):
    """An environment raised; `error` is its exception, with the traceback's text as the cause."""

    def __init__(self, fault: Fault):
        super().__init__(fault.said)
        self.fault, text = fault, WorkerTraceback(fault.text)
        self.error: BaseException = fault.error or text
        if fault.error is not None:
            fault.error.__cause__ = text


class Worker:
    """The parent's end of one process and its environments."""

    def __init__(self, functions: Sequence[Make], first: int, timeout: float | None, threads: int):
        """
        Args:
            functions: each makes an environment.
            first: the place of the first of them among all.
            timeout: seconds for an answer; None: any time.
            threads: of numerical libraries in there.
        """
        self.functions, self.timeout, self.threads = list(functions), timeout, threads
        self.places = slice(first, first + len(self.functions))
        self.memory, self.trace = _nameless_file(), _nameless_file()
        self.forget = weakref.finalize(self, _close_files, self.memory, self.trace)
        self.layout: Layout | None = None
        self.block: Block | None = None
        self.hello: Hello | None = None
        self.start()

    def start(self) -> None:
        """Start the process; its first answer comes once its environments are made."""
        try:
            message = packed(("start", self.functions, _registered_by_the_user()))
        except Exception as error:
            raise ValueError(
                f"env_fns cannot be sent to another process ({type(error).__name__}: {error}): let each function make"
                " all that it needs, or step the environments in this process with vec_env='sync'"
            ) from error
        self.connection, theirs = Pipe()
        files = {"pipe": theirs.fileno(), "memory": self.memory.fileno(), "trace": self.trace.fileno()}
        code = BOOT.format(path=[os.path.abspath(folder) for folder in sys.path], parent=os.getpid(), **files)
        variables = dict.fromkeys(THREADS, str(self.threads)) | os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", code]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited: deaf to Ctrl-C from birth
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, env=variables, pass_fds=list(files.values())
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.poller = select.poll()
        self.poller.register(self.connection.fileno(), select.POLLIN)
        self.owed = self.torn = False  # whether an answer is to come; whether it was read in part
        self.end = weakref.finalize(self, _end, self.process, self.connection, os.getpid())
        self.post(message)

    def share(self, layout: Layout) -> None:
        """Agree on the memory shared."""
        if self.block is None:
            self.layout, size = layout, block_size(layout)
            self.memory.truncate(size)
            self.block = Block(layout, mmap.mmap(self.memory.fileno(), size))
        self.post(packed(("share", layout)))
        self.answer()

    def restart(self) -> None:
        """A new process with new environments, yet to be reset."""
        self.end()
        self.block.doing[:] = 0
        self.start()
        self.answer(patient=True)
        self.share(self.layout)

    def close(self) -> None:
        """Close the environments and end the process."""
        self.end()
        self.forget()

    def post(self, message: bytes) -> None:
        """Send a message; each has one answer.

        Raises:
            EnvironmentFailure: the environments were closed.
        """
        self.settle()
        self.owed = True
        with contextlib.suppress(OSError):  # it has died, and the missing answer will say so
            self.connection.send_bytes(message)

    def settle(self) -> None:
        """Wait for the answer to a call that was interrupted; raises as `post`."""
        if not self.end.alive:
            raise EnvironmentFailure("these environments were closed: make new ones")
        if self.owed and not self.torn:
            with contextlib.suppress(WorkerDied, WorkerFault):
                self.answer()

    def answer(self, patient: bool = False) -> Any:
        """The answer to the last message: infos, a value, or None; `patient`: whatever `timeout` says.

        Raises:
            WorkerDied: there is none.
            WorkerFault: an environment raised.
        """
        if self.torn:
            raise self._death("was interrupted while it answered")
        wait = None if patient or self.timeout is None else 1000 * self.timeout
        if not self.poller.poll(wait):
            self.process.send_signal(signal.SIGUSR1)  # to write down where it hangs
            time.sleep(0.1)
            raise self._death(f"gave no answer for {self.timeout:g} s")
        self.torn, data = True, None
        with contextlib.suppress(EOFError, OSError):
            data = self.connection.recv_bytes()
        self.torn = False
        if data is None:
            raise self._death(None)
        self.owed = False
        if data == DONE:
            return None
        answer = unpacked(data)
        if isinstance(answer, Fault):
            raise WorkerFault(answer)
        return answer.value if isinstance(answer, Value) else answer

    def _death(self, reason: str | None) -> WorkerDied:
        """End what is left of the process; the exception says how it died, and where if Python could tell."""
        if reason is None:
            try:
                reason = _fate(self.process.wait(SECONDS_TO_CLOSE))
            except subprocess.TimeoutExpired:
                reason = "closed its pipe"
        self.process.kill()
        self.process.wait()
        what, place = (0, 0) if self.block is None else self.block.doing.tolist()
        died = WorkerDied(reason, DOING[what], self.places.start + place if what else None)
        self.trace.seek(0)
        if text := self.trace.read().decode(errors="replace"):
            died.__cause__ = WorkerTraceback(text)
            self.trace.truncate(0)
            self.trace.seek(0)
        return died


def _end(process: subprocess.Popen, connection: Connection, owner: int) -> None:
    """Let the environments close, and reap the process."""
    if os.getpid() != owner:  # a fork of the parent that ends: the workers are not its own
        return
    with contextlib.suppress(OSError):
        connection.send_bytes(CLOSE)
    connection.close()
    try:
        process.wait(SECONDS_TO_CLOSE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _close_files(*files: io.FileIO) -> None:
    for file in files:
        file.close()


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    names = {s.value: s.name for s in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"


def _nameless_file() -> io.FileIO:
    """A file that nobody can find: whatever becomes of the processes, nothing is left behind."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("advantage"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _registered_by_the_user() -> bytes:
    """Ids that a new process may not know."""
    specs = gymnasium.registry.items()
    try:
        return packed({name: s for name, s in specs if not str(s.entry_point).startswith("gymnasium.")})
    except Exception:  # one of them cannot be sent: then only those that modules register are known there
        return packed({})
