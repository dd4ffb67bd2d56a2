"""What IPVS replies, out of its bytes: records of dumps into servers and destinations with all their attributes.

A verification reads all servers, and a start all destinations, and most of them differ in address and port alone:
what follows these is looked up where it has been seen before, if the record begins as the kernel has always
written it. Everything else is read attribute by attribute.
"""

import socket
import struct
import sys
from functools import lru_cache

from ipvsproxy.kernel.wire.ipvs import (
    IPVS_CMD_ATTR_DEST,
    IPVS_CMD_ATTR_SERVICE,
    IPVS_DEST_ATTR_ACTIVE_CONNS,
    IPVS_DEST_ATTR_ADDR,
    IPVS_DEST_ATTR_ADDR_FAMILY,
    IPVS_DEST_ATTR_FWD_METHOD,
    IPVS_DEST_ATTR_INACT_CONNS,
    IPVS_DEST_ATTR_L_THRESH,
    IPVS_DEST_ATTR_PORT,
    IPVS_DEST_ATTR_TUN_FLAGS,
    IPVS_DEST_ATTR_TUN_PORT,
    IPVS_DEST_ATTR_TUN_TYPE,
    IPVS_DEST_ATTR_U_THRESH,
    IPVS_DEST_ATTR_WEIGHT,
    IPVS_SVC_ATTR_ADDR,
    IPVS_SVC_ATTR_AF,
    IPVS_SVC_ATTR_FLAGS,
    IPVS_SVC_ATTR_FWMARK,
    IPVS_SVC_ATTR_NETMASK,
    IPVS_SVC_ATTR_PE_NAME,
    IPVS_SVC_ATTR_PORT,
    IPVS_SVC_ATTR_PROTOCOL,
    IPVS_SVC_ATTR_SCHED_NAME,
    IPVS_SVC_ATTR_TIMEOUT,
    NESTED,
    UNION,
    WHOLE_ADDRESS,
)
from ipvsproxy.kernel.wire.netlink import GENERIC, NUMBER_MASK, attributes, text
from ipvsproxy.plan.state import TUNNEL, Destination, DestinationAttributes, FrontendKey, ServerAttributes

IP_VS_SVC_F_HASHED = 0x2
"""A flag that the kernel sets by itself."""

USUAL_SERVER = struct.Struct(f"={GENERIC.size}s HH HHH2x HHH2x HH{UNION}s HH2s2x HH".replace(" ", ""))
USUAL_SERVER_HEADS = (
    IPVS_CMD_ATTR_SERVICE,
    *(6, IPVS_SVC_ATTR_AF),
    *(6, IPVS_SVC_ATTR_PROTOCOL),
    *(4 + UNION, IPVS_SVC_ATTR_ADDR),
    *(6, IPVS_SVC_ATTR_PORT),
    IPVS_SVC_ATTR_SCHED_NAME,
)
SERVER_ATTRIBUTES_AT = USUAL_SERVER.size - NESTED.size
"""Where the attributes begin that servers share: scheduler, flags, timeout, netmask."""
USUAL_SERVER_ATTRIBUTES = {
    IPVS_SVC_ATTR_SCHED_NAME,
    IPVS_SVC_ATTR_FLAGS,
    IPVS_SVC_ATTR_TIMEOUT,
    IPVS_SVC_ATTR_NETMASK,
}

USUAL_DESTINATION = struct.Struct(f"={GENERIC.size}s HH HH{UNION}s HH2s2x".replace(" ", ""))
USUAL_DESTINATION_HEADS = (IPVS_CMD_ATTR_DEST, 4 + UNION, IPVS_DEST_ATTR_ADDR, 6, IPVS_DEST_ATTR_PORT)
DESTINATION_ATTRIBUTES = slice(USUAL_DESTINATION.size, USUAL_DESTINATION.size + 7 * 8)
"""The attributes that destinations share, as kernels since 5.3 write them: each takes eight bytes."""
USUAL_DESTINATION_ATTRIBUTES = {
    IPVS_DEST_ATTR_FWD_METHOD,
    IPVS_DEST_ATTR_WEIGHT,
    IPVS_DEST_ATTR_TUN_TYPE,
    IPVS_DEST_ATTR_TUN_PORT,
    IPVS_DEST_ATTR_TUN_FLAGS,
    IPVS_DEST_ATTR_U_THRESH,
    IPVS_DEST_ATTR_L_THRESH,
}


def parse_server(part: bytes) -> tuple[FrontendKey, ServerAttributes] | None:
    """Read one record of a GET_SERVICE dump; None for firewall-mark servers."""
    if len(part) < USUAL_SERVER.size:
        return _parse_any_server(part)
    values = USUAL_SERVER.unpack_from(part)
    _, _, outer, *heads, scheduler_size, scheduler_kind = values
    af_size, af_kind, af, p_size, p_kind, protocol, a_size, a_kind, address, port_size, port_kind, port = heads
    seen = (outer & NUMBER_MASK, af_size, af_kind, p_size, p_kind, a_size, a_kind, port_size, port_kind)
    if (*seen, scheduler_kind) != USUAL_SERVER_HEADS:
        return _parse_any_server(part)
    at = SERVER_ATTRIBUTES_AT
    server = _usual_server(part[at : at + (scheduler_size + 3 & ~3) + 28], af)
    if server is None:
        return _parse_any_server(part)
    return FrontendKey(address[:4] if af == socket.AF_INET else address, protocol, int.from_bytes(port)), server


@lru_cache(maxsize=1024)
def _usual_server(data: bytes, family: int) -> ServerAttributes | None:
    """Read scheduler, flags, timeout and netmask, None if these are not the attributes that are there."""
    fields = dict(attributes(data))
    return _server(fields, family) if fields.keys() == USUAL_SERVER_ATTRIBUTES else None


