"""What a frontend and the node put into the sets and maps of the ruleset.

The rules themselves are static (nft/ipvsproxy.nft) and are explained there; this module only words the
elements. It is the one place, beside that file, that knows the names of its sets.
"""

from collections.abc import Iterator

from ipvsproxy.address import Cidr, family, format_ip
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Frontend, FrontendKey, Masquerade, Slot

PROTOCOL_NAMES = {protocol.value: protocol.name.lower() for protocol in Protocol}

Element = tuple[Slot, str]


def element_key(key: FrontendKey) -> str:
    """Return `address . protocol . port`, the key of most sets."""
    return f"{format_ip(key.address)} . {PROTOCOL_NAMES[key.protocol]} . {key.port}"


def frontend_elements(frontend: Frontend) -> Iterator[Element]:
    """Yield the elements that belong to one frontend: (set and key, value); plain sets have the value ''."""
    address = frontend.key.address
    number = family(address)
    key = element_key(frontend.key)
    yield Slot(f"frontends{number}", key), frontend.verdict.value
    if frontend.masquerade is not Masquerade.NEVER:
        yield Slot(f"masquerade{number}", key), frontend.masquerade.value
    if frontend.inside is not None:
        target = f"{format_ip(frontend.inside.address)} . {frontend.inside.port}"
        yield Slot(f"inside{number}", key), target
    if frontend.ranges:
        yield Slot(f"ranged{number}", key), ""
        for cidr in frontend.ranges:
            yield Slot(f"allowed{number}", f"{key} . {_range_text(cidr)}"), ""


def shared_elements(frontend: Frontend) -> Iterator[Element]:
    """Yield the elements that other frontends may need as well."""
    number = family(frontend.key.address)
    if frontend.bind:
        yield vip_slot(frontend.key.address), ""
    else:
        yield Slot(f"served{number}", format_ip(frontend.key.address)), ""
    for pod in frontend.hairpins:
        text = format_ip(pod)
        yield Slot(f"hairpin{number}", f"{text} . {text}"), ""
    if frontend.health_check_port:
        yield Slot("health_check_ports", str(frontend.health_check_port)), ""


def restricted_frontend(slot: Slot) -> Slot | None:
    """Return the frontend that an element of the source ranges restricts, None for other elements."""
    kind, number = slot.set[:-1], slot.set[-1]
    if kind not in ("ranged", "allowed"):
        return None
    return Slot(f"frontends{number}", " . ".join(slot.key.split(" . ")[:3]))


def vip_slot(address: bytes) -> Slot:
    """Return where the guard keeps a VIP."""
    return Slot(f"vips{family(address)}", format_ip(address))


def detector_elements(cidrs: tuple[Cidr, ...], interfaces: tuple[str, ...]) -> Iterator[Element]:
    """Yield what tells local pods from others (contract 1.12): source ranges, names of interfaces."""
    for cidr in cidrs:
        yield Slot(f"pod_cidrs{family(cidr.network)}", str(cidr)), ""
    for name in interfaces:
        yield Slot("pod_interfaces", f'"{name}"'), ""


def _range_text(cidr: Cidr) -> str:
    """Single addresses go without a prefix, as nft prints them."""
    return format_ip(cidr.network) if cidr.prefix == len(cidr.network) * 8 else str(cidr)
