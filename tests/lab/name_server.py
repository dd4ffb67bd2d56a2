"""A name server for the lab, which knows what a test tells it: addresses, and canonical names."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from tests.lab import netns
from tests.lab.lab import Host

HEADER = struct.Struct(">6H")
A, CNAME, IN = 1, 5, 1
ANSWERED, NO_SUCH_NAME = 0x8400, 0x8403


class NameServer:
    """Answers on UDP port 53 of a host; `addresses` and `aliases` may change while it does."""

    def __init__(self, addresses: dict[str, str], aliases: dict[str, str]) -> None:
        self.addresses, self.aliases = addresses, aliases
        self.is_silent = False

    @contextlib.contextmanager
    def serving(self, host: Host) -> Iterator[None]:
        sock = netns.open_socket(host.netns, host.ipv4, "udp")
        sock.setblocking(True)
        sock.bind((host.ipv4, 53))
        thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join()
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        while True:
            try:
                data, client = sock.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            if not self.is_silent:
                sock.sendto(self.answer(data), client)

    def answer(self, data: bytes) -> bytes:
        number, *_ = HEADER.unpack_from(data)
        question = data[HEADER.size :]
        name, kind = _name(question), struct.unpack_from(">H", question, len(question) - 4)[0]
        if kind == A and name in self.addresses:
            record = _record(A, socket.inet_aton(self.addresses[name]))
        elif kind == CNAME and name in self.aliases:
            record = _record(CNAME, _encoded(self.aliases[name]))
        else:
            return HEADER.pack(number, NO_SUCH_NAME, 1, 0, 0, 0) + question
        return HEADER.pack(number, ANSWERED, 1, 1, 0, 0) + question + record


def _record(kind: int, data: bytes) -> bytes:
    """A record for the name of the question, to which it points."""
    return struct.pack(">HHHIH", 0xC00C, kind, IN, 5, len(data)) + data


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def _name(question: bytes) -> str:
    labels, at = [], 0
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    return ".".join(labels)
