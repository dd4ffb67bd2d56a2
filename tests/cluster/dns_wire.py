"""DNS messages, as far as a cluster's stand-in needs them (RFC 1035, 2782, 3596): one question in, records out."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = struct.Struct(">6H")
KINDS = {"A": 1, "CNAME": 5, "SOA": 6, "PTR": 12, "TXT": 16, "AAAA": 28, "SRV": 33, "ANY": 255}
NAMES = {number: kind for kind, number in KINDS.items()}
IN = 1
TTL = 5
# Response, authoritative, recursion desired and available.
FLAGS = 0x8580
TRUNCATED = 0x0200
NO_SUCH_NAME = 3
UDP_SIZE = 512
ADDITIONAL_OPT = 41


class Malformed(ValueError):
    """No question that can be answered."""


@dataclass(frozen=True, slots=True)
class Question:
    """`name` is in small letters, without the last dot; `kind` is a key of KINDS or empty."""

    number: int
    name: str
    kind: str
    raw: bytes
    size: int
    """The largest answer that the client takes by UDP (EDNS, RFC 6891)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One answer. `value`: an address, a name, a text, or of SRV a port and a name."""

    kind: str
    name: str
    value: str
    port: int = 0


def parse(message: bytes) -> Question:
    """Raises Malformed."""
    try:
        number, _flags, questions, *_, additional = HEADER.unpack_from(message)
        if questions != 1:
            raise Malformed
        name, end = _parse_name(message, HEADER.size)
        kind, _class = struct.unpack_from(">2H", message, end)
        rest = message[end + 4 :]
        opt = additional and rest[:1] == b"\0" and struct.unpack_from(">2H", rest, 1)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Malformed from error
    size = max(UDP_SIZE, opt[1]) if opt and opt[0] == ADDITIONAL_OPT else UDP_SIZE
    return Question(number, name.lower(), NAMES.get(kind, ""), message[HEADER.size : end + 4], size)


def answer(question: Question, records: list[Record] | None, zone: str, limit: int | None = None) -> bytes:
    """The answer to a question: None says that there is no such name. Over `limit` bytes it is cut and says so."""
    body = b"".join(_encode(record) for record in records or ())
    # For how long there is nothing: RFC 2308.
    authority = b"" if records else _soa(zone)
    flags = FLAGS | (NO_SUCH_NAME if records is None else 0)
    counts = (1, len(records or ()), 0 if records else 1, 0)
    if limit is not None and HEADER.size + len(question.raw) + len(body) + len(authority) > limit:
        return HEADER.pack(question.number, flags | TRUNCATED, 1, 0, 0, 0) + question.raw
    return HEADER.pack(question.number, flags, *counts) + question.raw + body + authority


def encode_name(name: str) -> bytes:
    """The labels of a name, with or without its last dot."""
    return b"".join(bytes([len(label)]) + label for label in _labels(name)) + b"\0"


def _labels(name: str) -> Iterable[bytes]:
    return (label.encode() for label in name.rstrip(".").split(".") if label)


def _parse_name(message: bytes, at: int) -> tuple[str, int]:
    labels = []
    while length := message[at]:
        if length > 63:  # a pointer, which no question has
            raise Malformed
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += length + 1
    return ".".join(labels), at + 1


def _encode(record: Record) -> bytes:
    data = _data(record)
    return encode_name(record.name) + struct.pack(">2HIH", KINDS[record.kind], IN, TTL, len(data)) + data


def _data(record: Record) -> bytes:
    match record.kind:
        case "A" | "AAAA":
            return ipaddress.ip_address(record.value).packed
        case "SRV":
            return struct.pack(">3H", 0, 100, record.port) + encode_name(record.value)
        case "TXT":
            return bytes([len(record.value)]) + record.value.encode()
        case _:
            return encode_name(record.value)


def _soa(zone: str) -> bytes:
    data = encode_name(f"ns.dns.{zone}") + encode_name(f"hostmaster.{zone}")
    data += struct.pack(">5I", 1, 7200, 1800, 86400, TTL)
    return encode_name(zone) + struct.pack(">2HIH", KINDS["SOA"], IN, TTL, len(data)) + data
