"""IPVS in bytes: steps of the plan into netlink messages. `kernel.wire.ipvs_records` reads the kernel's replies.

Attribute numbers and layouts: include/uapi/linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c. Everything in a
message about a destination but its address and port is the same for all destinations of a step, so it is packed
once and put between them: tens of thousands of destinations cost a fraction of a microsecond each.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache

from ipvsproxy.base.address import address_family
from ipvsproxy.kernel.wire.netlink import GENERIC, SEQUENCE, attribute, generic, message
from ipvsproxy.plan.diff import NEW_DEST, SERVER_VERBS, IpvsStep, Verb
from ipvsproxy.plan.state import TUNNEL, DestinationAttributes, FrontendKey, ServerAttributes

IPVS_CMD_GET_SERVICE, IPVS_CMD_GET_DEST, IPVS_CMD_SET_CONFIG, IPVS_CMD_GET_CONFIG = 4, 8, 12, 13
IPVS_CMD_ATTR_SERVICE, IPVS_CMD_ATTR_DEST, IPVS_CMD_ATTR_TIMEOUT_TCP = 1, 2, 4

IPVS_SVC_ATTR_AF = 1
IPVS_SVC_ATTR_PROTOCOL = 2
IPVS_SVC_ATTR_ADDR = 3
IPVS_SVC_ATTR_PORT = 4
IPVS_SVC_ATTR_FWMARK = 5
IPVS_SVC_ATTR_SCHED_NAME = 6
IPVS_SVC_ATTR_FLAGS = 7
IPVS_SVC_ATTR_TIMEOUT = 8
IPVS_SVC_ATTR_NETMASK = 9
IPVS_SVC_ATTR_PE_NAME = 11
IPVS_SVC_ATTR_STATS64 = 12

IPVS_DEST_ATTR_ADDR = 1
IPVS_DEST_ATTR_PORT = 2
IPVS_DEST_ATTR_FWD_METHOD = 3
IPVS_DEST_ATTR_WEIGHT = 4
IPVS_DEST_ATTR_U_THRESH = 5
IPVS_DEST_ATTR_L_THRESH = 6
IPVS_DEST_ATTR_ACTIVE_CONNS = 7
IPVS_DEST_ATTR_INACT_CONNS = 8
IPVS_DEST_ATTR_PERSIST_CONNS = 9
IPVS_DEST_ATTR_ADDR_FAMILY = 11
IPVS_DEST_ATTR_STATS64 = 12
IPVS_DEST_ATTR_TUN_TYPE = 13
IPVS_DEST_ATTR_TUN_PORT = 14
IPVS_DEST_ATTR_TUN_FLAGS = 15

WHOLE_ADDRESS: dict[int, int] = {socket.AF_INET: 0xFFFFFFFF, socket.AF_INET6: 128}
"""Netmask of persistence by which each client stands for itself. IPv6: a prefix length."""
NESTED = struct.Struct("=HH")
UNION = 16
"""union nf_inet_addr: an IPv4 address is followed by zeros."""
KEY = struct.Struct(f">20s{UNION}s4sH2x")
SERVER = struct.Struct("=HHII HHI".replace(" ", ""))
TARGET = struct.Struct(f">{UNION}s4sH2x")
"""Of a destination, address and port: all that differs between those of one step. Ports are big-endian."""
REST = struct.Struct("=HHI HHI HHI HHI HHH2x".replace(" ", ""))
"""Of a destination, what follows its port: forwarding method, weight, thresholds, family."""
TUNNEL_ATTRIBUTES = struct.Struct("=HHB3x HH2s2x HHH2x".replace(" ", ""))
KEY_HEAD = NESTED.pack(NESTED.size + KEY.size, IPVS_CMD_ATTR_SERVICE)
SERVER_PORT_HEAD, PORT_HEAD = NESTED.pack(6, IPVS_SVC_ATTR_PORT), NESTED.pack(6, IPVS_DEST_ATTR_PORT)
ADDRESS_HEAD = NESTED.pack(4 + UNION, IPVS_DEST_ATTR_ADDR)
MOST_AT_ONCE = 256
"""Destinations in one step that is sent: their messages must fit into one datagram."""


def encode(family: int, step: IpvsStep, sequence: int) -> bytes:
    """Return the messages of one step, one after the other, all with one sequence number.

    A message for the server comes first, if the step is about it; then one for each destination.
    """
    key, stamp = _key(step.key), SEQUENCE.pack(sequence)
    verb, messages = step.verb, b""
    if verb in SERVER_VERBS:
        body = key if step.server is None else key + _attributes(step.server, len(step.key.address))
        before, after = _server_frame(family, verb, len(body))
        messages = before + stamp + after + body
        if not step.destinations:
            return messages
        verb = NEW_DEST
    rest = _rest(len(step.destinations[0].address), step.attributes)
    start, command, target = _destination_frame(family, verb, len(rest))
    head = start + stamp + command + key + target
    pack = TARGET.pack
    if len(step.destinations) == 1:
        (only,) = step.destinations
        return messages + head + pack(only.address, PORT_HEAD, only.port) + rest
    targets = [pack(d.address, PORT_HEAD, d.port) for d in step.destinations]
    # Between two targets stands the end of one message and the beginning of the next, always the same.
    return messages + head + (rest + head).join(targets) + rest


def pieces(step: IpvsStep) -> Iterable[IpvsStep]:
    """Cut a step with very many destinations into such as can be sent."""
    return (step,) if len(step.destinations) <= MOST_AT_ONCE else _cut(step)


def _cut(step: IpvsStep) -> Iterator[IpvsStep]:
    verb = NEW_DEST if step.creates else step.verb
    yield IpvsStep(step.verb, step.key, step.server, step.destinations[:MOST_AT_ONCE], step.attributes)
    for start in range(MOST_AT_ONCE, len(step.destinations), MOST_AT_ONCE):
        part = step.destinations[start : start + MOST_AT_ONCE]
        yield IpvsStep(verb, step.key, None, part, step.attributes)


def single(step: IpvsStep) -> Iterator[IpvsStep]:
    """Take a step apart into steps of one message each."""
    if step.verb in SERVER_VERBS:
        yield IpvsStep(step.verb, step.key, step.server)
    verb = NEW_DEST if step.creates else step.verb
    for destination in step.destinations:
        yield IpvsStep(verb, step.key, None, (destination,), step.attributes)


@lru_cache(maxsize=32)
def _destination_frame(family: int, verb: Verb, rest: int) -> tuple[bytes, bytes, bytes]:
    """Return what stands before the sequence number, between it and the server's key, and before the target."""
    target = NESTED.pack(NESTED.size + len(ADDRESS_HEAD) + TARGET.size + rest, IPVS_CMD_ATTR_DEST) + ADDRESS_HEAD
    behind = len(KEY_HEAD) + KEY.size + len(target) + TARGET.size + rest
    framed = message(family, 0, GENERIC.pack(verb, 1, 0) + bytes(behind))
    return framed[:8], framed[12 : 16 + GENERIC.size] + KEY_HEAD, target


