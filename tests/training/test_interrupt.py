"""Ctrl-C: a request first, an exception second, the former handler afterwards."""

import signal
import threading

import pytest

from advantage.training.interrupt import Interrupt


def press():
    signal.raise_signal(signal.SIGINT)


def test_first_press_requests_second_raises_and_handler_is_restored():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        with Interrupt() as interrupt:
            assert not interrupt.requested
            press()
            assert interrupt.requested
            press()
    assert signal.getsignal(signal.SIGINT) is former


def test_handler_is_restored_after_any_exception():
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        with Interrupt():
            raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is former
    with pytest.raises(KeyboardInterrupt):
        press()


def test_nested_contexts_all_see_the_request():
    with Interrupt() as outer:
        with Interrupt() as inner:
            press()
        assert inner.requested and outer.requested
        with pytest.raises(KeyboardInterrupt):
            press()


def test_ignored_sigint_stays_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            press()
            assert not interrupt.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


def test_does_nothing_off_the_main_thread():
    former = signal.getsignal(signal.SIGINT)
    handlers = []

    def work():
        with Interrupt() as interrupt:
            handlers.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [(former, False)]
