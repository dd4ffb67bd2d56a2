"""One question to one name server, by RFC 1035: what `getaddrinfo` cannot do is to ask a certain server.

The node's own resolver does not know cluster names, so the DNS Service is asked by its VIP, over UDP.
"""

import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from ipvsproxy.diagnosis.facts import DnsAnswer, join
from ipvsproxy.probe.live import source

PORT = 53
TRIES, SECONDS = 2, 2.0
HEADER = struct.Struct(">6H")
RECORD = struct.Struct(">HHIH")
RECURSE, IN = 0x0100, 1
A, CNAME, AAAA = 1, 5, 28
TYPES = {"A": A, "AAAA": AAAA, "CNAME": CNAME}
CODES = {1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
POINTER, LONGEST, MOST_JUMPS = 0xC0, 255, 32

MakeSocket = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]


class Record(NamedTuple):
    """A record of an answer: its type and what it says, as text."""

    kind: int
    text: str


def resolve(server: str, name: str, kind: str, make: MakeSocket = socket.socket) -> DnsAnswer:
    """Ask a server for records of a type, A, AAAA or CNAME. Never raises: what failed is in the answer."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    try:
        with make(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SECONDS)
            sock.connect((server, PORT))
            asked_from = join(*source(sock))
            return _asked(sock, DnsAnswer(server, name, asked_from=asked_from), TYPES[kind])
    except (OSError, ValueError, struct.error, IndexError) as error:
        return DnsAnswer(server, name, error=_words(error))


def _asked(sock: socket.socket, unanswered: DnsAnswer, kind: int) -> DnsAnswer:
    number = secrets.randbelow(1 << 16)
    for _ in range(TRIES):
        sock.send(question(number, unanswered.name, kind))
        try:
            data = sock.recv(1 << 16)
            while HEADER.unpack_from(data)[0] != number:
                data = sock.recv(1 << 16)
        except TimeoutError:
            continue
        return read(data, unanswered)
    raise TimeoutError(f"no answer within {TRIES * SECONDS:.0f} s")


def question(number: int, name: str, kind: int) -> bytes:
    """Return a query with one question. Raises ValueError when the name is none."""
    labels = [label.encode("ascii") for label in name.rstrip(".").split(".")]
    if not all(0 < len(label) < 64 for label in labels):
        raise ValueError(f"{name!r} is no name")
    encoded = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return HEADER.pack(number, RECURSE, 1, 0, 0, 0) + encoded + struct.pack(">HH", kind, IN)


def read(data: bytes, unanswered: DnsAnswer) -> DnsAnswer:
    """Return what an answer says. Raises struct.error, IndexError, ValueError when it is malformed."""
    code = HEADER.unpack_from(data)[1] & 0xF
    if code:
        return replace(unanswered, error=CODES.get(code, f"code {code}"))
    records = list(_records(data))
    addresses = tuple(record.text for record in records if record.kind in (A, AAAA))
    canonical = next((record.text for record in records if record.kind == CNAME), "")
    return replace(unanswered, addresses=addresses, canonical=canonical)


def _records(data: bytes) -> Iterator[Record]:
    """Yield the records of the answer section that we know."""
    _, _, questions, answers, _, _ = HEADER.unpack_from(data)
    at = HEADER.size
    for _ in range(questions):
        at = _name(data, at)[1] + 4
    for _ in range(answers):
        at = _name(data, at)[1]
        kind, _, _, length = RECORD.unpack_from(data, at)
        at += RECORD.size
        if kind == A:
            yield Record(kind, socket.inet_ntop(socket.AF_INET, data[at : at + length]))
        elif kind == AAAA:
            yield Record(kind, socket.inet_ntop(socket.AF_INET6, data[at : at + length]))
        elif kind == CNAME:
            yield Record(kind, _name(data, at)[0])
        at += length


def _name(data: bytes, at: int) -> tuple[str, int]:
    """Return a name, which may go on elsewhere in the message, and where what follows it begins."""
    labels: list[str] = []
    end = 0
    for _ in range(LONGEST + MOST_JUMPS):
        length = data[at]
        if length & POINTER == POINTER:
            end = end or at + 2
            at = int.from_bytes(data[at : at + 2]) & 0x3FFF
        elif length:
            labels.append(data[at + 1 : at + 1 + length].decode("ascii", errors="replace"))
            at += 1 + length
        else:
            return ".".join(labels), end or at + 1
    raise ValueError("a name without an end")


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)