@lru_cache(maxsize=16)
def _server_frame(family: int, verb: Verb, length: int) -> tuple[bytes, bytes]:
    """Return the same for a message about a server, the head of its nested attribute included."""
    framed = generic(family, verb, NESTED.pack(NESTED.size + length, IPVS_CMD_ATTR_SERVICE) + bytes(length))
    return framed[:8], framed[12:-length]


@lru_cache(maxsize=256)
def _rest(address_length: int, attributes: DestinationAttributes) -> bytes:
    rest = REST.pack(
        *(8, IPVS_DEST_ATTR_FWD_METHOD, attributes.forwarding_method),
        *(8, IPVS_DEST_ATTR_WEIGHT, attributes.weight),
        *(8, IPVS_DEST_ATTR_U_THRESH, attributes.upper_threshold),
        *(8, IPVS_DEST_ATTR_L_THRESH, attributes.lower_threshold),
        *(6, IPVS_DEST_ATTR_ADDR_FAMILY, address_family(address_length)),
    )
    return rest + _tunnel(attributes) if attributes.forwarding_method == TUNNEL else rest


def _tunnel(attributes: DestinationAttributes) -> bytes:
    return TUNNEL_ATTRIBUTES.pack(
        *(5, IPVS_DEST_ATTR_TUN_TYPE, attributes.tunnel_type),
        *(6, IPVS_DEST_ATTR_TUN_PORT, attributes.tunnel_port.to_bytes(2)),
        *(6, IPVS_DEST_ATTR_TUN_FLAGS, attributes.tunnel_flags),
    )


def key_attribute(key: FrontendKey) -> bytes:
    """Return the attribute that names a server in a request about it."""
    return KEY_HEAD + _key(key)


def _key(key: FrontendKey) -> bytes:
    head = _key_head(len(key.address), key.protocol)
    return KEY.pack(head, key.address, SERVER_PORT_HEAD, key.port)


@lru_cache(maxsize=16)
def _key_head(address_length: int, protocol: int) -> bytes:
    return struct.pack(
        "=HHH2xHHH2xHH",
        *(6, IPVS_SVC_ATTR_AF, address_family(address_length)),
        *(6, IPVS_SVC_ATTR_PROTOCOL, protocol),
        *(4 + UNION, IPVS_SVC_ATTR_ADDR),
    )


@lru_cache(maxsize=64)
def _attributes(server: ServerAttributes, address_length: int) -> bytes:
    """A persistence engine that is not named is taken away from the server (ip_vs_edit_service)."""
    engine = attribute(IPVS_SVC_ATTR_PE_NAME, server.engine.encode() + b"\0") if server.engine else b""
    fixed = SERVER.pack(
        *(12, IPVS_SVC_ATTR_FLAGS, server.flags, 0xFFFFFFFF),
        *(8, IPVS_SVC_ATTR_TIMEOUT, server.timeout),
    )
    scheduler = attribute(IPVS_SVC_ATTR_SCHED_NAME, server.scheduler.encode() + b"\0")
    return scheduler + engine + fixed + attribute(IPVS_SVC_ATTR_NETMASK, _netmask(server.netmask, address_length))


def _netmask(netmask: int | None, address_length: int) -> bytes:
    if address_length == 4:
        return (WHOLE_ADDRESS[socket.AF_INET] if netmask is None else netmask).to_bytes(4)
    return struct.pack("=I", WHOLE_ADDRESS[socket.AF_INET6] if netmask is None else netmask)
