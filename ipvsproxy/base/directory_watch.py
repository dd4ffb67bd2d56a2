"""When to look at some folders again: after each change directly inside them, and now and then in any case.

The kernel tells of changes (inotify(7)), so a thread that waits here costs nothing. Libraries for that look for
changes many times a second, or take more threads; what is needed of it is two calls of the C library. Where
inotify is not to be had (each user has a limited number, and a folder may be away), the clock alone must do, as on
file systems that announce nothing.
"""

import ctypes
import errno
import os
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from ipvsproxy.base import messages

CALM_SECONDS, LONGEST_SECONDS = 0.05, 1.0
"""Writers that pause for less than the first are waited for, at most as long as the second."""
BLIND_SECONDS = 2.0
"""Between two looks without inotify."""
CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""IN_MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF."""
NEWS_BYTES = 1 << 16
AWAY = (errno.ENOENT, errno.ENOTDIR)

log = structlog.get_logger()
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatcher:
    """Of some folders; `seconds` is the longest time between two looks. One thread looks, any may `stop` it."""

    def __init__(self, folders: Iterable[Path], seconds: float) -> None:
        self._folders = tuple(folders)
        self._seconds = seconds
        self._stopped = False
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._reason = ""

    def looks(self) -> Iterator[None]:
        """Yield whenever it is time to look, at once for the first time, until stopped.

        Each look has a watch of its own that begins before it: nothing between two looks is missed, and a folder
        that another one has replaced is not watched on.
        """
        while not self._stopped:
            watch = self._watch()
            try:
                yield
                self._wait(watch)
            finally:
                if watch is not None:
                    os.close(watch)

    def follow(self, folders: Iterable[Path]) -> None:
        """Take these folders from the next look on. Only for the thread that looks."""
        self._folders = tuple(folders)

    def stop(self) -> None:
        """End `looks`, also while it waits."""
        self._stopped = True
        os.eventfd_write(self._stop, 1)

    def _watch(self) -> int | None:
        """Return a descriptor that reports changes in directories, None if there is no inotify."""
        try:
            return _watch(self._folders)
        except OSError as error:
            if error.errno not in AWAY and self._reason != (reason := os.strerror(error.errno or 0)):
                self._reason = reason
                log.warning(messages.NO_INOTIFY, err=reason)
        return None

    def _wait(self, watch: int | None) -> None:
        longest = self._seconds if watch is not None else min(self._seconds, BLIND_SECONDS)
        if self._is_news(watch, longest):
            until = time.monotonic() + LONGEST_SECONDS
            while time.monotonic() < until and self._is_news(watch, CALM_SECONDS):
                pass

    def _is_news(self, watch: int | None, seconds: float) -> bool:
        """Wait for changes, at most so long, and take them all."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if watch is not None:
            poll.register(watch, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
        if watch is None or watch not in ready:
            return False
        with suppress(BlockingIOError):
            while os.read(watch, NEWS_BYTES):
                pass
        return True


def _watch(folders: Iterable[Path]) -> int:
    """Return an inotify of some folders. Raises OSError."""
    watch = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        for folder in folders:
            _checked(_libc.inotify_add_watch(watch, os.fsencode(folder), CHANGES))
    except OSError:
        os.close(watch)
        raise
    return watch


def _checked(result: int) -> int:
    """Return what a function of the C library has returned. Raises OSError."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
