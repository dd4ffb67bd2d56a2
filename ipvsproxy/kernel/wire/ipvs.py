"""IPVS in bytes: steps of the plan into netlink messages, and records of the kernel's dumps into state.

Attribute numbers and layouts: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c. The forwarding
method is always masquerading (NAT), thresholds are off. Everything in a message about a destination but its
address and port is the same for all destinations of a server, so it is packed once and put between them: tens of
thousands of destinations cost a fraction of a microsecond each.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ipvsproxy.kernel.wire.netlink import GENERIC, NUMBER_MASK, SEQUENCE, attribute, attributes, generic, message
from ipvsproxy.plan.diff import SERVER_VERBS, IpvsStep, Verb
from ipvsproxy.plan.state import OTHERWISE, UNLIKE_OURS, Destination, FrontendKey, ServerAttributes

GET_SERVICE, GET_DEST, SET_CONFIG, GET_CONFIG = 4, 8, 12, 13
CMD_SERVICE, CMD_DEST, CMD_TIMEOUT_TCP = 1, 2, 4
SVC_AF, SVC_PROTOCOL, SVC_ADDR, SVC_PORT, SVC_FWMARK = 1, 2, 3, 4, 5
SVC_SCHED, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK, SVC_ENGINE = 6, 7, 8, 9, 11
DEST_ADDR, DEST_PORT, DEST_FWD, DEST_WEIGHT, DEST_UPPER, DEST_LOWER = 1, 2, 3, 4, 5, 6
DEST_ACTIVE, DEST_INACTIVE, DEST_PERSISTENT, DEST_AF = 7, 8, 9, 11
HASHED = 0x2
"""IP_VS_SVC_F_HASHED, which the kernel sets by itself."""
WHOLE_ADDRESS: dict[int, int] = {socket.AF_INET: 0xFFFFFFFF, socket.AF_INET6: 128}
"""Netmask of persistence: each client by itself. IPv6: a prefix length."""

NESTED = struct.Struct("=HH")
UNION = 16
"""union nf_inet_addr: an IPv4 address is followed by zeros."""
KEY = struct.Struct(f">20s{UNION}s4sH2x")
SERVER = struct.Struct("=HHII HHI HHI".replace(" ", ""))
TARGET = struct.Struct(f">{UNION}s4sH2x")
"""Of a destination, address and port: all that differs between those of one server. Ports are big-endian."""
REST = struct.Struct("=HHI HHI HHI HHI HHH2x".replace(" ", ""))
"""Of a destination, what follows its port: forwarding method, weight, thresholds, family."""
KEY_HEAD = NESTED.pack(NESTED.size + KEY.size, CMD_SERVICE)
SERVER_PORT_HEAD, PORT_HEAD = NESTED.pack(6, SVC_PORT), NESTED.pack(6, DEST_PORT)
DESTINATION_HEAD = NESTED.pack(4 + 4 + TARGET.size + REST.size, CMD_DEST) + NESTED.pack(4 + UNION, DEST_ADDR)
DESTINATION_SIZE = 16 + GENERIC.size + NESTED.size + KEY.size + len(DESTINATION_HEAD) + TARGET.size + REST.size
"""A whole message about a destination, its netlink header included."""
MOST_AT_ONCE = 256
"""Destinations in one step that is sent: their messages must fit into one datagram."""


def encode(family: int, step: IpvsStep, sequence: int) -> bytes:
    """Return the messages of one step, one after the other, all with one sequence number.

    A message for the server comes first, if the step is about it; then one for each destination.
    """
    key, stamp = _key(step.key), SEQUENCE.pack(sequence)
    verb, weight, messages = step.verb, step.weight, b""
    if verb in SERVER_VERBS:
        body = key if step.server is None else key + _attributes(step.server, len(step.key.address))
        before, after = _server_frame(family, verb, len(body))
        messages = before + stamp + after + body
        if not step.destinations:
            return messages
        verb, weight = Verb.NEW_DEST, 1
    start, command = _destination_frame(family, verb)
    head = start + stamp + command + KEY_HEAD + key + DESTINATION_HEAD
    rest = _rest(len(step.destinations[0].address), weight)
    pack = TARGET.pack
    targets = [pack(d.address, PORT_HEAD, d.port) for d in step.destinations]
    # Between two targets stands the end of one message and the beginning of the next, always the same.
    return messages + head + (rest + head).join(targets) + rest


def pieces(step: IpvsStep) -> Iterable[IpvsStep]:
    """Cut a step with very many destinations into such as can be sent."""
    return (step,) if len(step.destinations) <= MOST_AT_ONCE else _cut(step)


def _cut(step: IpvsStep) -> Iterator[IpvsStep]:
    verb, weight = (Verb.NEW_DEST, 1) if step.creates else (step.verb, step.weight)
    yield IpvsStep(step.verb, step.key, step.server, step.destinations[:MOST_AT_ONCE], step.weight)
    for start in range(MOST_AT_ONCE, len(step.destinations), MOST_AT_ONCE):
        yield IpvsStep(verb, step.key, None, step.destinations[start : start + MOST_AT_ONCE], weight)


def single(step: IpvsStep) -> Iterator[IpvsStep]:
    """Take a step apart into steps of one message each."""
    if step.verb in SERVER_VERBS:
        yield IpvsStep(step.verb, step.key, step.server)
    verb, weight = (Verb.NEW_DEST, 1) if step.creates else (step.verb, step.weight)
    for destination in step.destinations:
        yield IpvsStep(verb, step.key, None, (destination,), weight)


@lru_cache(maxsize=16)
def _destination_frame(family: int, verb: Verb) -> tuple[bytes, bytes]:
    """Return what stands before the sequence number, and between it and the attributes."""
    framed = message(family, 0, GENERIC.pack(verb, 1, 0) + bytes(DESTINATION_SIZE - 16 - GENERIC.size))
    return framed[:8], framed[12 : 16 + GENERIC.size]


@lru_cache(maxsize=16)
def _server_frame(family: int, verb: Verb, length: int) -> tuple[bytes, bytes]:
    """Return the same for a message about a server, the head of its nested attribute included."""
    framed = generic(family, verb, NESTED.pack(NESTED.size + length, CMD_SERVICE) + bytes(length))
    return framed[:8], framed[12:-length]


@lru_cache(maxsize=16)
def _rest(address_length: int, weight: int) -> bytes:
    return REST.pack(
        *(8, DEST_FWD, 0),  # masquerading
        *(8, DEST_WEIGHT, weight),
        *(8, DEST_UPPER, 0),
        *(8, DEST_LOWER, 0),
        *(6, DEST_AF, _address_family(address_length)),
    )


def _address_family(length: int) -> int:
    return socket.AF_INET if length == 4 else socket.AF_INET6


def key_attribute(key: FrontendKey) -> bytes:
    """Return the attribute that names a server in a question about it."""
    return KEY_HEAD + _key(key)


def _key(key: FrontendKey) -> bytes:
    head = _key_head(len(key.address), key.protocol)
    return KEY.pack(head, key.address, SERVER_PORT_HEAD, key.port)


@lru_cache(maxsize=16)
def _key_head(address_length: int, protocol: int) -> bytes:
    return struct.pack(
        "=HHH2xHHH2xHH",
        *(6, SVC_AF, _address_family(address_length)),
        *(6, SVC_PROTOCOL, protocol),
        *(4 + UNION, SVC_ADDR),
    )


@lru_cache(maxsize=64)
def _attributes(server: ServerAttributes, address_length: int) -> bytes:
    netmask = WHOLE_ADDRESS[_address_family(address_length)]
    return attribute(SVC_SCHED, server.scheduler.encode() + b"\0") + SERVER.pack(
        *(12, SVC_FLAGS, server.flags, 0xFFFFFFFF),
        *(8, SVC_TIMEOUT, server.timeout),
        *(8, SVC_NETMASK, netmask),
    )


USUAL_SERVER = struct.Struct(f"={GENERIC.size}s HH HHH2x HHH2x HH{UNION}s HH2s2x HH".replace(" ", ""))
USUAL_SERVER_HEADS = (CMD_SERVICE, 6, SVC_AF, 6, SVC_PROTOCOL, 4 + UNION, SVC_ADDR, 6, SVC_PORT, SVC_SCHED)
ABOUT_AT = USUAL_SERVER.size - NESTED.size
"""Where the attributes begin that servers share: scheduler, flags, timeout."""


def parse_server(part: bytes) -> tuple[FrontendKey, ServerAttributes] | None:
    """Read one record of a GET_SERVICE dump; None for firewall-mark servers.

    A verification reads all servers, and they differ in address and port alone: what follows is looked up where it
    has been seen before and where the record begins as the kernel has always written it.
    """
    if len(part) < USUAL_SERVER.size:
        return _parse_any_server(part)
    values = USUAL_SERVER.unpack_from(part)
    _, _, outer, *heads, scheduler_size, scheduler_kind = values
    af_size, af_kind, af, p_size, p_kind, protocol, a_size, a_kind, address, port_size, port_kind, port = heads
    seen = (outer & NUMBER_MASK, af_size, af_kind, p_size, p_kind, a_size, a_kind, port_size, port_kind)
    if (*seen, scheduler_kind) != USUAL_SERVER_HEADS:
        return _parse_any_server(part)
    server = _about(part[ABOUT_AT : ABOUT_AT + (scheduler_size + 3 & ~3) + 28], af)
    if server is None:
        return _parse_any_server(part)
    return FrontendKey(address[:4] if af == socket.AF_INET else address, protocol, int.from_bytes(port)), server


@lru_cache(maxsize=1024)
def _about(data: bytes, family: int) -> ServerAttributes | None:
    """Read scheduler, flags, timeout and netmask, None if these are not the attributes that are there."""
    fields = dict(attributes(data))
    usual = fields.keys() == {SVC_SCHED, SVC_FLAGS, SVC_TIMEOUT, SVC_NETMASK}
    return _server(fields, family) if usual else None


def _server(fields: dict[int, memoryview], family: int) -> ServerAttributes:
    scheduler, flags = bytes(fields[SVC_SCHED]).rstrip(b"\0").decode(), u32(fields[SVC_FLAGS]) & ~HASHED
    if SVC_ENGINE in fields or (SVC_NETMASK in fields and u32(fields[SVC_NETMASK]) != WHOLE_ADDRESS[family]):
        flags |= OTHERWISE
    return ServerAttributes(scheduler, flags, u32(fields[SVC_TIMEOUT]))


def _parse_any_server(part: bytes) -> tuple[FrontendKey, ServerAttributes] | None:
    fields = nested(part, CMD_SERVICE)
    if SVC_FWMARK in fields or SVC_PORT not in fields:
        return None
    length = 4 if u16(fields[SVC_AF]) == socket.AF_INET else 16
    key = FrontendKey(
        bytes(fields[SVC_ADDR][:length]), u16(fields[SVC_PROTOCOL]), int.from_bytes(fields[SVC_PORT], "big")
    )
    return key, _server(fields, u16(fields[SVC_AF]))


def parse_destination(part: bytes, length: int) -> tuple[Destination, int, int, int]:
    """Read one record of a GET_DEST dump: destination, weight, active and inactive connections.

    `length` is that of the server's address, for kernels that do not tell the destination's family.
    """
    fields = nested(part, CMD_DEST)
    if DEST_AF in fields:
        length = 4 if u16(fields[DEST_AF]) == socket.AF_INET else 16
    destination = Destination(bytes(fields[DEST_ADDR][:length]), int.from_bytes(fields[DEST_PORT], "big"))
    # What this takes for zero a kernel may leave out.
    is_ours = not any(u32(fields[kind]) for kind in (DEST_FWD, DEST_UPPER, DEST_LOWER) if kind in fields)
    weight = u32(fields[DEST_WEIGHT]) if is_ours else UNLIKE_OURS
    return destination, weight, u32(fields[DEST_ACTIVE]), u32(fields[DEST_INACTIVE])


USUAL_RECORD = struct.Struct(f"={GENERIC.size}s HH HH{UNION}s HH2s2x 12s I 16s".replace(" ", ""))
MASQUERADING = struct.pack("=HHIHH", 8, DEST_FWD, 0, 8, DEST_WEIGHT)
NO_THRESHOLDS = struct.pack("=HHIHHI", 8, DEST_UPPER, 0, 8, DEST_LOWER, 0)
USUAL_HEADS = (CMD_DEST, 4 + UNION, DEST_ADDR, 6, DEST_PORT, MASQUERADING, NO_THRESHOLDS)


def parse_weight(part: bytes, length: int) -> tuple[Destination, int]:
    """Read destination and weight only, where the record begins as the kernel has always written it.

    A start of the proxy reads tens of thousands of them. An IPv6 endpoint of an IPv4 server (a tunnel of somebody
    else's) fills the whole address, and is read in full like everything unusual.
    """
    if len(part) < USUAL_RECORD.size:
        return parse_destination(part, length)[:2]
    _, _, outer, size, kind, address, port_size, port_kind, port, method, weight, limits = (
        USUAL_RECORD.unpack_from(part)
    )
    if (outer & NUMBER_MASK, size, kind, port_size, port_kind, method, limits) != USUAL_HEADS:
        return parse_destination(part, length)[:2]
    if length == 4 and any(address[4:]):
        return parse_destination(part, length)[:2]
    return Destination(address[:length], int.from_bytes(port)), weight


def nested(part: bytes, wanted: int) -> dict[int, memoryview]:
    """Return the attributes inside one attribute of a generic netlink answer; none where it is not there."""
    for number, payload in attributes(part, GENERIC.size):
        if number == wanted:
            return dict(attributes(payload))
    return {}


def u16(data: memoryview) -> int:
    """Read an unsigned 16-bit number of this machine."""
    return int.from_bytes(data[:2], sys.byteorder)


def u32(data: memoryview) -> int:
    """Read an unsigned 32-bit number of this machine."""
    return int.from_bytes(data[:4], sys.byteorder)
