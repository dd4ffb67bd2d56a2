"""Echo requests, and whether they are answered."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct

from tests.lab import netns
from tests.lab.waiting import Patience

REQUEST = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
"""Protocol, type of a request, type of an answer (RFC 792, RFC 4443)."""
_numbers = itertools.count(1)


def is_answered(namespace: str, address: str, seconds: float = 1.0) -> bool:
    """Send one echo request and tell whether its answer comes in time."""
    number = 6 if ":" in address else 4
    protocol, request, answer = REQUEST[number]
    with netns.inside(namespace):
        opened = socket.socket(socket.AF_INET6 if number == 6 else socket.AF_INET, socket.SOCK_RAW, protocol)
    name = struct.pack("!HH", os.getpid() & 0xFFFF, next(_numbers) & 0xFFFF)
    with contextlib.closing(opened):
        opened.sendto(_message(request, name, number), (address, 0))
        patience = Patience(seconds)
        while patience:
            with patience.step() as step:
                opened.settimeout(step)
                try:
                    got, _ = opened.recvfrom(2048)
                except TimeoutError:
                    continue
            body = got[(got[0] & 15) * 4 :] if number == 4 else got
            if body[0] == answer and body[4:8] == name:
                return True
    return False


def _message(kind: int, name: bytes, number: int) -> bytes:
    """The kernel fills in the checksum of ICMPv6 only."""
    plain = struct.pack("!BBH", kind, 0, 0) + name
    if number == 6:
        return plain
    total = sum(struct.unpack("!4H", plain))
    return plain[:2] + struct.pack("!H", ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF) + plain[4:]
