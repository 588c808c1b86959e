"""Live progress of a training run: one line with spinner, bar, speed, return and times."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import SupportsFloat, SupportsInt

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

REFRESH_HZ = 4.0
"""Redraws per second on a terminal; one takes about 1.2 ms of the refreshing thread."""
FIRST_LINE_SECONDS = 0.5
"""Where there is no terminal: the first line comes this late, so that it can name the first phase."""
LINE_SECONDS = 10.0
"""Where there is no terminal: seconds between two lines."""

_lock = threading.Lock()
_active: LiveProgress | None = None


class LiveProgress:
    """Context manager that shows how far training is, on stderr.

    On a terminal it redraws one line from a thread of its own, so spinner and elapsed time keep moving
    while the main thread is inside a long XLA call; what is printed meanwhile appears above the line.
    Elsewhere (a file, a CI log, a notebook without ipywidgets) it writes a plain line after half a second,
    then one every 10 s, and one at the end. `phase` and `update` only store numbers: they never wait.

    A use inside another shows nothing. Leaving the context, also by an exception or Ctrl-C, draws the last
    state, stops the thread and restores cursor and streams before it returns.

    Args:
        total_steps: environment steps the run will take (per seed).
        title: what is being trained, such as "PPO CartPole-v1".
        enabled: False shows nothing.
        console: where to draw; stderr by default.
    """

    def __init__(self, total_steps: int, title: str, enabled: bool = True, *, console: Console | None = None):
        self.total_steps = total_steps
        self.title = title
        self.enabled = enabled
        self._console = console or Console(stderr=True)
        self._phase: str | None = "starting"
        self._steps = 0
        self._returns: float | None = None
        self._fps: float | None = None
        self._seeds: int | None = None
        self._start = time.monotonic()
        self._first_update: tuple[float, int] | None = None
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def phase(self, name: str) -> None:
        """Say what happens now ("compiling PPO ..."), until the next `phase` or `update`."""
        self._phase = name

    def update(
        self,
        steps: SupportsInt,
        returns: SupportsFloat | None = None,
        fps: SupportsFloat | None = None,
        seeds: int | None = None,
    ) -> None:
        """Store the run's state; drawn at the next refresh. Costs about a microsecond.

        Args:
            steps: environment steps since the run's start (not since the last call), per seed.
            returns: mean episode return, None to leave what is shown.
            fps: environment steps per second, None to leave what is shown.
            seeds: number of agents trained at once, None to leave what is shown.
        """
        self._steps = int(steps)
        if self._first_update is None:
            # Speed for the time left: measured from here, since compilation and earlier runs don't count.
            self._first_update = (time.monotonic(), self._steps)
        self._phase = None
        if returns is not None:
            self._returns = float(returns)
        if fps is not None:
            self._fps = float(fps)
        if seeds is not None:
            self._seeds = seeds

    def __enter__(self) -> LiveProgress:
        global _active
        with _lock:
            if not self.enabled or _active is not None:
                return self
            _active = self
        self._start = time.monotonic()
        try:
            self._open()
        except BaseException:
            # `__exit__` isn't called for us: a Ctrl-C here must not leave the cursor hidden.
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Draw the last state and give the terminal back. Leaving the context does it; twice is harmless."""
        global _active
        if _active is not self:
            return
        try:
            if self._live is not None:
                self._live.stop()
            elif self._thread is not None:
                self._stop.set()
                self._thread.join()
                self._print_line()
        finally:
            if self._live is not None:
                self._console.show_cursor(True)
            self._live = self._thread = None
            with _lock:
                _active = None

    def _open(self) -> None:
        if _can_redraw(self._console):
            self._live = Live(
                get_renderable=lambda: self,
                console=self._console,
                refresh_per_second=REFRESH_HZ,
                # rich sends redirected output to *its* console: a stdout piped to a file must stay there.
                redirect_stdout=_is_terminal(sys.stdout),
                redirect_stderr=_is_terminal(sys.stderr),
            )
            self._live.start(refresh=True)
        else:
            self._thread = threading.Thread(target=self._print_lines, name="advantage-progress", daemon=True)
            self._thread.start()

    def _print_lines(self) -> None:
        pause = FIRST_LINE_SECONDS
        while not self._stop.wait(pause):
            self._print_line()
            pause = LINE_SECONDS

    def _print_line(self) -> None:
        # One write, unwrapped and without markup, so that logs stay one line per message.
        line = f"{self.title}: {', '.join([*self._fields(), f'{_clock(self._elapsed())} elapsed'])}\n"
        self._console.file.write(line)
        self._console.file.flush()

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _seconds_left(self) -> float | None:
        if self._first_update is None:
            return None
        since, steps_then = self._first_update
        done = self._steps - steps_then
        if done <= 0 or self._steps >= self.total_steps:
            return None
        return (self.total_steps - self._steps) * (time.monotonic() - since) / done

    def _fields(self) -> list[str]:
        """What there is to say, the most important first."""
        fields = [self._phase] if self._phase is not None else []
        if self._first_update is not None:
            fields.append(f"{self._steps:,}/{self.total_steps:,}")
        if self._returns is not None:
            fields.append(f"return {_number(self._returns)}")
        if self._fps is not None:
            fields.append(f"{self._fps:,.0f} steps/s")
        if self._seeds is not None and self._seeds > 1:
            fields.append(f"{self._seeds} seeds")
        return fields

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """One line that fits the terminal: the bar shrinks first, then the last fields go."""
        left = self._seconds_left()
        clock = _clock(self._elapsed()) + (f" < {_clock(left)}" if left is not None else "")
        fields = self._fields()
        started = self._first_update is not None
        bar_room = 12 if started else 0
        while len(fields) > 1 and len(self._line(fields, clock)) + bar_room + 4 > options.max_width:
            fields.pop()
        row = [self._spinner, Text(self.title, style="bold")]
        room = options.max_width - len(self._line(fields, clock)) - 4
        if started and room >= 8:
            done = min(self._steps, self.total_steps)
            row.append(ProgressBar(total=max(self.total_steps, 1), completed=done, width=min(room, 40)))
        row += [Text("  ".join(fields)), Text(clock, style="cyan")]
        grid = Table.grid(padding=(0, 1))
        for _ in row:
            grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row(*row)
        yield grid

    def _line(self, fields: list[str], clock: str) -> str:
        return f"{self.title} {'  '.join(fields)} {clock}"


def _can_redraw(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def _is_terminal(stream: object) -> bool:
    # A stream may be None (pythonw) or lack `isatty` (a notebook's replacement).
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
