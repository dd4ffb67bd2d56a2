"""Waiting for what a proxy does by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_SECONDS = 0.2


def eventually(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds; it must go on holding, so it is asked twice. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not (holds() and holds()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(POLL_SECONDS)
