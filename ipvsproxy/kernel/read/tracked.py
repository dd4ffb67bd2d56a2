"""Connections of frontends on the short path: entries of connection tracking, since IPVS knows nothing of them.

The kernel is asked for all entries of a family that has such frontends, and each is looked at as it arrives: a
table of a million entries takes a few seconds and no memory.
"""

from collections.abc import Collection, Iterator, Mapping

from ipvsproxy.base.address import family
from ipvsproxy.base.frontend import PROTOCOL_NAMES
from ipvsproxy.kernel.read.connections import Asker, Connection
from ipvsproxy.kernel.wire.ctnetlink import AF, EMPTY, LAYOUTS, Tuple, is_of, packed, read_tuple
from ipvsproxy.kernel.wire.netlink import Wire, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    CTA_PROTOINFO,
    CTA_PROTOINFO_SCTP,
    CTA_PROTOINFO_SCTP_STATE,
    CTA_PROTOINFO_TCP,
    CTA_PROTOINFO_TCP_STATE,
    CTA_TIMEOUT,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_REPLY,
    IPCTNL_MSG_CT_GET,
    NETLINK_NETFILTER,
    NFGENMSG,
)
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Destination, FrontendKey

STATES = {
    Protocol.TCP: (
        CTA_PROTOINFO_TCP,
        CTA_PROTOINFO_TCP_STATE,
        ("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE",
         "SYN_SENT2"),
    ),
    Protocol.SCTP: (
        CTA_PROTOINFO_SCTP,
        CTA_PROTOINFO_SCTP_STATE,
        ("NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD",
         "SHUTDOWN_ACK_SENT"),
    ),
}  # fmt: skip
"""Where an entry has the state of a connection, and the names of states.

Source: include/uapi/linux/netfilter/nf_conntrack_tcp.h and nf_conntrack_sctp.h.
"""


def tracked(wire: Wire, frontends: Collection[FrontendKey]) -> Iterator[Connection]:
    """Yield the connections of some frontends, in the kernel's order. Raises KernelError."""
    for number in sorted({family(key.address) for key in frontends}):
        wanted = set(map(packed, frontends))
        for body in wire.stream(message(IPCTNL_MSG_CT_GET, 0, NFGENMSG.pack(AF[number], 0, 0))):
            found = parse(body, number) if is_of(body, LAYOUTS[number], wanted) else None
            if found and packed(found.frontend) in wanted:
                yield found


def trace_tracked(asked: Mapping[Asker, FrontendKey]) -> dict[Asker, list[Destination]]:
    """Return to which endpoints connection tracking has led who asked which frontend. Raises KernelError."""
    found: dict[Asker, list[Destination]] = {asker: [] for asker in asked}
    wire = Wire(NETLINK_NETFILTER)
    try:
        for connection in tracked(wire, set(asked.values())):
            asker = Asker(connection.frontend.protocol, connection.client)
            if asked.get(asker) == connection.frontend:
                found[asker].append(connection.endpoint)
    finally:
        wire.close()
    return found


def parse(body: bytes, number: int) -> Connection | None:
    """Read one entry; None for protocols that no Service has."""
    found = dict(attributes(body, NFGENMSG.size))
    original, reply = (read_tuple(found.get(kind, EMPTY), number) for kind in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY))
    if original is None or reply is None or original.protocol not in PROTOCOL_NAMES:
        return None
    return Connection(
        Destination(original.source, original.source_port),
        FrontendKey(original.destination, original.protocol, original.destination_port),
        Destination(reply.source, reply.source_port),
        _state(original, found.get(CTA_PROTOINFO, EMPTY)),
        int.from_bytes(found.get(CTA_TIMEOUT, EMPTY), "big"),
    )


def _state(original: Tuple, info: memoryview) -> str:
    """Return the name of its state; a protocol without states has its own name, as in IPVS's table."""
    protocol = Protocol(original.protocol)
    if protocol not in STATES:
        return protocol.name
    place, kind, names = STATES[protocol]
    fields = dict(attributes(dict(attributes(info)).get(place, EMPTY)))
    number = fields[kind][0] if kind in fields else 0
    return names[number] if number < len(names) else str(number)
