"""Whether a VIP answers pings: never, always, to those in source ranges, only while it has endpoints.

An address may belong to several Services. Those without a wish have no part in it; of the others the
strictest counts, and with source ranges everybody who is in those of one of them. Deterministic, no I/O.
"""

from collections.abc import Iterable, Iterator

from ipvsproxy.base.address import Cidr, disjoint, family
from ipvsproxy.base.frontend import FrontendKey
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


class PingRanges:
    """The source ranges that count for pings of each address: those of all its frontends, without overlaps.

    All frontends of a Service have the same ones: they are put together once, not once for each port.
    """

    def __init__(self) -> None:
        self._ranges: dict[FrontendKey, PingedRanges] = {}
        # How many frontends of an address have the same ones.
        self._counts: dict[bytes, dict[PingedRanges, int]] = {}

    def change(self, key: FrontendKey, new: Frontend | None) -> tuple[set[ElementKey], set[ElementKey]]:
        """Record a frontend, None for one that is gone; return the elements that go and those that come."""
        address = key.address
        ranges = new.ranges if new is not None and new.bind and new.ping else ()
        old = self._ranges.pop(key, ())
        if ranges:
            self._ranges[key] = ranges
        if old == ranges:
            return set(), set()
        counts = self._counts.setdefault(address, {})
        if (not ranges or ranges in counts) and counts.get(old, 0) != 1:
            _count(counts, old, ranges)
            return set(), set()
        before = _elements(address, counts)
        _count(counts, old, ranges)
        if not counts:
            del self._counts[address]
        after = _elements(address, counts)
        return before - after, after - before


def _count(counts: dict[PingedRanges, int], old: PingedRanges, new: PingedRanges) -> None:
    if old:
        counts[old] -= 1
        if not counts[old]:
            del counts[old]
    if new:
        counts[new] = counts.get(new, 0) + 1


def _elements(address: bytes, different: Iterable[PingedRanges]) -> set[ElementKey]:
    kind = PING_ALLOWED[family(address)]
    return {ElementKey(kind, address, cidr) for cidr in disjoint({cidr for some in different for cidr in some})}
