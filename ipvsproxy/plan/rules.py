"""What a frontend and the node put into the sets and maps of the ruleset.

The rules themselves are static (nft/ipvsproxy.nft) and are explained there; this module only words the
elements. It is the one place, beside that file, that knows the names of its sets.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, family, format_ip, parse_ip
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import ElementKey, Frontend, FrontendKey

PROTOCOL_NAMES = {protocol.value: protocol.name.lower() for protocol in Protocol}
FRONTENDS, MASQUERADE, INSIDE, SERVERS, RANGED, ALLOWED, VIPS, SERVED, HAIRPIN = (
    {number: f"{kind}{number}" for number in (4, 6)}
    for kind in (
        "frontends", "masquerade", "inside", "inside_servers", "ranged", "allowed", "vips", "served", "hairpin"
    )
)  # fmt: skip
"""Names of sets and maps, by family."""

QUIET, LINKS, SENDERS = "quiet4", "links", "senders4"
PACKET_FAMILIES = {ALLOWED[4]: "ip", ALLOWED[6]: "ip6"}
"""What nft calls the headers that source ranges are about, by set."""
SHUT_OUT, SHUT_OUT_RULES = "shut_out", ("drop",)
"""The chain for those that no source range lets in, and what stands in it."""
ARP_SETS = (QUIET, LINKS, SENDERS)
"""The sets of the table `arp ipvsproxy`."""

NEEDS = {
    **dict.fromkeys((*RANGED.values(), *ALLOWED.values()), "source_ranges"),
    **dict.fromkeys(SERVERS.values(), "inside_views"),
}
"""The part of the ruleset that the elements of a set are for (`nft.PARTS`); those of all others need none."""

Element = tuple[ElementKey, str]


class FrontendElements(NamedTuple):
    """What one frontend needs in the ruleset.

    `own` belong to it alone, with their values ('' in plain sets); `shared` are elements of plain sets that other
    frontends may need as well.
    """

    own: dict[ElementKey, str]
    shared: list[ElementKey]


NO_ELEMENTS = FrontendElements({}, [])


def _text(key: FrontendKey) -> str:
    return f"{format_ip(key.address)} . {PROTOCOL_NAMES[key.protocol]} . {key.port}"


def elements(frontend: Frontend) -> FrontendElements:
    """Return the elements of a frontend. The key of most sets is `address . protocol . port`."""
    address = frontend.key.address
    number, text, key = family(address), format_ip(address), _text(frontend.key)
    own: dict[ElementKey, str] = {ElementKey(FRONTENDS[number], key): frontend.verdict}
    if frontend.masquerade:
        own[ElementKey(MASQUERADE[number], key)] = frontend.masquerade
    if frontend.ranges:
        own[ElementKey(RANGED[number], key)] = ""
        for cidr in frontend.ranges:
            own[ElementKey(ALLOWED[number], f"{key} . {_range_text(cidr)}")] = ""
    shared = [ElementKey(SERVED[number], text)]
    if frontend.bind:
        shared.append(ElementKey(VIPS[number], text))
    if frontend.inside is not None:
        server = FrontendKey(frontend.inside.address, frontend.key.protocol, frontend.inside.port)
        own[ElementKey(INSIDE[number], key)] = f"{format_ip(server.address)} . {server.port}"
        shared.append(ElementKey(SERVERS[number], _text(server)))
    if frontend.quiet:
        shared.append(ElementKey(QUIET, text))
    for pod in frontend.hairpins:
        text = format_ip(pod)
        shared.append(ElementKey(HAIRPIN[number], f"{text} . {text}"))
    if frontend.health_check_port:
        shared.append(ElementKey("health_check_ports", str(frontend.health_check_port)))
    return FrontendElements(own, shared)


def needed_parts(slots: Iterable[ElementKey]) -> frozenset[str]:
    """Return the parts of the ruleset that some elements need."""
    return frozenset(NEEDS[name] for name in {slot.set for slot in slots} if name in NEEDS)


def guard(address: bytes) -> ElementKey:
    """Return the element that has everything refused which is sent to an address and has no frontend."""
    return ElementKey(VIPS[family(address)], format_ip(address))


def guards(address: bytes) -> tuple[ElementKey, ElementKey]:
    """Return all elements of a VIP that has no frontend."""
    return guard(address), ElementKey(SERVED[family(address)], format_ip(address))


def restricted_frontend(slot: ElementKey) -> ElementKey | None:
    """Return the frontend that an element of the source ranges restricts, None for other elements."""
    kind, number = slot.set[:-1], slot.set[-1]
    if kind not in ("ranged", "allowed"):
        return None
    return ElementKey(f"frontends{number}", " . ".join(slot.key.split(" . ")[:3]))


def admission(slot: ElementKey) -> str | None:
    """Return a rule that lets in what an element of the source ranges lets in, None for other elements."""
    family = PACKET_FAMILIES.get(slot.set)
    if family is None:
        return None
    address, protocol, port, source = slot.key.split(" . ")
    frontend = f"ct original {family} daddr {address} meta l4proto {protocol} ct original proto-dst {port}"
    return f"{frontend} {family} saddr {source} return"


def redirects(slot: ElementKey) -> tuple[ElementKey, ElementKey] | None:
    """Return the two elements that lead new connections to a server, if this is one of them.

    They are the verdict of a frontend and the way of its inside view.
    """
    kind, number = slot.set[:-1], slot.set[-1]
    if kind not in ("frontends", "inside"):
        return None
    return ElementKey(f"frontends{number}", slot.key), ElementKey(f"inside{number}", slot.key)


def frontend_of(slot: ElementKey) -> FrontendKey | None:
    """Return the frontend that an element is about, None for those of nodes, VIPs and endpoints."""
    parts = slot.key.split(" . ")
    if len(parts) < 3:
        return None
    return FrontendKey(parse_ip(parts[0]), Protocol[parts[1].upper()], int(parts[2]))


def detector_elements(cidrs: tuple[Cidr, ...], interfaces: tuple[str, ...]) -> Iterator[Element]:
    """Yield what tells local pods from others (contract 1.12): source ranges, names of interfaces."""
    for cidr in cidrs:
        yield ElementKey(f"pod_cidrs{family(cidr.network)}", str(cidr)), ""
    for name in interfaces:
        yield ElementKey("pod_interfaces", f'"{name}"'), ""


def sender_elements(senders: Mapping[str, bytes]) -> Iterator[Element]:
    """Yield the links that keep quiet about VIPs, and the address each of them asks with."""
    for name, address in senders.items():
        yield ElementKey(LINKS, f'"{name}"'), ""
        yield ElementKey(SENDERS, f'"{name}"'), format_ip(address)


def _range_text(cidr: Cidr) -> str:
    """Single addresses go without a prefix, as nft prints them."""
    return format_ip(cidr.network) if cidr.prefix == len(cidr.network) * 8 else str(cidr)
