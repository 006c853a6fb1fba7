"""Ctrl-C, a terminal that is closed and a polite kill: all end a command in the same way, and never halfway."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_raises_keyboard_interrupt() -> Iterator[None]:
    """Within it, each of the ENDING signals raises KeyboardInterrupt, even one that this process was told to ignore."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    with _handlers(interrupt):
        yield


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Within it, an ENDING signal waits; it is delivered at the end. Outside the main thread nothing is to be done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    try:
        with _handlers(lambda number, frame: held.append(number)):
            yield
    finally:
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _handlers(handler) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in ENDING}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
