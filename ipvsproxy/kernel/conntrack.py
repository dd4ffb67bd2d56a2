"""Entries of connection tracking in this network namespace, over ctnetlink: found, judged and deleted one by one.

A sweep is one dump. The kernel is given the protocol, and the destination port and IPv4 address where all
frontends of the sweep have the same one, and lists only entries that match. (Linux 5.8 and later; older ones list
all of the family, which is slower and otherwise the same, since every entry is looked at here in any case.) IPv6
addresses are not given: the kernel, 6.18 included, takes the comparison the wrong way round and lists all the
others. Entries are judged as they arrive and deleted in small batches meanwhile: a table of a million entries
needs no memory here.

Deleting names the reply tuple and the identity of the entry, both as the kernel has just reported them: a new
connection of the same client that leads elsewhere is left alone. (The identity alone would not do. It is made of
the original tuple and of where the entry is in memory, and the next entry may be in the same place.)

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

import errno
import struct
from collections.abc import Container, Iterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from ipvsproxy.kernel.wire.ctnetlink import AF, DESTINATION, EMPTY, LAYOUTS, PORT, is_of, packed, read_tuple
from ipvsproxy.kernel.wire.netlink import (
    DUMP_TRIES,
    Interrupted,
    KernelError,
    Wire,
    attribute,
    attributes,
    message,
)
from ipvsproxy.kernel.wire.nfnetlink import (
    CTA_FILTER,
    CTA_FILTER_F_CTA_IP_DST,
    CTA_FILTER_F_CTA_PROTO_DST_PORT,
    CTA_FILTER_F_CTA_PROTO_NUM,
    CTA_FILTER_ORIG_FLAGS,
    CTA_ID,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_STATUS,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    CTA_ZONE,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    IPS_SEEN_REPLY,
    NETLINK_NETFILTER,
    NFGENMSG,
    NLA_F_NESTED,
)
from ipvsproxy.plan.stale import Sweep
from ipvsproxy.plan.state import Destination, FrontendKey

DELETED_AT_ONCE = 1000


class ConntrackEntry(NamedTuple):
    """A tracked connection: where it came from, where it was sent to, who answers it, and whether that was seen.

    `name` holds the attributes that name it to the kernel.
    """

    source: bytes
    frontend: FrontendKey
    endpoint: Destination
    replied: bool
    name: bytes


class Conntrack:
    """The tracked connections of this network namespace."""

    def __init__(self) -> None:
        self._wire = Wire(NETLINK_NETFILTER)
        self._deletions = Wire(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._deletions.close()

    def sweep(self, sweep: Sweep) -> int:
        """Delete all entries that the rules of a sweep forbid and return how many. Raises KernelError."""
        return sum(self._delete(sweep.family, stale) for stale in _chunks(self._stale(sweep)))

    def entries(self, sweep: Sweep) -> Iterator[ConntrackEntry]:
        """Yield the entries that the sweep concerns. Raises KernelError, Interrupted."""
        layout, wanted = LAYOUTS[sweep.family], _wanted(sweep)
        for body in self._dump(sweep):
            if is_of(body, layout, wanted):
                entry = parse(body, sweep.family)
                if entry is not None and sweep.concerns(entry.frontend):
                    yield entry

    def _stale(self, sweep: Sweep) -> Iterator[ConntrackEntry]:
        """Yield what is forbidden, some of it twice if the dump is repeated; some tries are enough."""
        for _ in range(DUMP_TRIES):
            with suppress(Interrupted):
                for entry in self.entries(sweep):
                    if sweep.forbids(entry.frontend, entry.source, entry.endpoint, replied=entry.replied):
                        yield entry
                return

    def _dump(self, sweep: Sweep) -> Iterator[bytes]:
        """Ask with a filter; a kernel that refuses it is asked without."""
        try:
            yield from self._wire.stream(dump_request(sweep))
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            yield from self._wire.stream(message(IPCTNL_MSG_CT_GET, 0, NFGENMSG.pack(AF[sweep.family], 0, 0)))

    def _delete(self, number: int, entries: list[ConntrackEntry]) -> int:
        """Delete entries and return how many were still there. Raises KernelError."""
        family = NFGENMSG.pack(AF[number], 0, 0)
        pieces = [
            message(IPCTNL_MSG_CT_DELETE, 0, family + entry.name, index) for index, entry in enumerate(entries)
        ]
        failures = self._deletions.batch(pieces)
        refused = [code for code in failures.values() if code != errno.ENOENT]
        if refused:
            raise KernelError("deleting tracked connections", refused[0])
        return len(entries) - len(failures)


def _chunks(entries: Iterator[ConntrackEntry]) -> Iterator[list[ConntrackEntry]]:
    while chunk := list(islice(entries, DELETED_AT_ONCE)):
        yield chunk


def _wanted(sweep: Sweep) -> Container[bytes]:
    """Return what `is_of` looks for: addresses, and addresses with protocol and port."""
    return sweep.new_vips | {packed(name) for name in (*sweep.rules, *sweep.restricted)}


def dump_request(sweep: Sweep) -> bytes:
    """Return the request for a dump of what the frontends of a sweep have in common."""
    address, port = sweep.address, sweep.port
    flags, parts, proto = 0, b"", b""
    if address is not None and sweep.family == 4:
        flags |= CTA_FILTER_F_CTA_IP_DST
        parts += attribute(CTA_TUPLE_IP | NLA_F_NESTED, attribute(DESTINATION[sweep.family], address))
    if sweep.protocol:
        flags |= CTA_FILTER_F_CTA_PROTO_NUM
        proto += attribute(CTA_PROTO_NUM, bytes((sweep.protocol,)))
    if port is not None:
        flags |= CTA_FILTER_F_CTA_PROTO_DST_PORT
        proto += attribute(CTA_PROTO_DST_PORT, PORT.pack(port))
    if proto:
        parts += attribute(CTA_TUPLE_PROTO | NLA_F_NESTED, proto)
    body = b""
    if flags:
        body += attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, parts)
        body += attribute(CTA_FILTER | NLA_F_NESTED, attribute(CTA_FILTER_ORIG_FLAGS, struct.pack("=I", flags)))
    return message(IPCTNL_MSG_CT_GET, 0, NFGENMSG.pack(AF[sweep.family], 0, 0) + body)


def parse(body: bytes, number: int) -> ConntrackEntry | None:
    """Read one entry of a dump; None for protocols without ports."""
    found = dict(attributes(body, NFGENMSG.size))
    original = read_tuple(found.get(CTA_TUPLE_ORIG, EMPTY), number)
    reply = read_tuple(found.get(CTA_TUPLE_REPLY, EMPTY), number)
    if original is None or reply is None:
        return None
    name = attribute(CTA_TUPLE_REPLY | NLA_F_NESTED, bytes(found[CTA_TUPLE_REPLY]))
    name += b"".join(attribute(kind, bytes(found[kind])) for kind in (CTA_ID, CTA_ZONE) if kind in found)
    endpoint = Destination(reply.source, reply.source_port)
    status = int.from_bytes(found.get(CTA_STATUS, EMPTY), "big")
    return ConntrackEntry(
        original.source,
        FrontendKey(original.destination, original.protocol, original.destination_port),
        endpoint,
        bool(status & IPS_SEEN_REPLY),
        name,
    )
