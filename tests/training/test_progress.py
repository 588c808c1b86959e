"""Live progress: on a terminal, without one, nested, interrupted, and cheap."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from advantage.training import progress as progress_module
from advantage.training.progress import LiveProgress

SOURCE = Path(progress_module.__file__).parents[2]


def terminal(width=100):
    return Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, width=width, _environ={})


def plain():
    return Console(file=io.StringIO(), force_terminal=False, force_jupyter=False, _environ={})


def text_of(console):
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_terminal_shows_the_phase_while_the_main_thread_is_busy():
    console = terminal()
    with LiveProgress(1000, "PPO CartPole-v1", console=console) as progress:
        progress.phase("compiling PPO ...")
        # The refresh thread alone draws: elapsed time moves on without a call of ours.
        wait_for(lambda: "compiling PPO ... 0:01" in text_of(console))


def test_terminal_ends_with_the_last_state_and_the_cursor_shown():
    console = terminal(width=120)
    with LiveProgress(100_000, "PPO", console=console) as progress:
        progress.update(100_000, returns=487.25, fps=12_345.6, seeds=8)
    last = text_of(console).rstrip().splitlines()[-1].split("\r")[-1]
    for part in ("PPO", "━", "100,000/100,000", "return 487.2", "12,346 steps/s", "8 seeds", "0:00"):
        assert part in last
    output = console.file.getvalue()
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l")
    wait_for(lambda: not [thread for thread in threading.enumerate() if "Refresh" in type(thread).__name__])


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_terminal_line_fits_any_width(width):
    console = terminal(width)
    with LiveProgress(10_000_000, "PPO advantage/CartPole-v1", console=console) as progress:
        progress.update(5_000_000, returns=-1234.5, fps=123_456, seeds=32)
    lines = [part for part in re.split(r"[\r\n]+", text_of(console)) if part.strip()]
    assert lines and all(len(line) <= width for line in lines)


def test_without_terminal_one_line_within_a_second_then_one_per_period(monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.2)
    console = plain()
    with LiveProgress(1000, "DQN", console=console) as progress:
        progress.phase("compiling DQN ...")
        wait_for(lambda: console.file.getvalue(), seconds=1.0)
        assert console.file.getvalue() == "DQN: compiling DQN ..., 0:00 elapsed\n"
        progress.update(500, returns=20.0)
        wait_for(lambda: console.file.getvalue().count("\n") == 2)
    lines = console.file.getvalue().splitlines()
    assert lines[1].startswith("DQN: 500/1,000, return 20, 0:0")
    assert "\x1b" not in console.file.getvalue()


def test_without_terminal_updates_do_not_print():
    console = plain()
    with LiveProgress(1000, "DQN", console=console) as progress:
        for step in range(1000):
            progress.update(step + 1)
    assert console.file.getvalue() == "DQN: 1,000/1,000, 0:00 elapsed\n"


def test_nested_use_shows_nothing_and_the_outer_goes_on():
    outer_console, inner_console = terminal(), terminal()
    with LiveProgress(10, "outer", console=outer_console) as outer:
        with LiveProgress(10, "inner", console=inner_console) as inner:
            inner.phase("evaluating")
            inner.update(5)
        outer.update(10)
    assert inner_console.file.getvalue() == ""
    assert "10/10" in text_of(outer_console)
    with LiveProgress(10, "next", console=inner_console):
        pass
    assert "next" in text_of(inner_console)


def test_disabled_shows_nothing():
    console = terminal()
    with LiveProgress(10, "PPO", enabled=False, console=console) as progress:
        progress.phase("x")
        progress.update(3)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("console", [terminal(), plain()])
def test_exceptions_pass_through_and_end_the_display(console):
    with pytest.raises(KeyboardInterrupt):
        with LiveProgress(10, "PPO", console=console):
            raise KeyboardInterrupt
    size = len(console.file.getvalue())
    time.sleep(0.6)
    assert len(console.file.getvalue()) == size
    assert progress_module._active is None


def test_close_ends_the_display_early_and_twice_is_harmless():
    console = terminal()
    with LiveProgress(10, "PPO", console=console) as progress:
        progress.close()
        progress.close()
        progress.update(10)
        size = len(console.file.getvalue())
    assert len(console.file.getvalue()) == size


def test_zero_steps_and_more_steps_than_planned_are_drawn():
    for total, steps in ((0, 0), (10, 25)):
        console = terminal()
        with LiveProgress(total, "PPO", console=console) as progress:
            progress.update(steps)
        assert f"{steps}/{total}" in text_of(console)


def test_time_left_leaves_out_compilation_and_earlier_runs(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    progress = LiveProgress(1000, "PPO")
    assert progress._seconds_left() is None
    now[0] += 60.0  # compiling
    progress.update(400)
    assert progress._seconds_left() is None
    now[0] += 2.0
    progress.update(600)
    # 200 steps in 2 s: 400 more take 4 s.
    assert progress._seconds_left() == pytest.approx(4.0)
    progress.update(1000)
    assert progress._seconds_left() is None


CHEAP = """
import io, time
from rich.console import Console
from advantage.training.progress import LiveProgress
with LiveProgress(10**9, "PPO", console=Console(file=io.StringIO(), force_terminal=True)) as progress:
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        for step in range(2000):
            progress.update(step, returns=1.0, fps=2.0, seeds=8)
        best = min(best, (time.perf_counter() - start) / 2000)
assert best < 20e-6, best
"""


def test_update_is_cheap():
    # In a process of its own: the tests' type checks cost more than the call.
    subprocess.run([sys.executable, "-c", CHEAP], check=True, env={**os.environ, "PYTHONPATH": str(SOURCE)})


SCRIPT = """
import sys, time
from advantage.training.progress import LiveProgress
with LiveProgress(10, "PPO"):
    print("a table", flush=True)
    time.sleep({seconds})
"""


def in_terminal(seconds, interrupt, stdout=None):
    """Run SCRIPT on a pseudo-terminal, optionally with Ctrl-C. Returns what the terminal received."""
    pty = pytest.importorskip("pty")
    main, sub = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-c", SCRIPT.format(seconds=seconds)]
    process = subprocess.Popen(command, stdin=sub, stdout=stdout or sub, stderr=sub, env=env)
    os.close(sub)
    received = b""
    while True:
        try:
            data = os.read(main, 4096)
        except OSError:
            break
        received += data
        if not data:
            break
        if interrupt and "PPO starting".encode() in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", received):
            interrupt = False
            process.send_signal(signal.SIGINT)
    os.close(main)
    process.wait(timeout=20)
    return received.decode()


def test_ctrl_c_gives_the_cursor_back():
    output = in_terminal(seconds=20, interrupt=True)
    assert "KeyboardInterrupt" in output
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0


def test_piped_stdout_stays_in_its_file(tmp_path):
    with open(tmp_path / "out.txt", "w") as file:
        output = in_terminal(seconds=0.1, interrupt=False, stdout=file)
    assert (tmp_path / "out.txt").read_text() == "a table\n"
    assert "a table" not in output and "PPO" in output
