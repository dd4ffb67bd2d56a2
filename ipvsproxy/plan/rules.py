"""What a frontend and the node put into the sets and maps of the ruleset.

The rules themselves are static (nft/rulesets/ipvsproxy.nft) and are explained there; the sets are in
`ruleset.schema`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, family
from ipvsproxy.plan.state import Frontend
from ipvsproxy.ruleset.elements import BY_GROUP, Element, ElementKey, Value, view_slot
from ipvsproxy.ruleset.schema import (
    ALLOWED,
    BY_AUDIENCE,
    FRONTENDS,
    HAIRPIN,
    HEALTH_CHECK_PORTS,
    LINKS,
    LOCAL,
    MASQUERADE,
    POD_CIDRS,
    POD_INTERFACES,
    QUIET,
    RANGED,
    SENDERS,
    SERVED,
    VIEW_SERVERS,
    VIPS,
)


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
    own: dict[ElementKey, Value] = {ElementKey(FRONTENDS[number], key): frontend.verdict}
    if frontend.masquerade:
        own[ElementKey(MASQUERADE[number], key)] = frontend.masquerade
    if frontend.ranges:
        own[ElementKey(RANGED[number], key)] = ""
        for cidr in frontend.ranges:
            own[ElementKey(ALLOWED[number], key, cidr)] = ""
    shared = [ElementKey(SERVED[number], address)]
    if frontend.bind:
        shared.append(ElementKey(VIPS[number], address))
    for view in frontend.views:
        own[view_slot(view.audience, key)] = view.server
        shared.append(ElementKey(VIEW_SERVERS[number], view.server))
        if view.audience != LOCAL:
            own[ElementKey(BY_AUDIENCE[number], key)] = BY_GROUP
    if frontend.quiet:
        shared.append(ElementKey(QUIET, address))
    shared += [ElementKey(HAIRPIN[number], pod, pod) for pod in frontend.hairpins]
    if frontend.health_check_port:
        shared.append(ElementKey(HEALTH_CHECK_PORTS, None, frontend.health_check_port))
    return FrontendElements(own, shared)


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
