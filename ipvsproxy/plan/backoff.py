"""What failed, and when each of it is tried again: an object waits by itself, whatever happens to others.

Names of kernel objects (servers, VIPs, elements) that the kernel refused wait for twice as long each time. They
are tried earlier only when what is wanted of them has changed. A change of something else meanwhile must know of
those it depends on, since nothing may answer without its rules (`plan.dependencies`): `related` finds them by
frontend and address. Deterministic: times are seconds of one clock that never goes back.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator

import msgspec

from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.plan.state import Dirty
from ipvsproxy.ruleset.elements import ElementKey
from ipvsproxy.ruleset.schema import SetSchema

WAITS = ExponentialWait(0.1, 30.0)
SHARE = 10
GRID_SECONDS = 1.0
"""Waits of a second and more end together with others: many objects that fail are one batch, and few log lines."""

NONE: frozenset[int] = frozenset()

RefusedName = FrontendKey | bytes | ElementKey


class Wait(msgspec.Struct, frozen=True, gc=False):
    """How long the last pause of an object was chosen, and when it ends."""

    seconds: float
    end: float


class Place(msgspec.Struct):
    """What waits at one address (or of the node): servers, the address itself, and elements by their owners."""

    servers: dict[FrontendKey, None]
    vips: dict[bytes, None]
    slots: dict[ElementKey, None]
    of_frontends: dict[FrontendKey, dict[ElementKey, None]]

    def __bool__(self) -> bool:
        return bool(self.servers or self.vips or self.slots or self.of_frontends)


class Backoff:
    """The names that wait."""

    def __init__(self) -> None:
        self._waits: dict[RefusedName, Wait] = {}
        self._places: dict[bytes | None, Place] = {}
        # Batches of names that failed together. A name with another end by now is dropped from its old batch.
        self._agenda: list[tuple[float, int, list[RefusedName]]] = []
        self._numbers = itertools.count()
        self._sets: Counter[SetSchema] = Counter()

    def __len__(self) -> int:
        return len(self._waits)

    @property
    def next(self) -> float:
        """When something is to be tried again, infinity for never."""
        return self._agenda[0][0] if self._agenda else math.inf

    @property
    def families(self) -> frozenset[int]:
        """The families of sets whose elements wait, 0 for sets without one (`affected.families_behind`)."""
        return frozenset(found.family for found in +self._sets) if self._sets else NONE

    def of_part(self, part: str) -> set[ElementKey]:
        """Return the elements that wait of the sets of one part of the ruleset."""
        if not any(found.part == part for found in +self._sets):
            return set()
        return {name for name in self._waits if isinstance(name, ElementKey) and name.set.part == part}

    def everything(self) -> Dirty:
        """Return all names that wait."""
        found = Dirty()
        for name in self._waits:
            _add(name, found)
        return found

    def due(self, now: float) -> Dirty:
        """Return the names whose time has come. They go on waiting, as far as `settle` is concerned."""
        found = Dirty()
        while self._agenda and self._agenda[0][0] <= now:
            end, _, names = heapq.heappop(self._agenda)
            for name in names:
                wait = self._waits.get(name)
                if wait is not None and wait.end == end:
                    _add(name, found)
        return found

    def settle(self, tried: Dirty, failed: Dirty, now: float, took: float = 0.0) -> None:
        """Record what has been tried, what of it (or beside it) failed, and how many seconds that took.

        The next pause is at least `SHARE` times as long as that: what fails leaves most of the time to others.
        """
        if not self._waits and not failed:
            return
        bad = set(_names(failed))
        for name in _names(tried):
            if name in self._waits and name not in bad:
                self._forget(name)
        batches: dict[float, list[RefusedName]] = {}
        for name in bad:
            batches.setdefault(self._later(name, now, took * SHARE), []).append(name)
        for end, names in batches.items():
            heapq.heappush(self._agenda, (end, next(self._numbers), names))

    def among(self, slots: Iterable[ElementKey]) -> set[ElementKey]:
        """Return those of some elements that wait."""
        return {slot for slot in slots if slot in self._waits} if self._waits else set()

    def holds(self, key: FrontendKey) -> bool:
        """Whether a frontend is not all there: its server, an element of it, or what its address needs, waits."""
        place = self._places.get(key.address) if self._places else None
        if place is None:
            return False
        return bool(key in place.servers or key in place.of_frontends or place.vips or place.slots)

    def related(
        self, tried: Dirty, wanted: Container[ElementKey], leading_to: Iterable[FrontendKey] = ()
    ) -> Dirty:
        """Return names that wait while others are tried, and that `plan.dependencies` has to know of.

        These are the names of the same frontends and of those that redirects lead to, and of each address what it
        needs, with one server and one element of others: that there is any is enough. An element that is only to
        go is none of them: it may wait for a VIP itself, which must not wait for it.
        """
        found = Dirty()
        if not self._places:
            return found
        keys = {*tried.servers, *(slot.frontend for slot in tried.slots if slot.frontend), *leading_to}
        addresses = {key.address for key in keys} | {slot.address for slot in tried.slots} | tried.vips
        addresses.discard(None)
        for key in keys:
            place = self._places.get(key.address)
            if place is not None:
                found.servers.update({key} & place.servers.keys())
                found.slots.update(place.of_frontends.get(key, ()))
        for address in addresses & self._places.keys():
            place = self._places[address]
            found.servers.update(itertools.islice(place.servers, 1))
            found.vips.update(place.vips)
            found.slots.update(place.slots)
            others = (slot for slots in place.of_frontends.values() for slot in slots)
            found.slots.update(itertools.islice((slot for slot in others if _restrains(slot, wanted)), 1))
        found.slots = {slot for slot in found.slots if _restrains(slot, wanted)}
        return found.without(tried)

    def _later(self, name: RefusedName, now: float, least: float) -> float:
        """Choose the next pause of a name and return its end."""
        old = self._waits.get(name)
        if old is None:
            self._enter(name)
        seconds = min(WAITS.longest, max(WAITS.after(old.seconds if old else 0.0), least))
        end = now + seconds
        if seconds >= GRID_SECONDS:
            end = math.ceil(end / GRID_SECONDS) * GRID_SECONDS
        self._waits[name] = Wait(seconds, end)
        return end

    def _enter(self, name: RefusedName) -> None:
        place = self._places.setdefault(_address(name), Place({}, {}, {}, {}))
        if isinstance(name, FrontendKey):
            place.servers[name] = None
        elif isinstance(name, bytes):
            place.vips[name] = None
        else:
            self._sets[name.set] += 1
            key = name.frontend
            slots = place.slots if key is None else place.of_frontends.setdefault(key, {})
            slots[name] = None

    def _forget(self, name: RefusedName) -> None:
        del self._waits[name]
        address = _address(name)
        place = self._places[address]
        if isinstance(name, FrontendKey):
            del place.servers[name]
        elif isinstance(name, bytes):
            del place.vips[name]
        else:
            self._sets[name.set] -= 1
            self._forget_slot(name, place)
        if not place:
            del self._places[address]

    def _forget_slot(self, slot: ElementKey, place: Place) -> None:
        key = slot.frontend
        if key is None:
            del place.slots[slot]
            return
        slots = place.of_frontends[key]
        del slots[slot]
        if not slots:
            del place.of_frontends[key]


def _restrains(slot: ElementKey, wanted: Container[ElementKey]) -> bool:
    """Whether something would answer with too little, or to too many, without this change of an element."""
    return slot in wanted or slot.restricted_frontend in wanted


def _names(touched: Dirty) -> Iterator[RefusedName]:
    return itertools.chain(touched.servers, touched.vips, touched.slots)


def _add(name: RefusedName, found: Dirty) -> None:
    if isinstance(name, FrontendKey):
        found.servers.add(name)
    elif isinstance(name, bytes):
        found.vips.add(name)
    else:
        found.slots.add(name)


def _address(name: RefusedName) -> bytes | None:
    return name if isinstance(name, bytes) else name.address
