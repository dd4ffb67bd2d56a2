"""TCP segments and datagrams made by hand, and what arrives at a host: for what no socket would send or tell.

A `Tap` sees every TCP segment that reaches a namespace, with the source it has there. `send_segment` sends one
with a sequence number of one's choice.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tests.lab import netns
from tests.lab.waiting import Patience

TCP = struct.Struct("!HHIIBBHHH")
FIN, SYN, PSH, ACK = 0x01, 0x02, 0x08, 0x10
UDP = struct.Struct("!HHHH")
AHEAD = 2**29
"""Of the window: conntrack calls that invalid. What is as far behind counts as late, and is translated."""


class Segment(NamedTuple):
    """A TCP segment as it arrived."""

    source: str
    source_port: int
    port: int
    sequence: int
    acknowledged: int
    payload: bytes


class Tap:
    """Every TCP segment that arrives in a namespace, of one family."""

    def __init__(self, where: str, family: int) -> None:
        self._family = family
        self._socket = raw_socket(where, family)
        self._socket.setblocking(False)

    def arrived(self, seconds: float = 0.3) -> Iterator[Segment]:
        """Yield what has arrived, and what does within some time."""
        patience = Patience(seconds)
        while patience:
            with patience.step() as step:
                self._socket.settimeout(step)
                try:
                    data, source = self._socket.recvfrom(65536)
                except TimeoutError:
                    continue
            yield self._read(data, source[0])

    def _read(self, data: bytes, source: str) -> Segment:
        if self._family == 4:
            data = data[(data[0] & 15) * 4 :]
        source_port, port, sequence, acknowledged, offset, *_ = TCP.unpack_from(data)
        return Segment(source, source_port, port, sequence, acknowledged, data[(offset >> 4) * 4 :])

    def close(self) -> None:
        self._socket.close()


def raw_socket(where: str, family: int, proto: int = socket.IPPROTO_TCP) -> socket.socket:
    with netns.inside(where):
        return socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_RAW, proto)


def send_segment(
    where: str,
    source: tuple[str, int],
    target: tuple[str, int],
    sequence: int,
    payload: bytes,
    acknowledged: int = 1,
    flags: int = ACK | PSH,
) -> None:
    """Send a TCP segment from an address of the namespace.

    A reset in answer has `acknowledged` as its sequence number, and ends a connection only with the right one.
    """
    family = 6 if ":" in source[0] else 4
    header = TCP.pack(source[1], target[1], sequence, acknowledged, 5 << 4, flags, 65535, 0, 0)
    data = header + payload
    checksum = _checksum(_pseudo_header(source[0], target[0], len(data)) + data)
    data = data[:16] + struct.pack("!H", checksum) + data[18:]
    with raw_socket(where, family) as sending:
        sending.bind((source[0], 0))
        sending.sendto(data, (target[0], 0))


def send_ahead(
    where: str, source: tuple[str, int], target: tuple[str, int], last: Segment, payload: bytes
) -> None:
    """Send what is far ahead of a segment, and otherwise as the same socket would."""
    with contextlib.suppress(PermissionError):  # which a process of the node is told
        send_segment(where, source, target, (last.sequence + AHEAD) % 2**32, payload, last.acknowledged)


def send_datagram(
    where: str, source: tuple[str, int], target: tuple[str, int], payload: bytes, checksum: int
) -> None:
    """Send a datagram of UDP with a checksum as it is."""
    data = UDP.pack(source[1], target[1], UDP.size + len(payload), checksum) + payload
    with raw_socket(where, 6 if ":" in source[0] else 4, socket.IPPROTO_UDP) as sending:
        sending.bind((source[0], 0))
        sending.sendto(data, (target[0], 0))


def _pseudo_header(source: str, target: str, length: int) -> bytes:
    kind = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(kind, source) + socket.inet_pton(kind, target)
    return addresses + (struct.pack("!I3xB", length, 6) if ":" in source else struct.pack("!xBH", 6, length))


def _checksum(data: bytes) -> int:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
