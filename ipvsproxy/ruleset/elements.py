"""Elements of our sets and maps as typed values, each with its owner: a frontend, an address, or the node.

Text and bytes are made from them in `ruleset.codec`, on the way out.
"""

from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from enum import StrEnum
from functools import cache
from typing import NamedTuple

import msgspec

from ipvsproxy.base.address import Cidr, family
from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.ruleset.schema import (
    ADMITTED,
    ALLOWED,
    AUDIENCES,
    BY_AUDIENCE,
    ENDPOINTS,
    FRONTENDS,
    GROUP_VIEWS,
    INTERNAL_ENDPOINTS,
    INTERNAL_VIEWS,
    LOCAL,
    PING_ALLOWED,
    PING_RANGED,
    PORT_RANGES,
    RANGE_MASQUERADE,
    RANGED,
    RANGES_BY_IPVS,
    RESTRICTED,
    SERVED,
    SHORT_FRONTENDS,
    SHORT_VIEWS,
    SOURCE_RANGES,
    VIPS,
    SetSchema,
)


class PacketVerdict(StrEnum):
    """What happens to a new connection to a frontend, as a verdict of the ruleset."""

    ACCEPT = "goto own"
    REFUSE = "goto refuse"
    DROP = "drop"
    INSIDE_ONLY = "goto inside_only"


SHORT_PATH_CHAIN, SHORT_VIEW_CHAIN = "goto endpoints_", "goto internal_endpoints_"
"""How the verdicts of frontends on the short path, and of internal views, begin; a number of endpoints follows."""


@cache
def short_path(endpoints: int) -> str:
    """Return the verdict for new connections to a frontend on the short path."""
    return f"{SHORT_PATH_CHAIN}{endpoints}"


def short_view(endpoints: int) -> str:
    """Return the verdict for new connections of local pods and the node that have endpoints of their own."""
    return f"{SHORT_VIEW_CHAIN}{endpoints}"


def is_short(verdict: "Value | None") -> bool:
    """Whether new connections with a verdict take the short path."""
    return isinstance(verdict, str) and verdict.startswith(SHORT_PATH_CHAIN)


def is_by_rules(verdict: "Value | None") -> bool:
    """Whether a verdict leads to endpoints that the ruleset has, by the short path or its internal view."""
    return isinstance(verdict, str) and verdict.startswith((SHORT_PATH_CHAIN, SHORT_VIEW_CHAIN))


class Masquerade(StrEnum):
    """Which new connections to a frontend leave with a node address, as a verdict of the ruleset."""

    NEVER = ""
    UNLESS_LOCAL_POD = "goto masquerade_unless_local_pod"
    ALWAYS = "goto masquerade_always"


BY_GROUP = "goto group_view"
"""The verdict of a frontend that has views for groups of sources."""
ADMIT_OR_REFUSE, ADMIT_OR_DROP = "goto admit_or_refuse", "goto admit_or_drop"
"""The verdict of a frontend to which only some groups of local pods may connect, by what becomes of others."""


class Interval(NamedTuple):
    """Addresses from `first` to `last` that are no CIDR: ours never are, what others have written may be."""

    first: bytes
    last: bytes


class PortRange(NamedTuple):
    """Ports from `first` to `last`, in place of the port of a frontend, which is 0."""

    first: int
    last: int


ElementOwner = FrontendKey | bytes | None
"""A frontend, an address (packed), or None for the node itself."""
Rest = bytes | Cidr | Interval | PortRange | str | int | None
"""What is in a key beside the owner: an address, a range, the name of a link, ports, a group, or nothing."""
Value = str | FrontendKey | bytes | int
"""The value of an element: a verdict, a frontend, an address, the number of a group; '' in a plain set."""


