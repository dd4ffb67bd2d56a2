"""Signals end the process at once, whatever it is doing: starting, waiting for the kernel, or stuck in it.

Every kernel state that is left is a working one, and it stays (contract 1.19). A thread of its own waits for
signals, since Python's handlers run in the main thread and only between two of its steps. As process 1 of a
container this is needed at all: the kernel has no default action there.
"""

import os
import signal
import threading
from collections.abc import Iterable

import structlog

ALWAYS = (signal.SIGTERM,)
UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)
"""Ignored by the wish of who started us: nohup(1), or a shell that has put us in the background."""
WORDS_SECONDS = 1.0
"""For the last line of the log. Who reads it may have stopped reading."""

log = structlog.get_logger()


def end_at_once() -> None:
    """End the process from now on when a signal asks for it. To be called before any other thread exists."""
    kept = {number for number in UNLESS_IGNORED if signal.getsignal(number) is signal.SIG_IGN}
    wanted = {*ALWAYS, *UNLESS_IGNORED} - kept
    # Threads inherit this, so that only sigwait sees these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    threading.Thread(target=_wait, args=(wanted,), name="signals", daemon=True).start()


def _wait(wanted: Iterable[signal.Signals]) -> None:
    number = signal.sigwait(wanted)
    words = threading.Thread(target=_say, args=(signal.Signals(number).name,), daemon=True)
    words.start()
    words.join(WORDS_SECONDS)
    os._exit(128 + number)


def _say(name: str) -> None:
    log.info("ending, the kernel keeps its state", signal=name)
