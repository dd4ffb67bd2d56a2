"""One ipvsproxy for each network namespace: only the one that holds a name may change the kernel.

The name is an abstract unix socket (unix(7)). Such names belong to a network namespace, as IPVS, links and
nftables do; they need no file that containers would have to share; and the kernel takes them back when a process
ends, however it ends. The holder says who it is to those that connect, and the end of that connection is what they
wait for.

Any process of the namespace could take the name. One that runs neither as root nor as our own user is no proxy: it
is reported, and not waited for.
"""

import errno
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

import structlog

NAME = "ipvsproxy/lock"
ANSWER_SECONDS, LOOK_SECONDS = 5.0, 1.0
PAUSE_SECONDS = 0.05
MAX_WAITING = 8
"""Connections the holder keeps; of more, the oldest is let go and comes again."""
MAX_WORDS = 256
CREDENTIALS = struct.Struct("=iII")

log = structlog.get_logger()


class Holder(NamedTuple):
    """Who has the name: process number as we see it (0: in a container we cannot see into), user, own words."""

    pid: int
    user: int
    words: str

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "a process of another container"
        return ", ".join(filter(None, (who, f"user {self.user}" if self.user else "", self.words)))


class Lock:
    """The name, held or waited for. Belongs to one thread at a time."""

    def __init__(self, name: str = NAME) -> None:
        self._address = f"\0{name}"
        self._held: socket.socket | None = None
        self._holder: socket.socket | None = None

    def take(self) -> Holder | None:
        """Take the name if it is free; return the proxy that has it, None when nothing stands in our way."""
        deadline = time.monotonic() + ANSWER_SECONDS
        holder = None
        while not self._bind():
            holder = self._ask()
            if holder is not None or time.monotonic() > deadline:
                break
            # Between two steps of another process, or bound by one that does not listen.
            time.sleep(PAUSE_SECONDS)
        else:
            return None
        if holder is not None and holder.user in (0, os.geteuid()):
            return holder
        log.error(
            "the lock of this network namespace is held by a program that is no proxy, going on without it",
            lock=f"@{self._address[1:]}", holder=str(holder) if holder else None,
        )  # fmt: skip
        return None

    def wait(self) -> None:
        """Wait until nobody else has the name, and take it."""
        while self.take() is not None:
            self._wait_for_end()

    def close(self) -> None:
        """Give the name back, or wait for it no more."""
        for end in (self._held, self._holder):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._held = self._holder = None

    def _bind(self) -> bool:
        mine = _socket()
        try:
            mine.bind(self._address)
        except OSError as error:
            mine.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise
        mine.listen(MAX_WAITING)
        self._held = mine
        threading.Thread(target=_introduce, args=(mine,), name="lock", daemon=True).start()
        return True

    def _ask(self, seconds: float = ANSWER_SECONDS) -> Holder | None:
        """Connect to the holder and ask who it is; None when nobody answers."""
        if self._holder is not None:
            self._holder.close()
        self._holder = channel = _socket()
        channel.settimeout(seconds)
        try:
            channel.connect(self._address)
        except OSError:
            return None
        return _credentials(channel)._replace(words=_words(channel))

    def look(self) -> Holder | None:
        """Return the proxy that has the name, without taking it; None when no proxy has it."""
        holder = self._ask(LOOK_SECONDS)
        self.close()
        return holder if holder is not None and holder.user in (0, os.geteuid()) else None

    def _wait_for_end(self) -> None:
        if self._holder is not None:
            self._holder.settimeout(None)
            with suppress(ConnectionError):
                while self._holder.recv(MAX_WORDS):
                    pass


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _credentials(channel: socket.socket) -> Holder:
    """Return who was listening at the other end, by the kernel's word (SO_PEERCRED)."""
    data = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, user, _ = CREDENTIALS.unpack(data)
    return Holder(pid, user, "")


def _words(channel: socket.socket) -> str:
    """Return what the holder says of itself; a stopped one says nothing."""
    try:
        text = channel.recv(MAX_WORDS)
    except OSError:
        return ""
    return "".join(filter(str.isprintable, text.decode(errors="replace")))


def _introduce(mine: socket.socket) -> None:
    """Tell everybody who connects who we are, and keep the connection: its end says that we have ended."""
    words = f"ipvsproxy v{version('ipvsproxy')}, started {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}".encode()
    waiting: list[socket.socket] = []
    while mine.fileno() >= 0:
        try:
            channel, _ = mine.accept()
            waiting.append(channel)
            channel.setblocking(False)
            channel.send(words)
        except OSError:
            # One that has gone again, or no descriptor is left: neither is worth more than a pause.
            time.sleep(PAUSE_SECONDS)
        while len(waiting) > MAX_WAITING:
            waiting.pop(0).close()
    for channel in waiting:
        channel.close()
