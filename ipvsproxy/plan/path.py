"""Which way the packets of a frontend go: through IPVS, or by conntrack's DNAT alone.

IPVS costs about 15 % more for each packet than a DNAT, and tells replies apart by client and endpoint alone. So
Services that want nothing which only IPVS has may take the short path: the ruleset chooses an endpoint, conntrack
does the rest. Deterministic, no I/O.
"""

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
    wishes = (
        (scheduler not in SHORT_SCHEDULERS, f"the scheduler {scheduler}"),
        (bool(service.scheduler_flags), "flags of the scheduler"),
        (bool(service.affinity_seconds), "session affinity"),
        (service.one_packet, "UDP packets balanced one by one"),
        (bool(service.max_connections[0]), "limits of endpoints"),
        (service.tenant_dns, "a view that leads to its virtual server, the DNS of a tenant"),
        (bool(service.slow_start_seconds), "slow start of endpoints"),
        (bool(service.forwarding), "direct server return"),
        (detection in BY_LINK, "local pods that are recognised by their link"),
    )
    return next((_needs(what) for is_wanted, what in wishes if is_wanted), SHORT)


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