class ElementKey(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """One element: the set or map that it is in, its owner, and the rest of its key."""

    set: SetSchema
    owner: ElementOwner
    rest: Rest = None

    @property
    def address(self) -> bytes | None:
        """The address that the element is about, None for elements of the node."""
        owner = self.owner
        return owner.address if isinstance(owner, FrontendKey) else owner

    @property
    def frontend(self) -> FrontendKey | None:
        """The frontend that the element is about, None for elements of addresses and of the node."""
        owner = self.owner
        return owner if isinstance(owner, FrontendKey) else None

    @property
    def is_member(self) -> bool:
        """Whether this names the group that a source address is in."""
        return self.set in AUDIENCES.values()

    @property
    def restricted_frontend(self) -> "ElementKey | None":
        """The verdict of the frontend to which an element lets only some clients connect, None for others.

        For pings of an address it is what shows that they are restricted.
        """
        number = self.set.family
        if number and self.set in (PORT_RANGES[number], RANGE_MASQUERADE[number]):
            return ElementKey(SERVED[number], self.address)  # old and new ranges may overlap
        if number and self.set is PING_ALLOWED[number]:
            return ElementKey(PING_RANGED[number], self.owner)
        if number and self.set in RESTRICTING[number]:
            return ElementKey(FRONTENDS[number], self.owner)
        return None

    @property
    def short_view(self) -> "ElementKey | None":
        """The view on the short path which this is, or in whose place it comes; None for other elements."""
        number = self.set.family
        if number and self.set in (SHORT_VIEWS[number], INTERNAL_VIEWS[number]):
            return ElementKey(SHORT_VIEWS[number], self.owner)
        return None

    @property
    def chosen_by(self) -> "ElementKey | None":
        """The verdict that leads to this endpoint of a frontend on the short path, None for other elements."""
        number = self.set.family
        if number and self.set is ENDPOINTS[number]:
            return ElementKey(FRONTENDS[number], self.owner)
        if number and self.set is INTERNAL_ENDPOINTS[number]:
            return ElementKey(SHORT_VIEWS[number], self.owner)
        return None

    @property
    def redirects(self) -> tuple["ElementKey", ...]:
        """The verdict of a frontend and the view of it that changes together with it, if this is one of them.

        The view for a group changes by itself: all others are still led to where the verdict lets them in.
        """
        number = self.set.family
        if not number:
            return ()
        verdict = ElementKey(FRONTENDS[number], self.owner)
        if self.set is GROUP_VIEWS[number]:
            return verdict, self
        internal = ElementKey(INTERNAL_VIEWS[number], self.owner)
        kinds = (verdict.set, internal.set, SHORT_VIEWS[number])
        return (verdict, internal) if self.set in kinds else ()


RESTRICTING = {
    number: {kind[number] for kind in (RANGED, ALLOWED, BY_AUDIENCE, RESTRICTED, ADMITTED)} for number in (4, 6)
}
"""The sets that let only some clients connect to a frontend, by family."""
Element = tuple[ElementKey, Value]


BySet = dict[SetSchema, list[Element]]


def by_set(elements: Iterable[Element]) -> BySet:
    """Return elements by the set that they are in: what is the same for all of a set is then looked at once."""
    found: BySet = defaultdict(list)
    for element in elements:
        found[element[0].set].append(element)
    return found


def needed_parts(
    slots: Collection[ElementKey], there: Container[ElementKey] = (), servers: Container[ElementOwner] = ()
) -> frozenset[str]:
    """Return the parts of the ruleset that some elements need, given other elements and virtual servers."""
    parts = {found.part for found in {slot.set for slot in slots} if found.part}
    if SOURCE_RANGES in parts:
        is_by_ipvs = (owner in servers or not by_rules for owner, by_rules in _ranged(slots, there))
        parts.update([RANGES_BY_IPVS] if any(is_by_ipvs) else ())
    return frozenset(parts)


def _ranged(slots: Collection[ElementKey], there: Container[ElementKey]) -> Iterator[tuple[ElementOwner, bool]]:
    """Yield frontends with source ranges, and whether they are on the short path."""
    short = {slot.owner for slot in slots if slot.set in SHORT_FRONTENDS.values()}
    for number, kind in RANGED.items():
        for owner in [slot.owner for slot in slots if slot.set is kind]:
            yield owner, owner in short or ElementKey(SHORT_FRONTENDS[number], owner) in there


def ranged(servers: Iterable[FrontendKey], there: Container[ElementKey]) -> Iterator[ElementKey]:
    """Yield what shows that a virtual server is a frontend with source ranges, of those that have some."""
    for key in servers:
        slot = ElementKey(RANGED[family(key.address)], key)
        if slot in there:
            yield slot


def view_slot(audience: int, frontend: FrontendKey) -> ElementKey:
    """Return the element that leads an audience from a frontend to the virtual server of a view."""
    number = family(frontend.address)
    if audience == LOCAL:
        return ElementKey(INTERNAL_VIEWS[number], frontend)
    return ElementKey(GROUP_VIEWS[number], frontend, audience)


def guard(address: bytes) -> ElementKey:
    """Return the element that has everything refused which is sent to an address and has no frontend."""
    return ElementKey(VIPS[family(address)], address)


def guards(address: bytes) -> tuple[ElementKey, ElementKey]:
    """Return all elements of a VIP that has no frontend."""
    return guard(address), ElementKey(SERVED[family(address)], address)
