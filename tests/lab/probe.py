"""The clients of a lab: ask an address from a namespace and say what became of it.

The outcome is one of `answered`, `refused` (TCP reset, port unreachable, or EPERM, which is what a
node's own UDP send gets from a reject rule), `timeout` and `unreachable`. Many questions are asked at
once from one selector loop, so that a table of expected timeouts costs one timeout, not their sum.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Self

from tests.lab import netns
from tests.lab.waiting import Patience, receive

DEFAULT_TIMEOUT = 4.0  # a TCP SYN is repeated after 1 and 3 seconds; emulation is slow
ENOUGH = 20
"""So many connections, spread by chance, miss one of two endpoints once in 500,000 times."""
QUESTION = b"who\n"
REFUSALS = {errno.ECONNREFUSED, errno.ECONNRESET, errno.EPERM, errno.EPIPE}
STARTED = {0, errno.EINPROGRESS}


@dataclasses.dataclass(frozen=True)
class ProbeQuestion:
    """Who asks what: a namespace, and an address, port and protocol; src binds the asking end."""

    netns: str
    address: str
    port: int
    proto: str = "tcp"
    src: str | None = None
    src_port: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a question; the later fields are empty unless it was answered."""

    outcome: str
    name: str = ""
    seen_source: str = ""
    seen_port: int = 0
    local_source: str = ""
    seconds: float = 0.0
    error: str = ""


class Attempt:
    """One question under way: connect, send, wait for a line, or fail."""

    def __init__(self, question: ProbeQuestion) -> None:
        self.question = question
        self.result: Result | None = None
        self.began = time.monotonic()
        self.connected = False
        self.socket = netns.open_socket(question.netns, question.address, question.proto)

    def start(self) -> None:
        try:
            self._bind()
            self._connect()
        except OSError as error:
            self._fail(error)

    def _bind(self) -> None:
        """Take a source port that no other question has.

        Left to itself a kernel gives connections to two VIPs the same source port now and then, and IPVS
        tells replies apart by client and endpoint alone (docs/internals-packets.md, limits of IPVS).
        """
        question = self.question
        any_address = "::" if ":" in question.address else "0.0.0.0"
        if question.src_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((question.src or any_address, question.src_port))

    def _connect(self) -> None:
        number = self.socket.connect_ex((self.question.address, self.question.port))
        if number not in STARTED:
            raise OSError(number, "connect")
        if self.question.proto == "udp":
            self._send()

    def step(self) -> None:
        """Go on: the socket is writable (connected, or failed to) or readable."""
        try:
            if not self.connected:
                self._finish_connect()
            else:
                self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)

    def _finish_connect(self) -> None:
        number = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "connect")
        self._send()

    def _send(self) -> None:
        self.socket.send(QUESTION)
        self.connected = True

    def _receive(self) -> None:
        answer = self.socket.recv(65536)
        if not answer:
            raise OSError(errno.ECONNRESET, "closed without an answer")
        self.result = read_answer(answer, self.socket, self.began)

    def _fail(self, error: OSError) -> None:
        self.result = failure(error, time.monotonic() - self.began)


def read_answer(answer: bytes, asking: socket.socket, began: float) -> Result:
    """Turn a responder's first line into a result."""
    told = json.loads(answer.splitlines()[0])
    local = asking.getsockname()[0]
    seconds = time.monotonic() - began
    return Result("answered", told["name"], told["source"], told["port"], local, seconds)


def failure(error: OSError, seconds: float) -> Result:
    """Judge an error of a socket."""
    if error.errno in REFUSALS:
        outcome = "refused"
    elif error.errno == errno.ETIMEDOUT or isinstance(error, TimeoutError):
        outcome = "timeout"
    else:
        outcome = "unreachable"
    return Result(outcome, seconds=seconds, error=str(error))


def probe_many(questions: Iterable[ProbeQuestion], timeout: float = DEFAULT_TIMEOUT) -> list[Result]:
    """Ask all questions at once; the results come in the same order."""
    attempts = [Attempt(question) for question in questions]
    with selectors.DefaultSelector() as selector:
        for attempt in attempts:
            attempt.start()
            wanted = selectors.EVENT_READ if attempt.connected else selectors.EVENT_WRITE
            if attempt.result is None:
                selector.register(attempt.socket, wanted, attempt)
        _drive(selector, Patience(timeout))
    for attempt in attempts:
        attempt.socket.close()
    return [attempt.result or Result("timeout", seconds=timeout) for attempt in attempts]


def _drive(selector: selectors.BaseSelector, patience: Patience) -> None:
    """Go on with all attempts; only waiting uses up patience, and not the work on what has come."""
    while selector.get_map() and patience:
        with patience.step() as seconds:
            ready = selector.select(seconds)
        for key, _ in ready:
            attempt: Attempt = key.data
            attempt.step()
            if attempt.result is not None:
                selector.unregister(key.fileobj)
            elif attempt.connected:
                selector.modify(key.fileobj, selectors.EVENT_READ, attempt)


def probe(
    asker: str,
    address: str,
    port: int,
    proto: str = "tcp",
    src: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Result:
    """Ask once from the namespace `asker`."""
    return probe_many([ProbeQuestion(asker, address, port, proto, src)], timeout)[0]


def spread(question: ProbeQuestion, times: int = 20, timeout: float = DEFAULT_TIMEOUT) -> collections.Counter[str]:
    """Ask the same many times: how often each endpoint answered, or how often it was refused and so on."""
    results = probe_many([question] * times, timeout)
    return collections.Counter(result.name or result.outcome for result in results)


def sources(results: Sequence[Result]) -> set[str]:
    """The source addresses that endpoints saw."""
    return {result.seen_source for result in results if result.outcome == "answered"}


class Conversation:
    """A TCP or SCTP connection, or a connected UDP socket, that is kept open across changes."""

    def __init__(self, question: ProbeQuestion, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.socket = netns.open_socket(question.netns, question.address, question.proto)
        self.socket.settimeout(timeout)
        try:
            if question.src is not None or question.src_port:
                # Several conversations may have one source port, each towards another address.
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind((question.src or "", question.src_port))
            self.socket.connect((question.address, question.port))
        except OSError:
            self.socket.close()
            raise

    def ask(self) -> Result:
        """Send one more line and judge what comes back."""
        began = time.monotonic()
        try:
            self.socket.sendall(QUESTION)
            answer = receive(self.socket, Patience(self.socket.gettimeout() or 0.0))
        except OSError as error:
            return failure(error, time.monotonic() - began)
        if not answer:
            return Result("refused", error="closed by the other end")
        return read_answer(answer, self.socket, began)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):
            self.socket.close()