def _server(fields: dict[int, memoryview], family: int) -> ServerAttributes:
    engine, netmask = fields.get(IPVS_SVC_ATTR_PE_NAME, b""), fields.get(IPVS_SVC_ATTR_NETMASK)
    return ServerAttributes(
        text(fields[IPVS_SVC_ATTR_SCHED_NAME]),
        native_u32(fields[IPVS_SVC_ATTR_FLAGS]) & ~IP_VS_SVC_F_HASHED,
        native_u32(fields[IPVS_SVC_ATTR_TIMEOUT]),
        _netmask(netmask, family) if netmask else None,
        text(engine),
    )


def _netmask(data: memoryview, family: int) -> int | None:
    netmask = int.from_bytes(data[:4]) if family == socket.AF_INET else native_u32(data)
    return None if netmask == WHOLE_ADDRESS[family] else netmask


def _parse_any_server(part: bytes) -> tuple[FrontendKey, ServerAttributes] | None:
    fields = nested(part, IPVS_CMD_ATTR_SERVICE)
    if IPVS_SVC_ATTR_FWMARK in fields or IPVS_SVC_ATTR_PORT not in fields:
        return None
    family = u16(fields[IPVS_SVC_ATTR_AF])
    key = FrontendKey(
        bytes(fields[IPVS_SVC_ATTR_ADDR][: 4 if family == socket.AF_INET else 16]),
        u16(fields[IPVS_SVC_ATTR_PROTOCOL]),
        int.from_bytes(fields[IPVS_SVC_ATTR_PORT]),
    )
    return key, _server(fields, family)


def parse_destination(part: bytes, length: int) -> tuple[Destination, DestinationAttributes, int, int]:
    """Read one record of a GET_DEST dump: destination, its attributes, active and inactive connections.

    `length` is that of the server's address, for kernels that do not report the destination's family.
    """
    fields = nested(part, IPVS_CMD_ATTR_DEST)
    if IPVS_DEST_ATTR_ADDR_FAMILY in fields:
        length = 4 if u16(fields[IPVS_DEST_ATTR_ADDR_FAMILY]) == socket.AF_INET else 16
    destination = Destination(
        bytes(fields[IPVS_DEST_ATTR_ADDR][:length]), int.from_bytes(fields[IPVS_DEST_ATTR_PORT])
    )
    active, inactive = fields[IPVS_DEST_ATTR_ACTIVE_CONNS], fields[IPVS_DEST_ATTR_INACT_CONNS]
    return destination, _destination(fields), native_u32(active), native_u32(inactive)


def _destination(fields: dict[int, memoryview]) -> DestinationAttributes:
    """What a kernel leaves out is zero; a tunnel that is not used is none."""
    weight, method = native_u32(fields[IPVS_DEST_ATTR_WEIGHT]), _number(fields, IPVS_DEST_ATTR_FWD_METHOD)
    upper, lower = _number(fields, IPVS_DEST_ATTR_U_THRESH), _number(fields, IPVS_DEST_ATTR_L_THRESH)
    if method != TUNNEL or IPVS_DEST_ATTR_TUN_TYPE not in fields:
        return DestinationAttributes(weight, upper, lower, method)
    return DestinationAttributes(
        *(weight, upper, lower, method),
        tunnel_type=fields[IPVS_DEST_ATTR_TUN_TYPE][0],
        tunnel_port=int.from_bytes(fields[IPVS_DEST_ATTR_TUN_PORT]),
        tunnel_flags=u16(fields[IPVS_DEST_ATTR_TUN_FLAGS]),
    )


def _number(fields: dict[int, memoryview], kind: int) -> int:
    return native_u32(fields[kind]) if kind in fields else 0


def parse_attributes(part: bytes, length: int) -> tuple[Destination, DestinationAttributes]:
    """Read destination and attributes only.

    An IPv6 endpoint of an IPv4 server (a tunnel that another program has made) fills the whole address, and is
    read in full like everything unusual.
    """
    if len(part) < DESTINATION_ATTRIBUTES.stop:
        return parse_destination(part, length)[:2]
    _, _, outer, size, kind, address, port_size, port_kind, port = USUAL_DESTINATION.unpack_from(part)
    if (outer & NUMBER_MASK, size, kind, port_size, port_kind) != USUAL_DESTINATION_HEADS:
        return parse_destination(part, length)[:2]
    found = _usual_destination(part[DESTINATION_ATTRIBUTES])
    if found is None or (length == 4 and any(address[4:])):
        return parse_destination(part, length)[:2]
    return Destination(address[:length], int.from_bytes(port)), found


@lru_cache(maxsize=1024)
def _usual_destination(data: bytes) -> DestinationAttributes | None:
    """Read what destinations share, None if these are not the attributes that are there."""
    fields = dict(attributes(data))
    return _destination(fields) if fields.keys() == USUAL_DESTINATION_ATTRIBUTES else None


def nested(part: bytes, wanted: int) -> dict[int, memoryview]:
    """Return the attributes inside one attribute of a generic netlink reply; none where it is not there."""
    for number, payload in attributes(part, GENERIC.size):
        if number == wanted:
            return dict(attributes(payload))
    return {}


def u16(data: memoryview) -> int:
    """Read an unsigned 16-bit number of this machine."""
    return int.from_bytes(data[:2], sys.byteorder)


def native_u32(data: memoryview) -> int:
    """Read an unsigned 32-bit number of this machine."""
    return int.from_bytes(data[:4], sys.byteorder)
