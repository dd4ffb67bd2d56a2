"""The union of ranges that come and go one by one, as the widest of them, which do not overlap.

A range that comes or goes is compared with those that lie next to it, and not with all: the cost is that of what
changes, and a search. Deterministic, no I/O.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from ipvsproxy.base.address import Cidr


class RangeUnion:
    """Ranges of one family, each as many times as it was added."""

    def __init__(self) -> None:
        self._counts: dict[Cidr, int] = {}
        self._ordered: list[Cidr] = []
        # How many different ones have a length of prefix.
        self._lengths: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def change(self, leaving: Iterable[Cidr], coming: Iterable[Cidr]) -> tuple[set[Cidr], set[Cidr]]:
        """Take ranges away, which must be there, and add others; return which of the widest are gone, and new."""
        gone, new = set[Cidr](), set[Cidr]()
        for cidr in coming:
            self._add(cidr, gone, new)
        for cidr in leaving:
            self._remove(cidr, gone, new)
        return gone, new

    def _add(self, cidr: Cidr, gone: set[Cidr], new: set[Cidr]) -> None:
        count = self._counts[cidr] = self._counts.get(cidr, 0) + 1
        if count > 1:
            return
        if not self._is_within_another(cidr):
            _move(self._widest_within(cidr), new, gone)
            _move((cidr,), gone, new)
        insort(self._ordered, cidr)
        self._lengths[cidr.prefix] = self._lengths.get(cidr.prefix, 0) + 1

    def _remove(self, cidr: Cidr, gone: set[Cidr], new: set[Cidr]) -> None:
        self._counts[cidr] -= 1
        if self._counts[cidr]:
            return
        del self._counts[cidr]
        del self._ordered[bisect_left(self._ordered, cidr)]
        self._lengths[cidr.prefix] -= 1
        if not self._lengths[cidr.prefix]:
            del self._lengths[cidr.prefix]
        if not self._is_within_another(cidr):
            _move((cidr,), new, gone)
            _move(self._widest_within(cidr), gone, new)

    def _is_within_another(self, cidr: Cidr) -> bool:
        size, number = len(cidr.network), int.from_bytes(cidr.network)
        for prefix in self._lengths:
            shift = size * 8 - prefix
            if prefix < cidr.prefix and Cidr((number >> shift << shift).to_bytes(size), prefix) in self._counts:
                return True
        return False

    def _widest_within(self, cidr: Cidr) -> Iterator[Cidr]:
        """Yield the widest ranges inside of one that is not there."""
        place, after = bisect_left(self._ordered, cidr), _after(cidr)
        while place < len(self._ordered) and (after is None or self._ordered[place] < after):
            found = self._ordered[place]
            yield found
            behind = _after(found)
            if behind is None:
                return
            place = bisect_left(self._ordered, behind, place + 1)


def _move(ranges: Iterable[Cidr], source: set[Cidr], target: set[Cidr]) -> None:
    """Have ranges in `target`, unless they have just been put into `source`."""
    for cidr in ranges:
        if cidr in source:
            source.remove(cidr)
        else:
            target.add(cidr)


def _after(cidr: Cidr) -> Cidr | None:
    """Return the least range behind one, None behind the last address."""
    size = len(cidr.network)
    first = int.from_bytes(cidr.network) + (1 << size * 8 - cidr.prefix)
    return Cidr(first.to_bytes(size), 0) if first >> size * 8 == 0 else None
