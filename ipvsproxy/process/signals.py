"""Signals end the process at once, whatever it is doing: starting, waiting for the kernel, or stuck in it.

Every kernel state that is left is a working one, and it stays (contract 1.19). A thread of its own waits for
signals, since Python's handlers run in the main thread and only between two of its steps. As process 1 of a
container this is needed at all: the kernel has no default action there.
"""

import os
import signal
import threading

import structlog

ALWAYS = (signal.SIGTERM,)
UNLESS_IGNORED = (signal.SIGINT, signal.SIGHUP)
"""Ignored by the wish of who started us: nohup(1), or a shell that has put us in the background."""
LOG_SECONDS = 1.0
"""For the last line of the log. Who reads it may have stopped reading."""

log = structlog.get_logger()


def end_at_once() -> None:
    """End the process from now on when a signal asks for it. To be called by the main thread."""
    kept = {number for number in UNLESS_IGNORED if signal.getsignal(number) is signal.SIG_IGN}
    read, write = os.pipe()
    os.set_blocking(write, False)
    # The interpreter's own handler writes there at once, in whatever thread. Nothing is blocked: programs that are
    # started here (a plugin for credentials) would inherit that.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in {*ALWAYS, *UNLESS_IGNORED} - kept:
        signal.signal(number, _honored)
    threading.Thread(target=_wait, args=(read,), name="signals", daemon=True).start()


def _honored(_number: int, _frame: object) -> None:
    """Do nothing: that there is a handler is what counts."""


def _wait(read: int) -> None:
    (number,) = os.read(read, 1)
    thread = threading.Thread(target=_log_signal, args=(signal.Signals(number).name,), daemon=True)
    thread.start()
    thread.join(LOG_SECONDS)
    os._exit(128 + number)


def _log_signal(name: str) -> None:
    log.info("Received signal, exiting and leaving kernel state in place", signal=name)
