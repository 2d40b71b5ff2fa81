"""Signals that ask a command to stop: Ctrl-C, SIGTERM, and SIGUSR1, by which SLURM can announce that a job must end.

A stopped command exits with 128 plus the signal's number, as shells report it: 130, 143 and 138.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TWICE = 1.0  # seconds: launchers pass on a signal that the terminal or the scheduler has sent to all processes already


class Stopped(KeyboardInterrupt):
    """A signal has stopped the command; its message says where, and how to go on."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(*([message] if message else []))
        self.number = number


class StopRequest:
    """Whether a signal has asked the run to stop, and which."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def made(self) -> bool:
        """Whether one has."""
        return self.number > 0


def stop_at_once() -> None:
    """Let SIGTERM and SIGUSR1 stop the command where it is, as Ctrl-C does, outside `stop_on_signal`."""

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        raise Stopped(number=number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """While inside, a signal sets `made`; Ctrl-C once more, a second later at least, raises KeyboardInterrupt."""
    request, first = StopRequest(), 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        del frame
        now = time.monotonic()
        if request.made and number == signal.SIGINT and now - first >= TWICE:
            raise KeyboardInterrupt
        if not request.made:
            request.number, first = number, now

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
