"""The clients of the flows: as in probe.py, with a patience for each question and two more abilities.

An answer that is not the lab's (the proxy's own health server, which gets a request that it understands) counts
as answered by "?". SCTP sockets ask for ICMP errors, which they would ignore otherwise, and a node's own SCTP
client is bound to the one address that the kernel chooses for the route, since it would offer all addresses of
the node as its own.
"""

from __future__ import annotations

import dataclasses
import selectors
import socket
import time
from collections.abc import Sequence

from tests.lab import netns, probe
from tests.lab.probe import ProbeQuestion, Result

IP_RECVERR, IPV6_RECVERR = 11, 25


HTTP_REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class TimedQuestion:
    """A question, and how long silence lasts until it counts as such."""

    question: ProbeQuestion
    patience: float
    line: bytes = probe.QUESTION


class _Attempt(probe.Attempt):
    def __init__(self, ask: TimedQuestion) -> None:
        question = ask.question
        if question.proto == "sctp" and question.src is None:
            question = dataclasses.replace(question, src=route_source(question))
        super().__init__(question)
        self.patience, self._line = ask.patience, ask.line
        if question.proto == "sctp":
            self._want_errors()

    def _want_errors(self) -> None:
        if self.socket.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        else:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)

    def _send(self) -> None:
        self.socket.send(self._line)
        self.connected = True

    def _receive(self) -> None:
        try:
            super()._receive()
        except (ValueError, KeyError, IndexError):
            self.result = Result("answered", "?")


def route_source(question: ProbeQuestion) -> str | None:
    """Ask the kernel which source a packet to this address would have."""
    with netns.open_socket(question.netns, question.address, "udp") as asking:
        if asking.connect_ex((question.address, question.port)) != 0:
            return None
        return asking.getsockname()[0]


def ask_all(asks: Sequence[TimedQuestion]) -> list[Result]:
    """Ask all at once, each flow's attempts one after the other; the results come in the same order."""
    attempts = []
    with selectors.DefaultSelector() as selector:
        for ask in asks:
            attempt = _Attempt(ask)
            attempts.append(attempt)
            attempt.start()
            _watch(selector, attempt)
        _drive(selector, time.monotonic())
    for attempt in attempts:
        attempt.socket.close()
    return [attempt.result for attempt in attempts]


def _watch(selector: selectors.BaseSelector, attempt: _Attempt) -> None:
    wanted = selectors.EVENT_READ if attempt.connected else selectors.EVENT_WRITE
    if attempt.result is None:
        selector.register(attempt.socket, wanted, attempt)


def _drive(selector: selectors.BaseSelector, began: float) -> None:
    while waiting := [key.data for key in selector.get_map().values()]:
        next_end = began + min(attempt.patience for attempt in waiting)
        ready = selector.select(max(0.0, next_end - time.monotonic()))
        for key, _ in ready:
            _step(selector, key.data)
        if not ready:
            _give_up(selector, waiting, time.monotonic() - began)


def _step(selector: selectors.BaseSelector, attempt: _Attempt) -> None:
    attempt.step()
    if attempt.result is not None:
        selector.unregister(attempt.socket)
    elif attempt.connected:
        selector.modify(attempt.socket, selectors.EVENT_READ, attempt)


def _give_up(selector: selectors.BaseSelector, waiting: Sequence[_Attempt], seconds: float) -> None:
    for attempt in waiting:
        if attempt.patience <= seconds:
            attempt.result = Result("timeout", seconds=seconds)
            selector.unregister(attempt.socket)
