"""A live question to a Service: one connection, or one datagram, and what became of it."""

import errno
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

SECONDS = 5.0
SCTP = 132
DNS_PORT = 53
REFUSALS = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, errno.EPERM))

MakeSocket = Callable[[socket.AddressFamily, socket.SocketKind, int], socket.socket]


class Outcome(NamedTuple):
    """One of answered, sent (UDP, nothing came back), refused, timeout, unreachable; the words of an error."""

    outcome: str
    seconds: float = 0.0
    error: str = ""


def knock(make: MakeSocket, address: str, protocol: str, port: int, data: bytes = b"\0") -> Outcome:
    """Open a connection, or send a datagram and wait for an answer or a refusal."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    began = time.monotonic()
    try:
        with make(family, kind, SCTP if protocol == "SCTP" else 0) as sock:
            sock.settimeout(SECONDS)
            sock.connect((address, port))
            if protocol == "UDP":
                sock.send(data)
                sock.recv(1 << 16)
            return Outcome("answered", time.monotonic() - began)
    except TimeoutError:
        return Outcome("sent" if protocol == "UDP" else "timeout", time.monotonic() - began)
    except OSError as error:
        outcome = "refused" if error.errno in REFUSALS else "unreachable"
        return Outcome(outcome, time.monotonic() - began, error.strerror or str(error))
