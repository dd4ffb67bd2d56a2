"""How often connections of each group of sources have been refused, as the kernel has counted.

A set with `counter` has a counter of packets in each of its elements (NFTA_SET_ELEM_EXPR,
include/uapi/linux/netfilter/nf_tables.h).
"""

from contextlib import closing

from ipvsproxy.base.names import TABLE
from ipvsproxy.kernel.elements import read_counted
from ipvsproxy.kernel.wire.netlink import Wire
from ipvsproxy.kernel.wire.nfnetlink import NETLINK_NETFILTER, NFPROTO_INET
from ipvsproxy.ruleset.codec import unpack_one
from ipvsproxy.ruleset.schema import REFUSALS


def read_refusals() -> dict[int, int]:
    """Return the number of refused connections by group, none where there is no such set. Raises KernelError."""
    with closing(Wire(NETLINK_NETFILTER)) as wire:
        found = read_counted(wire, NFPROTO_INET, TABLE, REFUSALS.name)
    slots = ((unpack_one(REFUSALS, raw)[0], packets) for raw, packets in found)
    return {slot.rest: packets for slot, packets in slots if isinstance(slot.rest, int)}
