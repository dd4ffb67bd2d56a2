"""Waiting: for what a proxy does by itself, and for answers."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL_SECONDS = 0.2
STEP_SECONDS = 0.1


def eventually(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds; it must go on holding, so it is asked twice. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (holds() and holds()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(POLL_SECONDS)


class Patience:
    """Seconds to wait for answers, in steps; true while some are left.

    A machine that stands still for seconds uses up one step: who answers has stood still as well.
    """

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def __bool__(self) -> bool:
        return self._left > 0

    @contextmanager
    def step(self) -> Iterator[float]:
        """Yield how long to wait now."""
        began, seconds = time.monotonic(), max(0.0, min(self._left, STEP_SECONDS))
        yield seconds
        self._left -= min(time.monotonic() - began, seconds)


def receive(asking: socket.socket, patience: Patience) -> bytes:
    """Wait for what comes next on a socket. Raises TimeoutError, and OSError as `recv`."""
    poll = select.poll()
    poll.register(asking, select.POLLIN)
    while True:
        with patience.step() as seconds:
            ready = poll.poll(seconds * 1000)
        if ready:
            return asking.recv(1 << 16)
        if not patience:
            raise TimeoutError("timed out")
