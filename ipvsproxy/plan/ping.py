"""Whether a VIP answers pings: never, always, to those in source ranges, only while it has endpoints.

An address may belong to several Services. Those without a wish have no part in it; of the others the
strictest counts, and with source ranges everybody who is in those of one of them. Deterministic, no I/O.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, family
from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.plan.range_union import RangeUnion
from ipvsproxy.plan.state import Frontend
from ipvsproxy.ruleset.elements import ElementKey, PacketVerdict
from ipvsproxy.ruleset.schema import PING_ALLOWED, PING_OFF, PING_RANGED, PING_READY, PING_WHEN_READY

OFF, WHEN_READY = "off", "when-ready"
PingedRanges = tuple[Cidr, ...]


def ping_elements(frontend: Frontend) -> Iterator[ElementKey]:
    """Yield the elements of the frontend's address but those of `PingRanges`; none for an address of the node."""
    address, number = frontend.key.address, family(frontend.key.address)
    if not (frontend.ping and frontend.bind):
        return
    if frontend.ping == OFF:
        yield ElementKey(PING_OFF[number], address)
    if frontend.ping == WHEN_READY:
        yield ElementKey(PING_WHEN_READY[number], address)
        if frontend.verdict is PacketVerdict.ACCEPT:
            yield ElementKey(PING_READY[number], address)
    if frontend.ranges:
        yield ElementKey(PING_RANGED[number], address)


class PingedAddress(NamedTuple):
    """How many frontends of an address have the same ranges, and the union of these."""

    counts: dict[PingedRanges, int]
    union: RangeUnion


class PingRanges:
    """The source ranges that count for pings of each address: those of all its frontends, without overlaps.

    All frontends of a Service have the same ones: they are put together once, not once for each port.
    """

    def __init__(self) -> None:
        self._ranges: dict[FrontendKey, PingedRanges] = {}
        self._addresses: dict[bytes, PingedAddress] = {}

    def change(self, key: FrontendKey, new: Frontend | None) -> tuple[set[ElementKey], set[ElementKey]]:
        """Record a frontend, None for one that is gone; return the elements that go and those that come."""
        address = key.address
        ranges = new.ranges if new is not None and new.bind and new.ping else ()
        old = self._ranges.pop(key, ())
        if ranges:
            self._ranges[key] = ranges
        if old == ranges:
            return set(), set()
        found = self._addresses.get(address)
        if found is None:
            found = self._addresses[address] = PingedAddress({}, RangeUnion())
        is_first, is_last = _count(found.counts, old, ranges)
        gone, come = found.union.change(old if is_last else (), ranges if is_first else ())
        if not found.union:
            del self._addresses[address]
        return _elements(address, gone), _elements(address, come)


def _count(counts: dict[PingedRanges, int], old: PingedRanges, new: PingedRanges) -> tuple[bool, bool]:
    """Count a frontend; return whether it is the first with its new ranges, and was the last with its old ones."""
    if old:
        counts[old] -= 1
        if not counts[old]:
            del counts[old]
    if new:
        counts[new] = counts.get(new, 0) + 1
    return bool(new) and counts[new] == 1, bool(old) and old not in counts


def _elements(address: bytes, ranges: Iterable[Cidr]) -> set[ElementKey]:
    kind = PING_ALLOWED[family(address)]
    return {ElementKey(kind, address, cidr) for cidr in ranges}
