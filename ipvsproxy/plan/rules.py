"""What a frontend and the node put into the sets and maps of the ruleset.

The rules themselves are static (nft/ipvsproxy.nft) and are explained there; this module only words the
elements. It is the one place, beside that file, that knows the names of its sets.
"""

from collections.abc import Iterator

from ipvsproxy.address import Cidr, family, format_ip
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Frontend, FrontendKey, Slot

PROTOCOL_NAMES = {protocol.value: protocol.name.lower() for protocol in Protocol}
FRONTENDS, MASQUERADE, INSIDE, RANGED, ALLOWED, VIPS, SERVED, HAIRPIN = (
    {number: f"{kind}{number}" for number in (4, 6)}
    for kind in ("frontends", "masquerade", "inside", "ranged", "allowed", "vips", "served", "hairpin")
)
"""Names of sets and maps, by family."""

Element = tuple[Slot, str]


def element_key(key: FrontendKey) -> str:
    """Return `address . protocol . port`, the key of most sets."""
    return f"{format_ip(key.address)} . {PROTOCOL_NAMES[key.protocol]} . {key.port}"


def frontend_elements(frontend: Frontend) -> dict[Slot, str]:
    """Return the elements that belong to one frontend, with their values; '' in plain sets."""
    number = family(frontend.key.address)
    key = element_key(frontend.key)
    elements: dict[Slot, str] = {Slot(FRONTENDS[number], key): frontend.verdict}
    if frontend.masquerade:
        elements[Slot(MASQUERADE[number], key)] = frontend.masquerade
    if frontend.inside is not None:
        target = f"{format_ip(frontend.inside.address)} . {frontend.inside.port}"
        elements[Slot(INSIDE[number], key)] = target
    if frontend.ranges:
        elements[Slot(RANGED[number], key)] = ""
        for cidr in frontend.ranges:
            elements[Slot(ALLOWED[number], f"{key} . {_range_text(cidr)}")] = ""
    return elements


def shared_elements(frontend: Frontend) -> list[Slot]:
    """Return the elements of plain sets that other frontends may need as well."""
    address = frontend.key.address
    number = family(address)
    slots = [Slot((VIPS if frontend.bind else SERVED)[number], format_ip(address))]
    for pod in frontend.hairpins:
        text = format_ip(pod)
        slots.append(Slot(HAIRPIN[number], f"{text} . {text}"))
    if frontend.health_check_port:
        slots.append(Slot("health_check_ports", str(frontend.health_check_port)))
    return slots


def restricted_frontend(slot: Slot) -> Slot | None:
    """Return the frontend that an element of the source ranges restricts, None for other elements."""
    kind, number = slot.set[:-1], slot.set[-1]
    if kind not in ("ranged", "allowed"):
        return None
    return Slot(f"frontends{number}", " . ".join(slot.key.split(" . ")[:3]))


def detector_elements(cidrs: tuple[Cidr, ...], interfaces: tuple[str, ...]) -> Iterator[Element]:
    """Yield what tells local pods from others (contract 1.12): source ranges, names of interfaces."""
    for cidr in cidrs:
        yield Slot(f"pod_cidrs{family(cidr.network)}", str(cidr)), ""
    for name in interfaces:
        yield Slot("pod_interfaces", f'"{name}"'), ""


def _range_text(cidr: Cidr) -> str:
    """Single addresses go without a prefix, as nft prints them."""
    return format_ip(cidr.network) if cidr.prefix == len(cidr.network) * 8 else str(cidr)
