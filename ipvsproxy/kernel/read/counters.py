"""What IPVS has counted, out of its answers about servers and destinations.

64-bit counters (IPVS_SVC_ATTR_STATS64, IPVS_DEST_ATTR_STATS64; include/uapi/linux/ip_vs.h), of which the kernel
tells ten for each object, always in the same order. It adds them up every two seconds (ip_vs_est.c), never
with net.ipv4.vs.run_estimation=0.
"""

import sys

from ipvsproxy.kernel.wire.ipvs import (
    IPVS_CMD_ATTR_DEST,
    IPVS_CMD_ATTR_SERVICE,
    IPVS_DEST_ATTR_PERSIST_CONNS,
    IPVS_DEST_ATTR_STATS64,
    IPVS_SVC_ATTR_STATS64,
)
from ipvsproxy.kernel.wire.ipvs_records import native_u32, nested, parse_destination, parse_server
from ipvsproxy.kernel.wire.netlink import attributes as attributes_in
from ipvsproxy.plan.records import Counters, DestinationRecord, ServerRecord


def parse_virtual(part: bytes) -> ServerRecord | None:
    """Read one record of an IPVS_CMD_GET_SERVICE answer; None for firewall-mark servers."""
    found = parse_server(part)
    return (
        ServerRecord(*found, _counters(nested(part, IPVS_CMD_ATTR_SERVICE), IPVS_SVC_ATTR_STATS64))
        if found
        else None
    )


def parse_real(part: bytes, length: int) -> DestinationRecord:
    """Read one record of a IPVS_CMD_GET_DEST dump; `length` is that of the server's address."""
    destination, attributes, active, inactive = parse_destination(part, length)
    fields = nested(part, IPVS_CMD_ATTR_DEST)
    return DestinationRecord(
        destination,
        attributes,
        active,
        inactive,
        native_u32(fields[IPVS_DEST_ATTR_PERSIST_CONNS]),
        _counters(fields, IPVS_DEST_ATTR_STATS64),
    )


def _counters(fields: dict[int, memoryview], kind: int) -> Counters:
    if kind not in fields:
        return Counters()
    numbers = dict(attributes_in(fields[kind]))
    known = range(1, len(Counters._fields) + 1)
    return Counters(*(int.from_bytes(numbers.get(number, b""), sys.byteorder) for number in known))
