"""Ctrl-C as a request: training stops at the next safe point instead of in the middle of an update."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupt:
    """Context manager: the first SIGINT sets `requested`, a second raises KeyboardInterrupt at once.

    The former handler is back when the context ends. Nested contexts all see the request. Nothing is
    installed off the main thread (Python forbids it there), where SIGINT is ignored (`nohup`), and where
    the handler was not set from Python, since that one could not be restored.

    Python runs signal handlers between bytecodes: presses during one long XLA call arrive after it, and
    several count as one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: signal.Handlers | object = None
        self._installed = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is not threading.main_thread():
            return self
        former = signal.getsignal(signal.SIGINT)
        if former is None or former == signal.SIG_IGN:
            return self
        self._former = former
        self._installed = True
        signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            self._installed = False
            signal.signal(signal.SIGINT, self._former)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self._request()

    def _request(self) -> None:
        self.requested = True
        outer = getattr(self._former, "__self__", None)
        if isinstance(outer, Interrupt):
            outer._request()
