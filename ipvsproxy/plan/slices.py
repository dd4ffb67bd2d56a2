"""Cutting steps into slices that take a bounded time, so that events are heard and others served in between.

Deterministic: no I/O, no clock. IPVS looks through the destinations of a virtual server for each message about one
of them (ip_vs_lookup_dest), so a change of a whole server costs the square of its size. Costs are counted in
units, and a slice has room for so many of them: servers with little to do come first, then a share of a large one.
What is left stays to be compared with the shadow again, and takes its turn.

The order of `plan.diff` holds for each object. All elements that come first come with the first slice. A VIP waits
for the servers of its address that are new and have not been begun; a server with its first destinations may
answer. A redirect waits until the server it leads to has all of its destinations, and the server it led to stays
as it is until then. A server loses destinations when it has all new ones; elements that go last wait for the
servers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain

import msgspec

from ipvsproxy.plan.dependencies import ready_redirects, replaced_vips, unneeded_elements
from ipvsproxy.plan.diff import SERVER_VERBS, IpvsStep, Steps, Verb
from ipvsproxy.plan.state import Destination, Dirty, FrontendKey, KernelState

LOOKED_THROUGH = 1000
"""So many destinations are looked through in about the time that a message takes..."""
OUT_OF_CACHE = 4000
"""... and of a server with many more, ever fewer: their memory is in no cache of the CPU. Measured: 4 us for a
message to a server of 1,000, 30 us at 10,000, 130 us at 30,000, 700 us at 40,000, 2.5 ms at 80,000."""
FEW = 100
"""Destinations of a server that cost hardly more than none to look through."""
UNCUT = 1000.0
"""Units: changes that cost no more are never cut."""
SECONDS = 0.2
"""What a slice should take."""
FEWEST, FIRST, MOST = 500.0, 1000.0, 200_000.0
"""Units: the first slice is small, since it is not known yet how long a unit takes. That depends on the scheduler
(mh computes its whole table again for each destination), on the memory and on the load of the machine: from 2 us
to 3 ms have been seen."""


class Room:
    """How many units fit into a slice, judged by the time that the last full one took.

    It shrinks to what fits at once, and at most doubles from one slice to the next. A slice may take as long as it
    took to find out what there is to do: that grows with the server, and on a busy machine, too.
    """

    def __init__(self) -> None:
        self.units = FIRST
        self.uncut = UNCUT

    def took(self, seconds: float, prepared: float = 0.0) -> None:
        """Record how long a full slice took, and how long it had to be prepared."""
        factor = min(2.0, max(SECONDS, prepared) / max(seconds, 0.001))
        self.units = min(MOST, max(FEWEST, self.units * factor))


def unit_cost(destinations: int) -> float:
    """Return the units of a message about one of so many destinations of a server."""
    return 1.0 + destinations / LOOKED_THROUGH + (destinations / OUT_OF_CACHE) ** 2


Refused = Mapping[FrontendKey, AbstractSet[Destination]]


def cut(
    steps: Steps,
    shadow: KernelState,
    room: Room,
    turns: Iterable[FrontendKey] = (),
    refused: Refused | None = None,
    *,
    is_start: bool = False,
) -> Dirty:
    """Take out of `steps` what there is no room for, and return the names of what is left.

    The first of `turns` that has something to do gets up to half of the room, whatever others want. Destinations
    that the kernel has `refused` come last on their server. At the start each server has the room for itself:
    no Service is served yet that would have to wait.
    """
    if _estimate(steps, shadow) <= room.uncut:
        return Dirty()
    cutter, units = _Cutter(steps, shadow, refused or {}), math.inf if is_start else room.units
    if cutter.total <= units and cutter.largest <= room.units:
        return Dirty()
    cutter.grant(units, room.units, turns)
    left = Dirty()
    steps.added = list(cutter.fitting(steps.added, left))
    steps.removed = list(cutter.fitting(steps.removed, left))
    _postpone(steps, shadow, cutter.unbegun, left)
    return left


def _estimate(steps: Steps, shadow: KernelState) -> float:
    """Return about what everything costs: too little for new servers, which is little where there is little."""
    servers, units = shadow.servers, 0.0
    for step in chain(steps.added, steps.removed):
        state = servers.get(step.key)
        present = len(state.destinations) if state else 0
        units += len(step.destinations) * (unit_cost(present) if present > FEW else 1.0)
    return units


class _Cutter:
    """The costs of the steps of each server, and what each may take."""

    def __init__(self, steps: Steps, shadow: KernelState, refused: Refused) -> None:
        self._refused = refused
        self.unbegun: set[FrontendKey] = set()
        self._units: dict[FrontendKey, float] = {}
        self._costs: dict[FrontendKey, float] = {}
        self._grants: dict[FrontendKey, float] = {}
        for step in chain(steps.added, steps.removed):
            key, state = step.key, shadow.servers.get(step.key)
            size = len(step.destinations)
            present = len(state.destinations) if state else 0
            self._units[key] = max(self._units.get(key, 0.0), unit_cost(max(present, size)))
            self._costs[key] = self._costs.get(key, 0.0) + size * self._units[key] + (step.verb in SERVER_VERBS)

    @property
    def total(self) -> float:
        """The cost of everything."""
        return sum(self._costs.values())

    @property
    def largest(self) -> float:
        """The cost of the server with most to do."""
        return max(self._costs.values())

    def grant(self, room: float, most: float, turns: Iterable[FrontendKey]) -> None:
        """Share out the room; the first one gets enough for one message at least."""
        costs, grants = self._costs, self._grants
        order = sorted(costs, key=lambda key: (costs[key], key))
        turn = next((key for key in turns if key in costs), None)
        first = turn or order[0]
        room -= grants.setdefault(first, min(costs[first], max(1.0 + self._units[first], min(most, room / 2))))
        for key in order:
            if room < 1:
                return
            if key != first:
                room -= grants.setdefault(key, min(costs[key], most, room))
        grants[first] = min(costs[first], max(grants[first], min(most, grants[first] + room)))

    def fitting(self, steps: Iterable[IpvsStep], left: Dirty) -> Iterator[IpvsStep]:
        """Yield the steps, or the beginnings of steps, that a server may take; the others are left."""
        for step in map(self._in_order, steps):
            whole = len(step.destinations)
            count = whole if step.key in left.servers else self._count(step)
            if step.key in left.servers or count < 0:
                left.servers.add(step.key)
                self._skipped(step)
            elif count == whole:
                yield step
            else:
                left.servers.add(step.key)
                yield msgspec.structs.replace(step, destinations=step.destinations[:count])

    def _in_order(self, step: IpvsStep) -> IpvsStep:
        last = self._refused.get(step.key)
        if not last:
            return step
        return msgspec.structs.replace(step, destinations=tuple(sorted(step.destinations, key=last.__contains__)))

    def _count(self, step: IpvsStep) -> int:
        """Take the cost of a step, and return how many of its destinations that is for; negative for nothing."""
        key, whole = step.key, len(step.destinations)
        grant = self._grants.get(key, 0.0) - (step.verb in SERVER_VERBS)
        count = min(whole, int(grant / self._units[key] + 1e-9)) if grant >= 0 else -1
        if whole and count < 1:
            return -1
        self._grants[key] = grant - max(0, count) * self._units[key]
        return count

    def _skipped(self, step: IpvsStep) -> None:
        if step.verb is Verb.NEW_SERVICE:
            self.unbegun.add(step.key)


def _postpone(steps: Steps, shadow: KernelState, unbegun: Iterable[FrontendKey], left: Dirty) -> None:
    """Take out of `steps` what must not come before what is left, and add it to `left`."""
    bare = {key.address for key in unbegun}
    left.vips |= {vip.address for vip in steps.bound if vip.address in bare}
    steps.bound = [vip for vip in steps.bound if vip.address not in bare]
    steps.unbound = replaced_vips(steps.unbound, left)
    steps.redirects = ready_redirects(steps.redirects, left)
    still = {shadow.elements.get(slot) for slot in left.slots}
    left.servers |= {step.key for step in steps.removed if step.key in still}
    steps.removed = [step for step in steps.removed if step.key not in still]
    steps.elements_after = unneeded_elements(steps.elements_after, left)
