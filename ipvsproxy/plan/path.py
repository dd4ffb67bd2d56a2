"""Which way the packets of a frontend go: through IPVS, or by conntrack's DNAT alone.

IPVS costs about 15 % more for each packet than a DNAT, and tells replies apart by client and endpoint alone. So
Services that want nothing which only IPVS has may take the short path: the ruleset chooses an endpoint, conntrack
does the rest. Deterministic, no I/O.
"""

from itertools import compress
from operator import attrgetter
from typing import NamedTuple

from ipvsproxy.config import DataPath, DetectLocalMode
from ipvsproxy.plan.balance import Destinations
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.places import SHORT_SCHEDULERS, are_usual, places_by_weight
from ipvsproxy.plan.state import IPVS_PATH, SHORT_PATH, Path
from ipvsproxy.ruleset.schema import MOST_ENDPOINTS


class PathChoice(NamedTuple):
    """The path, and why it is IPVS where the short one was asked for; empty otherwise."""

    path: Path
    reason: str = ""


BY_IPVS = DataPath.IPVS
BY_LINK = (DetectLocalMode.BRIDGE_INTERFACE, DetectLocalMode.INTERFACE_NAME_PREFIX)
"""A packet that stays on its bridge after the DNAT has no incoming link in postrouting (br_nf_post_routing)."""
ONLY_WITH_IPVS = {
    "scheduler_flags": "flags of the scheduler",
    "affinity_seconds": "session affinity",
    "one_packet": "UDP packets balanced one by one",
    "tenant_dns": "a view that leads to its virtual server, the DNS of a tenant",
    "slow_start_seconds": "slow start of endpoints",
    "forwarding": "direct server return",
    "max_connections": "limits of endpoints",
    "detect_local_mode": "local pods that are recognised by their link",
}
"""What a Service, and last the node, may ask for that the short path does not have."""
WISHES = attrgetter(*[*ONLY_WITH_IPVS][:6])
"""All of them of a Service at once that are simply set or not."""
IPVS_IS_WANTED, SHORT = PathChoice(IPVS_PATH), PathChoice(SHORT_PATH)


def path_of_service(
    service: Service,
    configured: DataPath,
    scheduler: str,
    detection: DetectLocalMode | None,
) -> PathChoice:
    """Choose for all frontends of a Service."""
    if (service.data_path or configured) == BY_IPVS:
        return IPVS_IS_WANTED
    if scheduler not in SHORT_SCHEDULERS:
        return _needs(f"the scheduler {scheduler}")
    wishes = (*WISHES(service), service.max_connections[0], detection in BY_LINK)
    if not any(wishes):  # most Services
        return SHORT
    return _needs(next(compress(ONLY_WITH_IPVS.values(), wishes)))


def path_of_port(of_service: PathChoice, scheduler: str, *audiences: Destinations) -> PathChoice:
    """Choose for the frontends of one port with these endpoints for some clients each."""
    if of_service.path is IPVS_PATH:
        return of_service
    for destinations in audiences:
        if len(destinations) <= MOST_ENDPOINTS and are_usual(destinations):
            continue
        counts = places_by_weight(destinations, scheduler)
        if len(counts) > MOST_ENDPOINTS:
            return _needs(f"more than {MOST_ENDPOINTS} endpoints")
        if sum(counts.values()) > MOST_ENDPOINTS:
            return _needs(f"weights that, in lowest terms, add up to more than {MOST_ENDPOINTS}")
    return of_service


def _needs(what: str) -> PathChoice:
    return PathChoice(IPVS_PATH, f"{what}: only with IPVS")
