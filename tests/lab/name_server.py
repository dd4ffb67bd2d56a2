"""A name server for the lab, which knows what a test tells it: addresses, and canonical names.

Over UDP, or over TCP alone: then each response over UDP is truncated.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from tests.lab import netns
from tests.lab.lab import LabHost

HEADER = struct.Struct(">6H")
A, CNAME, AAAA, IN = 1, 5, 28, 1
ANSWERED, NO_SUCH_NAME = 0x8400, 0x8403
TRUNCATED = 0x0200


class NameServer:
    """Answers on port 53 of a host, in both families; `addresses` and `aliases` may change while it does."""

    def __init__(self, addresses: dict[str, str], aliases: dict[str, str]) -> None:
        self.addresses, self.aliases = addresses, aliases
        self.is_silent = False

    @contextlib.contextmanager
    def serving(self, host: LabHost, *, only_tcp: bool = False) -> Iterator[None]:
        sockets, threads = [], []
        for address in (host.ipv4, host.ipv6):
            udp, tcp = (_bound(host.netns, address, proto) for proto in ("udp", "tcp"))
            tcp.listen()
            sockets += [udp, tcp]
            flags = TRUNCATED * only_tcp
            threads.append(threading.Thread(target=self._serve_udp, args=(udp, flags), daemon=True))
            threads.append(threading.Thread(target=self._serve_tcp, args=(tcp,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for sock in sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for sock in sockets:
                sock.close()

    def _serve_udp(self, sock: socket.socket, flags: int) -> None:
        while True:
            try:
                data, client = sock.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            if flags:
                number, *_ = HEADER.unpack_from(data)
                sock.sendto(HEADER.pack(number, ANSWERED | flags, 1, 0, 0, 0) + data[HEADER.size :], client)
            elif not self.is_silent:
                sock.sendto(self.answer(data), client)

    def _serve_tcp(self, sock: socket.socket) -> None:
        while True:
            try:
                connection, _ = sock.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                size = int.from_bytes(connection.recv(2), "big")
                answer = self.answer(connection.recv(size))
                connection.sendall(len(answer).to_bytes(2, "big") + answer)

    def answer(self, data: bytes) -> bytes:
        number, *_ = HEADER.unpack_from(data)
        question = data[HEADER.size :]
        name, kind = _name(question), struct.unpack_from(">H", question, len(question) - 4)[0]
        address = self.addresses.get(name, "")
        if address and kind == (AAAA if ":" in address else A):
            record = _record(kind, socket.inet_pton(socket.AF_INET6 if kind == AAAA else socket.AF_INET, address))
        elif kind == CNAME and name in self.aliases:
            record = _record(CNAME, _encoded(self.aliases[name]))
        else:
            return HEADER.pack(number, NO_SUCH_NAME, 1, 0, 0, 0) + question
        return HEADER.pack(number, ANSWERED, 1, 1, 0, 0) + question + record


def _bound(where: str, address: str, proto: str) -> socket.socket:
    sock = netns.open_socket(where, address, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(True)
    sock.bind((address, 53))
    return sock


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
