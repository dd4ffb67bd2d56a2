"""A proxy process of a lab: started in a node's namespace, watched through its JSON log.

The log goes to a file, which the test report shows when a test fails. Waiting for an event polls
the file: no pipe can fill up, and a test can look at everything that was said so far.
"""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from tests.lab import netns

START_SECONDS = 120.0  # imports alone take many seconds under emulation
STOP_SECONDS = 30.0


class LabProxy:
    """One process, which may be stopped and started again."""

    def __init__(self, where: str, argv: Sequence[str], log: pathlib.Path) -> None:
        self.netns, self.argv, self.log = where, list(argv), log
        self.process: subprocess.Popen[bytes] | None = None
        self._offset = 0

    def start(self) -> None:
        """Start it; the child inherits the namespace of the thread that forks."""
        self._offset = self.log.stat().st_size if self.log.exists() else 0
        with netns.inside(self.netns), self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end; returns the exit code (negative: the signal that killed it)."""
        process = self._started()
        process.send_signal(number)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def end(self) -> int:
        """Wait until it ends by itself; returns the exit code."""
        return self._started().wait(START_SECONDS)

    def kill(self) -> None:
        """End it without a word; nothing happens if it is not running."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        return self._started().pid

    def text(self) -> str:
        """Everything it has logged, earlier starts included."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def events(self, name: str | None = None) -> list[dict[str, object]]:
        """The JSON log lines since the last start, of one event or all."""
        return [line for line in self._lines() if name is None or line.get("msg") == name]

    def wait_for(self, event: str, times: int = 1, timeout: float = START_SECONDS) -> dict[str, object]:
        """Wait until an event has been logged (so many times, since the start) and return that line."""
        deadline = time.monotonic() + timeout
        while len(found := self.events(event)) < times:
            if not self.is_running():
                raise RuntimeError(f"{self.argv} ended with {self._started().returncode}:\n{self.text()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {event!r} from {self.argv} in {timeout:.0f} s:\n{self.text()}")
            time.sleep(0.1)
        return found[times - 1]

    def _lines(self) -> Iterator[dict[str, object]]:
        with self.log.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                # The last line may be half written, and a traceback is not JSON.
                if line.startswith(b"{") and line.endswith(b"}\n"):
                    yield json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise RuntimeError("not started")
        return self.process
