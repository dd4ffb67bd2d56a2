"""One ipvsproxy for each network namespace: only the one that holds a name may change the kernel.

The name is an abstract unix socket (unix(7)). Such names belong to a network namespace, as IPVS, links and
nftables do; they need no file that containers would have to share; and the kernel takes them back when a process
ends, however it ends. The holder reports who it is to those that connect, and the end of that connection is what
they wait for.

Any process of the namespace could take the name, so a holder has to show that it may change the network
(`kernel.proof`). One that does not is reported, and not waited for. A holder of version 0.1 cannot show it. It is
waited for as well, but no longer than an update takes, and only where it runs as root or as our own user, and
a process that has CAP_NET_ADMIN follows the rules of this namespace.
"""

import errno
import os
import secrets
import select
import socket
import struct
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

import structlog

from ipvsproxy.base import messages
from ipvsproxy.kernel import proof
from ipvsproxy.kernel.proof import Proof

NAME = "ipvsproxy/lock"
ANSWER_SECONDS, LOOK_SECONDS = 5.0, 1.0
PAUSE_SECONDS = 0.05
OLDER_SECONDS, AGAIN_SECONDS = 120.0, 5.0
"""How long a holder is waited for that shows nothing, and how long until it is asked again."""
ENDING_SECONDS = 1.0
"""A process that ends closes one descriptor after the other: it loses its proof before its connections."""
LISTENING_SECONDS = 1.0
MAX_WAITING = 8
"""Connections the holder keeps; of more, the oldest is let go and comes again."""
MAX_WORDS = 256
CREDENTIALS = struct.Struct("=iII")

log = structlog.get_logger()


class Holder(NamedTuple):
    """Who has the name: process number as we see it (0: in a container we cannot see into), user, own words.

    `is_proven`: it has shown that it may change the network, or no process here may ask it to.
    """

    pid: int
    user: int
    words: str
    is_proven: bool = False

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "a process of another container"
        return ", ".join(filter(None, (who, f"user {self.user}" if self.user else "", self.words)))


class InstanceLock:
    """The name, held or waited for. Belongs to one thread at a time."""

    def __init__(self, name: str = NAME) -> None:
        self._address = f"\0{name}"
        self._held: socket.socket | None = None
        self._proof: Proof | None = None
        self._holder: socket.socket | None = None
        self._doubted_since: float | None = None

    def take(self) -> Holder | None:
        """Take the name if it is free; return the proxy that has it, None when nothing stands in our way."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._bind():
            holder = self._ask(ANSWER_SECONDS)
            if holder is not None and self._is_proxy(holder):
                return holder
            is_working = holder is not None and not self._wait_for_end(ENDING_SECONDS)
            if is_working or time.monotonic() > deadline:
                log.error(
                    messages.LOCK_HELD_BY_STRANGER,
                    lock=f"@{self._address[1:]}", holder=str(holder) if holder else None,
                )  # fmt: skip
                break
            # Between two steps of another process, bound by one that does not listen, or one that has just ended.
            time.sleep(PAUSE_SECONDS)
        return None

    def wait(self) -> None:
        """Wait until no other proxy has the name, and take it."""
        while (holder := self.take()) is not None:
            self._wait_for_end(None if holder.is_proven else AGAIN_SECONDS)

    def close(self) -> None:
        """Give the name back, or wait for it no more."""
        # First of all: what arrives on the connections of a released name proves nothing.
        if self._proof is not None:
            self._proof.close()
        for end in (self._held, self._holder):
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._held = self._holder = self._proof = None

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
        with suppress(PermissionError):  # else this process cannot change anything either
            self._proof = Proof()
        threading.Thread(target=_introduce, args=(mine, self._proof), name="lock", daemon=True).start()
        return True

    def _ask(self, seconds: float) -> Holder | None:
        """Connect to the holder and ask who it is; None when it does not answer."""
        if self._holder is not None:
            self._holder.close()
        self._holder = channel = _socket()
        channel.settimeout(seconds)
        try:
            channel.connect(self._address)
        except OSError:
            return None
        return _credentials(channel)._replace(words=_words(channel), is_proven=_proves(channel, seconds))

    def look(self) -> Holder | None:
        """Return the proxy that has the name, without taking it; None when no proxy has it."""
        holder = self._ask(LOOK_SECONDS)
        self.close()
        return holder if holder is not None and self._is_proxy(holder) else None

    def _is_proxy(self, holder: Holder) -> bool:
        """Whether a holder is to be waited for: one without proof may be of version 0.1, for a while."""
        if holder.user not in (0, os.geteuid()):
            return False
        if holder.is_proven:
            self._doubted_since = None
            return True
        now = time.monotonic()
        if self._doubted_since is None:
            self._doubted_since = now
        return now - self._doubted_since < OLDER_SECONDS and proof.others_follow_rules()

    def _wait_for_end(self, seconds: float | None) -> bool:
        """Wait until the holder ends, at most so long; tell whether it has ended."""
        until = None if seconds is None else time.monotonic() + seconds
        while self._holder is not None:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._holder.settimeout(left)
            try:
                if not self._holder.recv(MAX_WORDS):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return True


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _credentials(channel: socket.socket) -> Holder:
    """Return who was listening at the other end, by the kernel's word (SO_PEERCRED)."""
    data = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    pid, user, _ = CREDENTIALS.unpack(data)
    return Holder(pid, user, "")


