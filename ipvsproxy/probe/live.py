"""A test connection to a Service: one connection, or one datagram, and its outcome."""

import errno
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from ipvsproxy.base.address import is_unspecified, parse_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.base.frontend import Protocol

SECONDS = 5.0
REFUSALS = frozenset((errno.ECONNREFUSED, errno.ECONNRESET, errno.EPERM))

MakeSocket = Callable[[socket.AddressFamily, socket.SocketKind, int], socket.socket]


class ProbeOutcome(NamedTuple):
    """One of answered, sent (UDP, nothing came back), refused, timeout, unreachable; the words of an error.

    `source` and `port` are what was asked from, empty and 0 where the kernel has forgotten it.
    """

    outcome: str
    seconds: float = 0.0
    error: str = ""
    source: str = ""
    port: int = 0


def open_socket(make: MakeSocket, address: str, protocol: str) -> socket.socket:
    """Make the socket for a test connection. Raises OSError, as where the kernel does not know the protocol."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    return make(family, kind, Protocol.SCTP if protocol == "SCTP" else 0)


def probe(sock: socket.socket, address: str, port: int, data: bytes = b"\0") -> ProbeOutcome:
    """Open a connection, or send a datagram and wait for an answer or a refusal; then close the socket."""
    began = time.monotonic()
    with sock:
        outcome, error = _asked(sock, address, port, data)
        return ProbeOutcome(outcome, time.monotonic() - began, error, *source(sock))


def _asked(sock: socket.socket, address: str, port: int, data: bytes) -> tuple[str, str]:
    is_udp = sock.type == socket.SOCK_DGRAM
    try:
        sock.settimeout(SECONDS)
        sock.connect((address, port))
        if is_udp:
            sock.send(data)
            sock.recv(1 << 16)
    except TimeoutError:
        return "sent" if is_udp else "timeout", ""
    except OSError as error:
        outcome = "refused" if error.errno in REFUSALS else "unreachable"
        return outcome, plain(error)
    return "answered", ""


def source(sock: socket.socket) -> tuple[str, int]:
    """Return the socket's own address and port: a connection that was refused has none any more."""
    try:
        address, port = sock.getsockname()[:2]
    except OSError:
        return "", 0
    return ("", 0) if is_unspecified(parse_ip(address.partition("%")[0])) else (address, port)
