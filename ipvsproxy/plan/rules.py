"""What a frontend and the node put into the sets and maps of the ruleset.

The rules themselves are static (nft/rulesets/ipvsproxy.nft) and are explained there; the sets are in
`ruleset.schema`.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, family
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.ping import ping_elements
from ipvsproxy.plan.places import places
from ipvsproxy.plan.state import IPVS_PATH, SHORT_PATH, Destination, Frontend, FrontendKey, GroupAdmission
from ipvsproxy.ruleset.elements import (
    ADMIT_OR_DROP,
    ADMIT_OR_REFUSE,
    BY_GROUP,
    Element,
    ElementKey,
    PacketVerdict,
    Value,
    short_path,
    short_view,
    view_slot,
)
from ipvsproxy.ruleset.schema import (
    ADMITTED,
    ALLOWED,
    AUDIENCES,
    BY_AUDIENCE,
    DATAGRAMS,
    DIRECT,
    ENDPOINTS,
    FRONTENDS,
    HAIRPIN,
    HEALTH_CHECK_PORTS,
    INTERNAL_ENDPOINTS,
    LINKS,
    LOCAL,
    MASQUERADE,
    MOST_ENDPOINTS,
    POD_CIDRS,
    POD_INTERFACES,
    PORT_RANGES,
    QUIET,
    RANGE_MASQUERADE,
    RANGED,
    RANGED_VIPS,
    REFUSALS,
    RESTRICTED,
    SENDERS,
    SERVED,
    SHORT_ENDPOINTS,
    SHORT_FRONTENDS,
    SHORT_VIEWS,
    VIEW_FRONTENDS,
    VIEWED,
    VIPS,
    SetSchema,
)

ACCEPT, UDP = PacketVerdict.ACCEPT, Protocol.UDP
EndpointKeys = Mapping[Destination, FrontendKey]
"""Endpoints as parts of keys and values."""


class FrontendElements(NamedTuple):
    """What one frontend needs in the ruleset.

    `own` belong to it alone, with their values ('' in plain sets); `shared` are elements of plain sets that other
    frontends may need as well.
    """

    own: dict[ElementKey, Value]
    shared: list[ElementKey]


NO_ELEMENTS = FrontendElements({}, [])


def elements(frontend: Frontend) -> FrontendElements:
    """Return the elements of a frontend."""
    key = frontend.key
    address = key.address
    number = family(address)
    own, shared = _decision(number, frontend)
    if frontend.masquerade and not frontend.port_ranges:
        own[ElementKey(MASQUERADE[number], key)] = frontend.masquerade
    if frontend.direct_return:
        own[ElementKey(DIRECT[number], key)] = ""
    shared.append(ElementKey(SERVED[number], address))
    if key.protocol == UDP and number == 4 and frontend.path is not SHORT_PATH:
        shared.append(ElementKey(DATAGRAMS, address))
    if frontend.ranges:
        own.update(_source_ranges(number, frontend))
        shared.append(ElementKey(RANGED_VIPS[number], address))
    if frontend.bind:
        shared.append(ElementKey(VIPS[number], address))
    if frontend.views or frontend.internal:
        own.update(_views(number, frontend))
        shared += _view_marks(number, frontend)
    if frontend.admission is not None:
        own.update(_admission_elements(number, key, frontend.admission))
    if frontend.quiet:
        shared.append(ElementKey(QUIET, address))
    shared += [ElementKey(HAIRPIN[number], pod, pod) for pod in frontend.hairpins]
    shared += ping_elements(frontend) if frontend.ping else ()
    if frontend.health_check_port:
        shared.append(ElementKey(HEALTH_CHECK_PORTS, None, frontend.health_check_port))
    return FrontendElements(own, shared)


def changing(old: Frontend | None, new: Frontend | None) -> tuple[FrontendElements, FrontendElements]:
    """Return the elements of a frontend as it was, and as it is.

    Where only its endpoints have changed, as in most changes, elements that it keeps are in neither.
    """
    if old is None or new is None or not new.has_other_rules_of(old):
        return elements(old) if old else NO_ELEMENTS, elements(new) if new else NO_ELEMENTS
    before, after = _short_places(old), _short_places(new)
    return _of_endpoints(old, before, new, after), _of_endpoints(new, after, old, before)


def _short_places(frontend: Frontend) -> Sequence[Destination]:
    return _places(frontend) if frontend.path is SHORT_PATH and frontend.verdict is ACCEPT else ()


def _of_endpoints(
    frontend: Frontend, places: Sequence[Destination], other: Frontend, others: Sequence[Destination]
) -> FrontendElements:
    """Return the elements of endpoints of a frontend which another version of it does not have."""
    key = frontend.key
    number, protocol = family(key.address), key.protocol
    own: dict[ElementKey, Value] = {}
    if len(places) != len(others):
        own[ElementKey(FRONTENDS[number], key)] = short_path(len(places))
    size = len(others)
    for place, found in enumerate(places):
        if place >= size or others[place] != found:
            own[ElementKey(ENDPOINTS[number], key, place)] = FrontendKey(found.address, protocol, found.port)
    known = frozenset(other.hairpins)
    shared = [ElementKey(HAIRPIN[number], pod, pod) for pod in frontend.hairpins if pod not in known]
    if frontend.path is SHORT_PATH:
        kept = other.endpoints
        shared += [
            ElementKey(SHORT_ENDPOINTS[number], FrontendKey(d.address, protocol, d.port))
            for d in frontend.endpoints
            if d not in kept
        ]
    return FrontendElements(own, shared)


def _views(number: int, frontend: Frontend) -> Iterator[Element]:
    """Yield what leads some clients to the virtual servers of their views."""
    for view in frontend.views:
        yield view_slot(view.audience, frontend.key), view.server
        if view.audience != LOCAL:
            yield ElementKey(BY_AUDIENCE[number], frontend.key), BY_GROUP


def _view_marks(number: int, frontend: Frontend) -> Iterator[ElementKey]:
    """Yield from where to where views lead, and the address at which internal views are asked for."""
    if frontend.views:
        yield ElementKey(VIEW_FRONTENDS[number], frontend.key)
    for view in frontend.views:
        yield ElementKey(VIEW_FRONTENDS[number], view.server)
    if frontend.internal or frontend.server_for(LOCAL):
        yield ElementKey(VIEWED[number], frontend.key.address)


def _source_ranges(number: int, frontend: Frontend) -> Iterator[Element]:
    """Yield what lets only clients in source ranges connect."""
    yield ElementKey(RANGED[number], frontend.key), ""
    for cidr in frontend.ranges:
        yield ElementKey(ALLOWED[number], frontend.key, cidr), ""


def _ranges(number: int, frontend: Frontend) -> dict[ElementKey, Value]:
    """Return the verdict, and who is masqueraded, for each range of ports of a frontend."""
    key, ranges = frontend.key, frontend.port_ranges
    kind = PORT_RANGES[number]
    own: dict[ElementKey, Value] = {ElementKey(kind, key, ports): frontend.verdict for ports in ranges}
    if frontend.masquerade:
        own |= {ElementKey(RANGE_MASQUERADE[number], key, ports): frontend.masquerade for ports in ranges}
    return own


def _decision(number: int, frontend: Frontend) -> tuple[dict[ElementKey, Value], list[ElementKey]]:
    """Return the verdict of a frontend, and its endpoints where the ruleset chooses one, by audience."""
    key = frontend.key
    if frontend.port_ranges:
        return _ranges(number, frontend), []
    if frontend.path is not SHORT_PATH:
        return {ElementKey(FRONTENDS[number], key): frontend.verdict}, []
    ends, kind = _ends(frontend), SHORT_ENDPOINTS[number]
    if frontend.verdict is ACCEPT:
        own = _balanced(key, _places(frontend), ends)
    else:
        own = {ElementKey(FRONTENDS[number], key): frontend.verdict}
    own[ElementKey(SHORT_FRONTENDS[number], key)] = ""
    if frontend.internal:
        own |= _internal_view(key, places(frontend.internal, frontend.server.scheduler), ends)
    return own, [ElementKey(kind, to) for to in ends.values()]


def may_be_balanced_by_rules(frontend: Frontend) -> bool:
    """Whether a frontend that has its own server could do without for a moment."""
    return frontend.verdict is ACCEPT and not frontend.port_ranges and may_be_view_by_rules(frontend)


def may_be_view_by_rules(frontend: Frontend) -> bool:
    """Whether views that lead to the server of a frontend could do without for a moment."""
    is_small = frontend.path is IPVS_PATH and len(frontend.destinations) <= MOST_ENDPOINTS
    return is_small and bool(places(frontend.destinations, frontend.server.scheduler))


def served_by_rules(
    frontends: Mapping[FrontendKey, Frontend], servers: Container[FrontendKey], answering: Container[bytes]
) -> dict[ElementKey, Value]:
    """Return elements that serve the frontends of some addresses by rules, until they have their servers."""
    found = dict[ElementKey, Value]()
    for key, frontend in frontends.items():
        if key.address not in answering:
            continue
        if key not in servers and may_be_balanced_by_rules(frontend):
            found.update(balanced_by_rules(frontend))
        view = frontends.get(frontend.server_for(LOCAL) or key)
        if frontend.views and view and view.key not in servers and may_be_view_by_rules(view):
            found.update(internal_view_by_rules(key, view))
    return found


def balanced_by_rules(frontend: Frontend) -> dict[ElementKey, Value]:
    """Return the verdict and the endpoints of a frontend as on the short path, by place."""
    return _balanced(frontend.key, _places(frontend), _ends(frontend))


def internal_view_by_rules(key: FrontendKey, view: Frontend) -> dict[ElementKey, Value]:
    """Return what leads local pods and the node from a frontend to the endpoints of another, by place."""
    return _internal_view(key, _places(view), _ends(view))


def _places(frontend: Frontend) -> Sequence[Destination]:
    return places(frontend.destinations, frontend.server.scheduler)


def _ends(frontend: Frontend) -> EndpointKeys:
    """Return the endpoints of a frontend, each as one value that several elements have."""
    protocol = frontend.key.protocol
    return {d: FrontendKey(d.address, protocol, d.port) for d in frontend.endpoints}


def _balanced(key: FrontendKey, chosen: Sequence[Destination], ends: EndpointKeys) -> dict[ElementKey, Value]:
    number = family(key.address)
    own: dict[ElementKey, Value] = {ElementKey(FRONTENDS[number], key): short_path(len(chosen))}
    return own | _numbered(ENDPOINTS[number], key, chosen, ends)


def _internal_view(key: FrontendKey, chosen: Sequence[Destination], ends: EndpointKeys) -> dict[ElementKey, Value]:
    if not chosen:
        return {}
    number = family(key.address)
    own: dict[ElementKey, Value] = {ElementKey(SHORT_VIEWS[number], key): short_view(len(chosen))}
    return own | _numbered(INTERNAL_ENDPOINTS[number], key, chosen, ends)


def _numbered(
    kind: SetSchema, key: FrontendKey, chosen: Sequence[Destination], ends: EndpointKeys
) -> dict[ElementKey, Value]:
    return {ElementKey(kind, key, place): ends[destination] for place, destination in enumerate(chosen)}


def _admission_elements(number: int, key: FrontendKey, admission: GroupAdmission) -> Iterator[Element]:
    """Yield what lets only some groups of local pods connect; its views for groups do not count then."""
    yield ElementKey(BY_AUDIENCE[number], key), ADMIT_OR_DROP if admission.drops else ADMIT_OR_REFUSE
    yield ElementKey(RESTRICTED[number], key), ""
    for group in admission.groups:
        yield ElementKey(ADMITTED[number], key, group), ""


def audience_element(address: bytes) -> ElementKey:
    """Return the element that has the group of a source address."""
    return ElementKey(AUDIENCES[family(address)], address)


def refusals_element(group: int) -> ElementKey:
    """Return the element that counts the connections of a group that were refused."""
    return ElementKey(REFUSALS, None, group)


def detector_elements(cidrs: tuple[Cidr, ...], interfaces: tuple[str, ...]) -> Iterator[Element]:
    """Yield what tells local pods from others (contract 1.12): source ranges, names of interfaces."""
    for cidr in cidrs:
        yield ElementKey(POD_CIDRS[family(cidr.network)], None, cidr), ""
    for name in interfaces:
        yield ElementKey(POD_INTERFACES, None, name), ""


def sender_elements(senders: Mapping[str, bytes]) -> Iterator[Element]:
    """Yield the links that suppress ARP for VIPs, and the address each of them asks with."""
    for name, address in senders.items():
        yield ElementKey(LINKS, None, name), ""
        yield ElementKey(SENDERS, None, name), address
