"""What IPVS has counted, out of its answers about servers and destinations.

64-bit counters (IPVS_SVC_ATTR_STATS64, IPVS_DEST_ATTR_STATS64; include/uapi/linux/ip_vs.h), of which the kernel
tells ten for each object, always in the same order. It adds them up every two seconds (ip_vs_est.c), never
with net.ipv4.vs.run_estimation=0.
"""

import sys

from ipvsproxy.inspect.model import Counters, DestinationRecord, ServerRecord
from ipvsproxy.kernel.wire.ipvs import (
    CMD_DEST,
    CMD_SERVICE,
    DEST_PERSISTENT,
    nested,
    parse_destination,
    parse_server,
    u32,
)
from ipvsproxy.kernel.wire.netlink import attributes

STATS64 = 12
"""The number of the attribute in both kinds of answers."""


def parse_virtual(part: bytes) -> ServerRecord | None:
    """Read one record of a GET_SERVICE answer; None for firewall-mark servers."""
    found = parse_server(part)
    return ServerRecord(*found, _counters(nested(part, CMD_SERVICE))) if found else None


def parse_real(part: bytes, length: int) -> DestinationRecord:
    """Read one record of a GET_DEST dump; `length` is that of the server's address."""
    destination, weight, active, inactive = parse_destination(part, length)
    fields = nested(part, CMD_DEST)
    return DestinationRecord(
        destination, weight, active, inactive, u32(fields[DEST_PERSISTENT]), _counters(fields)
    )


def _counters(fields: dict[int, memoryview]) -> Counters:
    if STATS64 not in fields:
        return Counters()
    numbers = dict(attributes(fields[STATS64]))
    known = range(1, len(Counters._fields) + 1)
    return Counters(*(int.from_bytes(numbers.get(number, b""), sys.byteorder) for number in known))