def _words(channel: socket.socket) -> str:
    """Return what the holder reports of itself; a stopped one sends nothing."""
    try:
        text = channel.recv(MAX_WORDS)
    except OSError:
        return ""
    return "".join(filter(str.isprintable, text.decode(errors="replace")))


def _proves(channel: socket.socket, seconds: float) -> bool:
    """Whether the other end repeats a number that only a holder of CAP_NET_ADMIN can read."""
    number = secrets.token_bytes(proof.NUMBER_BYTES)
    try:
        if not proof.challenge(number):
            return False
    except PermissionError:
        return True  # nothing that we could do depends on it
    except OSError:
        return False
    heard, until = b"", time.monotonic() + seconds
    with suppress(OSError):
        while number not in heard and (left := until - time.monotonic()) > 0:
            channel.settimeout(left)
            data = channel.recv(MAX_WORDS)
            if not data:
                break
            heard = (heard + data)[-2 * MAX_WORDS :]
    return number in heard


def _introduce(mine: socket.socket, proven: Proof | None) -> None:
    """Tell everybody who connects who we are, and keep the connection: its end shows that we have ended.

    Every number that is sent to the proof is repeated on all of them; each asker knows its own.
    """
    words = f"ipvsproxy v{version('ipvsproxy')}, started {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}".encode()
    waiting: list[socket.socket] = []
    while mine.fileno() >= 0:
        try:
            ready = _ready(mine, proven)
            if proven is not None and proven in ready:
                _repeat(proven, waiting)
            if mine in ready:
                channel, _ = mine.accept()
                waiting.append(channel)
                channel.setblocking(False)
                channel.send(words)
        except (OSError, ValueError):
            # One that has gone again, no descriptor is left, or it is over: neither is worth more than a pause.
            time.sleep(PAUSE_SECONDS)
        while len(waiting) > MAX_WAITING:
            waiting.pop(0).close()
    for channel in waiting:
        channel.close()


def _ready(mine: socket.socket, proven: Proof | None) -> list[socket.socket | Proof]:
    """Return which of the two has data. Raises OSError, ValueError when one is closed."""
    ends: list[socket.socket | Proof] = [mine] if proven is None else [mine, proven]
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(LISTENING_SECONDS * 1000)}
    return [end for end in ends if end.fileno() in ready]


def _repeat(proven: Proof, waiting: list[socket.socket]) -> None:
    numbers = b"".join(proven.numbers())
    for channel in waiting:
        with suppress(OSError):
            channel.send(numbers)
