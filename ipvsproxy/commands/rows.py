"""Rows of what can be shown, as plain dictionaries: the kernel's objects joined with the names of Services.

A row is what `-o json` prints; its fields are documented in docs/commands.md. Every function takes the view, the
names, and a limit (0: none) on how much is read.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, islice
from typing import Any

from ipvsproxy.base.address import format_endpoint
from ipvsproxy.base.frontend import every_port
from ipvsproxy.commands.service_names import Names
from ipvsproxy.commands.short_rows import short_connections, short_frontends
from ipvsproxy.inspect.difference import server_text
from ipvsproxy.inspect.short_path import by_frontend, by_rules
from ipvsproxy.kernel.read.connections import connections as all_connections
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.records import Counters, DestinationRecord
from ipvsproxy.plan.state import ONE_PACKET, Destination, FrontendKey
from ipvsproxy.ruleset.codec import rest_text, value_text
from ipvsproxy.ruleset.elements import ElementKey, Masquerade, PacketVerdict, Value, is_short
from ipvsproxy.ruleset.schema import (
    ADMITTED,
    ALLOWED,
    FRONTENDS,
    INTERNAL_ENDPOINTS,
    INTERNAL_VIEWS,
    MASQUERADE,
    PING_OFF,
    PING_RANGED,
    PING_READY,
    PING_WHEN_READY,
    PORT_RANGES,
    RANGE_MASQUERADE,
    RESTRICTED,
    SHORT_VIEWS,
    VIPS,
    ByFamily,
)

OutputRow = dict[str, Any]
VERDICTS = {
    PacketVerdict.ACCEPT.value: "accept",
    PacketVerdict.REFUSE.value: "refuse",
    PacketVerdict.DROP.value: "drop",
    PacketVerdict.INSIDE_ONLY.value: "inside-only",
}
MASQUERADES = {Masquerade.ALWAYS.value: "always", Masquerade.UNLESS_LOCAL_POD.value: "unless-local-pod"}
NEVER = "never"
SHORT, NO_COUNTERS = "short path", Counters()
"""What stands in place of a scheduler for a frontend on the short path, whose packets nothing counts."""
SERVING, DRAINING, FULL, MAINTENANCE = "serving", "draining", "full", "maintenance"


def _named(key: FrontendKey, known: Names) -> OutputRow:
    namespace, _, name = (known.of(key) or known.of(every_port(key))).partition("/")
    return {"namespace": namespace, "service": name, "frontend": str(key)}


def _counted(counters: Counters) -> OutputRow:
    return {
        "connections": counters.connections,
        "inPackets": counters.in_packets,
        "outPackets": counters.out_packets,
        "inBytes": counters.in_bytes,
        "outBytes": counters.out_bytes,
        "connectionRate": counters.connection_rate,
        "inPacketRate": counters.in_packet_rate,
        "outPacketRate": counters.out_packet_rate,
        "inByteRate": counters.in_byte_rate,
        "outByteRate": counters.out_byte_rate,
    }


def services(view: KernelReader, known: Names, _: int = 0) -> list[OutputRow]:
    """Return a row for each virtual server, and each frontend on the short path."""
    verdicts = _by_frontend(view, FRONTENDS) | _by_frontend(view, PORT_RANGES)
    short = [
        _named(key, known)
        | {"tenant": known.owner(key), "verdict": _verdict(verdicts.get(key, ""), "")}
        | {"scheduler": SHORT, "affinitySeconds": 0, "onePacket": False, "attributes": SHORT}
        | _load(reals, known.in_maintenance(key))
        | _counted(NO_COUNTERS)
        for key, reals in short_frontends(view, known)
    ]
    return short + [
        _named(virtual.key, known)
        | {"tenant": known.owner(virtual.key), "verdict": _verdict(verdicts.get(virtual.key, ""), "")}
        | {"scheduler": virtual.server.scheduler, "affinitySeconds": virtual.server.timeout}
        | {"onePacket": bool(virtual.server.flags & ONE_PACKET), "attributes": server_text(virtual.server)}
        | _load(view.destinations(virtual.key), known.in_maintenance(virtual.key))
        | _counted(virtual.counters)
        for virtual in view.servers()
    ]


def _load(reals: Sequence[DestinationRecord], resting: Sequence[str]) -> OutputRow:
    states = Counter(_state(real, resting) for real in reals)
    return {
        "endpoints": states[SERVING] + states[FULL],
        "draining": states[DRAINING],
        "maintenance": states[MAINTENANCE],
        "active": sum(real.active for real in reals),
        "inactive": sum(real.inactive for real in reals),
    }


def endpoints(view: KernelReader, known: Names, _: int = 0) -> list[OutputRow]:
    """Return a row for each destination of each virtual server, and each endpoint of a short path."""
    short = [
        _endpoint(key, real, known) | {"forwarding": SHORT}
        for key, reals in short_frontends(view, known)
        for real in reals
    ]
    return short + [
        _endpoint(virtual.key, real, known)
        for virtual in view.servers()
        for real in view.destinations(virtual.key)
    ]


def _endpoint(key: FrontendKey, real: DestinationRecord, known: Names) -> OutputRow:
    return (
        _named(key, known)
        | {"endpoint": str(real.destination), "state": _state(real, known.in_maintenance(key))}
        | {"weight": real.weight, "upperThreshold": real.attributes.upper_threshold}
        | {"lowerThreshold": real.attributes.lower_threshold, "forwarding": real.attributes.forwarding}
        | {"active": real.active, "inactive": real.inactive, "persistent": real.persistent}
        | _counted(real.counters)
    )


def _state(real: DestinationRecord, resting: Sequence[str]) -> str:
    if not real.weight:
        return MAINTENANCE if str(real.destination) in resting else DRAINING
    return FULL if real.is_full else SERVING


def connections(view: KernelReader, known: Names, limit: int = 0) -> list[OutputRow]:
    """Return a row for each connection, of the first so many."""
    return [
        _named(found.frontend, known)
        | {"client": str(found.client), "endpoint": str(found.endpoint)}
        | {"state": found.state, "expiresSeconds": found.expires}
        for found in islice(chain(all_connections(), short_connections(view)), limit or None)
    ]


def rules(view: KernelReader, known: Names, _: int = 0) -> list[OutputRow]:
    """Return a row for each frontend of the ruleset: what its elements contain."""
    masquerades = _by_frontend(view, MASQUERADE) | _by_frontend(view, RANGE_MASQUERADE)
    verdicts = _by_frontend(view, FRONTENDS) | _by_frontend(view, PORT_RANGES)
    inside = _by_frontend(view, INTERNAL_VIEWS) | _by_frontend(view, SHORT_VIEWS)
    internal = by_frontend(_elements(view, INTERNAL_ENDPOINTS), INTERNAL_ENDPOINTS)
    ports, ranges = _rests(view, PORT_RANGES), _rests(view, ALLOWED)
    vips, pings = _addresses(view, VIPS), _pings(view)
    admitted = _admitted(view, known)
    return [
        _named(key, known)
        | {"verdict": _verdict(verdict, value_text(verdict))}
        | {"masquerade": MASQUERADES.get(value_text(masquerades.get(key, "")), NEVER)}
        | {"inside": _inside(inside.get(key), internal.get(key, ())), "sourceRanges": ranges.get(key, [])}
        | {"address": "vip" if key.address in vips else "node", "ping": pings.get(key.address, "")}
        | {"tenants": admitted.get(key), "ports": ports.get(key, [])}
        for key, verdict in sorted(verdicts.items())
    ]


def _admitted(view: KernelReader, known: Names) -> dict[FrontendKey, list[str]]:
    """Return the tenants whose pods may connect to a frontend, for each that not all may connect to."""
    found: dict[FrontendKey, list[str]] = {key: [] for key in _by_frontend(view, RESTRICTED)}
    for slot in (slot for kind in ADMITTED.values() for slot in view.elements(kind)):
        if slot.frontend in found and isinstance(slot.rest, int):
            found[slot.frontend].append(known.tenant(slot.rest))
    return {key: sorted(tenants) for key, tenants in found.items()}


def _pings(view: KernelReader) -> dict[bytes, str]:
    """Return, by address, who gets an answer to a ping, where that is not all."""
    late = _addresses(view, PING_WHEN_READY) - _addresses(view, PING_READY)
    silent = _addresses(view, PING_OFF) | late
    return dict.fromkeys(_addresses(view, PING_RANGED), "in-ranges") | dict.fromkeys(silent, "none")


def _addresses(view: KernelReader, sets: ByFamily) -> set[bytes]:
    return {slot.address for kind in sets.values() for slot in view.elements(kind) if slot.address}


def _rests(view: KernelReader, kinds: ByFamily) -> dict[FrontendKey, list[str]]:
    """Return what a set has by frontend: source ranges, or ranges of ports."""
    found: dict[FrontendKey, list[str]] = {}
    for slot in (slot for kind in kinds.values() for slot in view.elements(kind)):
        if slot.frontend:
            found.setdefault(slot.frontend, []).append(rest_text(slot.rest, slot.set.key[-1]))
    return {key: sorted(texts) for key, texts in found.items()}


def _by_frontend(view: KernelReader, sets: ByFamily) -> dict[FrontendKey, Value]:
    return {slot.frontend: value for slot, value in _elements(view, sets).items() if slot.frontend}


def _elements(view: KernelReader, sets: ByFamily) -> dict[ElementKey, Value]:
    return dict(item for kind in sets.values() for item in view.elements(kind).items())


def _verdict(value: Value, otherwise: str) -> str:
    return "accept" if is_short(value) else VERDICTS.get(value_text(value), otherwise)


def _inside(value: Value | None, internal: Collection[Destination]) -> str:
    if isinstance(value, FrontendKey):
        return format_endpoint(value.address, value.port)
    return by_rules(len(internal)) if value else ""
