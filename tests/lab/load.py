"""A steady load on a lab: many short requests and some long connections, from any namespaces, with all failures.

One thread opens a new connection (or sends a datagram from a new port) to each way in at a fixed pace, and holds
long connections that ask a line now and then. Every request that is not answered is a failure, with its time and
reason; nothing is retried but what the kernel's own TCP retries. A long connection ends when its endpoint asks for
that (`EndpointListener.leave`), and the next one is opened; ended in any other way it is a failure.

The pace is bounded: what could not be sent in time, because the machine was busy, is left out and not caught up.
Short connections end with a reset unless told otherwise: IPVS forgets such a connection after 10 seconds instead
of two minutes, so that draining endpoints come to their end within a short test.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import heapq
import itertools
import json
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Self

from tests.lab import netns
from tests.lab.probe import QUESTION, STARTED, Attempt, ProbeQuestion

# Each source port once in the life of what the kernel remembers of it: IPVS tells replies apart by client and
# endpoint alone, and so does conntrack (docs/internals-packets.md, limits of IPVS).
_PORTS = range(20000, 32000)
_ports: dict[str, Iterator[int]] = collections.defaultdict(lambda: itertools.cycle(_PORTS))
PATIENCE = 25.0
TALK_SECONDS = 0.5
RESET = struct.pack("ii", 1, 0)


@dataclasses.dataclass(frozen=True)
class Failure:
    """One request that was not answered: seconds since the load began, which way in, and why."""

    at: float
    way: str
    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.at:6.2f} s {self.what} {self.way}: {self.reason}"


class Load:
    """A context manager: the load lasts as long as its block, and what is under way is waited for at its end."""

    def __init__(
        self, ways: Mapping[str, ProbeQuestion], *, every: float = 0.5, talks: int = 1, reset: bool = True
    ) -> None:
        self.failures: list[Failure] = []
        self.answered: collections.Counter[str] = collections.Counter()
        self.endpoints: collections.Counter[str] = collections.Counter()
        self.finished = 0
        self.slowest = 0.0
        self.ways, self._every, self._talks, self.reset = dict(ways), every, talks, reset
        self._selector = selectors.DefaultSelector()
        self._agenda: list[tuple[float, int, str]] = []
        self._open: set[LoadRequest | Talk] = set()
        self._marks: list[tuple[float, str]] = []
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._selector.close()

    def mark(self, text: str) -> None:
        """Note what the test does, for the report."""
        self._marks.append((self.now(), text))

    def now(self) -> float:
        """Return the seconds since the load began."""
        return time.monotonic() - self._began

    def report(self) -> str:
        """Return failures and marks in the order of time, and what was answered."""
        lines = [(failure.at, str(failure)) for failure in self.failures]
        lines += [(at, f"{at:6.2f} s -- {text}") for at, text in self._marks]
        total = f"answered {dict(self.answered)} by {dict(self.endpoints)}"
        more = f"{self.finished} long connections finished, slowest answer after {self.slowest:.2f} s"
        return "\n".join([*(line for _, line in sorted(lines)), total, more])

    def fail(self, way: str, what: str, reason: str) -> None:
        self.failures.append(Failure(self.now(), way, what, reason))

    def served(self, way: str, name: str, seconds: float) -> None:
        self.answered[way] += 1
        self.endpoints[name] += 1
        self.slowest = max(self.slowest, seconds)

    def watch(self, item: LoadRequest | Talk, events: int) -> None:
        self._selector.register(item.socket, events, item)
        self._open.add(item)

    def expect(self, item: LoadRequest | Talk, events: int) -> None:
        self._selector.modify(item.socket, events, item)

    def drop(self, item: LoadRequest | Talk) -> None:
        if item in self._open:
            self._selector.unregister(item.socket)
            self._open.discard(item)
        item.socket.close()

    def _run(self) -> None:
        self._agenda = [
            (self._every * number / len(self.ways), number, way) for number, way in enumerate(self.ways)
        ]
        for way, question in self.ways.items():
            for _ in range(self._talks if question.proto == "tcp" else 0):
                Talk(self, way, question)
        while not self._over():
            if not self._stopping.is_set():
                self._send()
            for key, _ in self._selector.select(0.05):
                key.data.step()
            self._look_after()

    def _over(self) -> bool:
        """No new requests after the end; what was asked is still to be answered."""
        return self._stopping.is_set() and not any(item.waiting for item in self._open) and not self._close_all()

    def _close_all(self) -> None:
        for item in list(self._open):
            self.drop(item)

    def _send(self) -> None:
        now = self.now()
        while self._agenda[0][0] <= now:
            due, number, way = heapq.heappop(self._agenda)
            heapq.heappush(self._agenda, (max(due + self._every, now), number, way))
            LoadRequest(self, way, self.ways[way])

    def _look_after(self) -> None:
        now = time.monotonic()
        for item in list(self._open):
            item.look(now, ending=self._stopping.is_set())


def _numbered(question: ProbeQuestion) -> ProbeQuestion:
    return dataclasses.replace(question, src_port=next(_ports[question.netns]))


class LoadRequest:
    """One question over a connection of its own."""

    waiting = True

    def __init__(self, load: Load, way: str, question: ProbeQuestion) -> None:
        self._load, self._way = load, way
        self._attempt = Attempt(_numbered(question))
        self._deadline = time.monotonic() + PATIENCE
        self.socket = self._attempt.socket
        if load.reset and question.proto == "tcp":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        load.watch(self, selectors.EVENT_WRITE)
        self._attempt.start()
        self._judge()

    def step(self) -> None:
        self._attempt.step()
        self._judge()

    def look(self, now: float, *, ending: bool) -> None:  # noqa: ARG002 - as in Talk
        if now > self._deadline:
            self._load.drop(self)
            self._load.fail(self._way, "request", f"no answer in {PATIENCE:.0f} s")

    def _judge(self) -> None:
        result = self._attempt.result
        if result is None:
            self._load.expect(self, selectors.EVENT_READ if self._attempt.connected else selectors.EVENT_WRITE)
            return
        self._load.drop(self)
        if result.outcome == "answered":
            self._load.served(self._way, result.name, result.seconds)
        else:
            self._load.fail(self._way, "request", f"{result.outcome}: {result.error}")


class Talk:
    """A long connection: asks, waits for the answer, pauses, asks again."""

    def __init__(self, load: Load, way: str, question: ProbeQuestion) -> None:
        self._load, self._way, self._question = load, way, question
        self._open()

    def _open(self) -> None:
        question = _numbered(self._question)
        self.socket = netns.open_socket(question.netns, question.address, question.proto)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        any_address = "::" if ":" in question.address else "0.0.0.0"
        self.socket.bind((question.src or any_address, question.src_port))
        self._connected, self.waiting, self._name = False, True, ""
        self._asked = time.monotonic()
        self._load.watch(self, selectors.EVENT_WRITE)
        number = self.socket.connect_ex((question.address, question.port))
        if number not in STARTED:
            self._fail(OSError(number, "connect"))

    def step(self) -> None:
        try:
            if self._connected:
                self._receive()
            else:
                self._finish_connect()
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)

    def look(self, now: float, *, ending: bool) -> None:
        if self.waiting and now - self._asked > PATIENCE:
            self._fail(OSError(errno.ETIMEDOUT, f"no answer in {PATIENCE:.0f} s"))
        elif not self.waiting and not ending and now - self._asked > TALK_SECONDS:
            try:
                self._ask()
            except OSError as error:
                self._fail(error)

    def _finish_connect(self) -> None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "connect")
        self._connected = True
        self._load.expect(self, selectors.EVENT_READ)
        self._ask()

    def _ask(self) -> None:
        self._asked, self.waiting = time.monotonic(), True
        self.socket.send(QUESTION)

    def _receive(self) -> None:
        answer = self.socket.recv(65536)
        if not answer:
            raise OSError(errno.ECONNRESET, "closed by the other end")
        told = json.loads(answer.splitlines()[0])
        self.waiting, self._name = False, told["name"]
        self._load.served(self._way, told["name"], time.monotonic() - self._asked)
        if told.get("last"):
            self._load.finished += 1
            self._load.drop(self)
            self._open()

    def _fail(self, error: OSError) -> None:
        # The next one is not opened: what a lost connection would do then is no news.
        self._load.drop(self)
        self._load.fail(self._way, f"connection with {self._name or 'nobody yet'}", str(error))
