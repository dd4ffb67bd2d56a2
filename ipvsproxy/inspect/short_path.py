"""Frontends on the short path, as the elements of the ruleset have them: IPVS has no virtual server for them."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ipvsproxy.base.address import family
from ipvsproxy.plan.records import Counters, DestinationRecord, State
from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey
from ipvsproxy.ruleset.elements import ElementKey, Value, is_short
from ipvsproxy.ruleset.schema import ENDPOINTS, INTERNAL_ENDPOINTS, SHORT_FRONTENDS, ByFamily

EndpointPlaces = Mapping[Destination, int]
NO_PLACES: EndpointPlaces = {}
"""Endpoints in order, and how many of the places each of them has of which a new connection gets one by chance."""


class ShortPath(NamedTuple):
    """A frontend and its endpoints, which new connections are spread over by chance.

    `internal` are those of its internal view, where that is on the short path and has endpoints of its own.
    """

    key: FrontendKey
    endpoints: EndpointPlaces
    internal: EndpointPlaces = NO_PLACES


def short_paths(elements: Mapping[ElementKey, Value]) -> list[ShortPath]:
    """Return all frontends on the short path, in order, with those that have no endpoint now."""
    sets = tuple(SHORT_FRONTENDS.values())
    keys = sorted(slot.frontend for slot in elements if slot.set in sets and slot.frontend)
    endpoints, internal = (by_frontend(elements, kinds) for kinds in (ENDPOINTS, INTERNAL_ENDPOINTS))
    return [ShortPath(key, endpoints.get(key, {}), internal.get(key, {})) for key in keys]


def by_frontend(elements: Mapping[ElementKey, Value], maps: ByFamily) -> dict[FrontendKey, EndpointPlaces]:
    """Return the endpoints of each frontend that some maps have."""
    found: dict[FrontendKey, Counter[Destination]] = {}
    kinds = tuple(maps.values())
    for slot, to in elements.items():
        if slot.set in kinds and isinstance(to, FrontendKey) and slot.frontend:
            found.setdefault(slot.frontend, Counter())[Destination(to.address, to.port)] += 1
    return {key: dict(sorted(places.items())) for key, places in found.items()}


def _number_of_places(verdict: str) -> int:
    return int(verdict.rpartition("_")[2])


def by_rules(endpoints: int) -> str:
    """Return the words for an internal view on the short path, empty without endpoints."""
    return f"short path, {endpoints} endpoint{'s' * (endpoints > 1)}" if endpoints else ""


def endpoints(state: State, key: FrontendKey, verdict: str) -> list[DestinationRecord]:
    """Look up the endpoints of a frontend to which a verdict leads, by its places. Raises KernelError.

    The weight of each is the number of its places.
    """
    kind = (ENDPOINTS if is_short(verdict) else INTERNAL_ENDPOINTS)[family(key.address)]
    found = (state.find(kind, key, place) for place in range(_number_of_places(verdict)))
    targets = Counter(match.value for match in found if match and isinstance(match.value, FrontendKey))
    return [
        DestinationRecord(Destination(to.address, to.port), DestinationAttributes(count), 0, 0, 0, Counters())
        for to, count in targets.items()
    ]
