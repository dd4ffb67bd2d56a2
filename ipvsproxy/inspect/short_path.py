"""Frontends on the short path, as the elements of the ruleset have them: IPVS has no virtual server for them."""

from collections.abc import Mapping
from typing import NamedTuple

from ipvsproxy.base.address import family
from ipvsproxy.plan.records import Counters, DestinationRecord, State
from ipvsproxy.plan.state import USUAL, Destination, FrontendKey
from ipvsproxy.ruleset.elements import ElementKey, Value, is_short
from ipvsproxy.ruleset.schema import ENDPOINTS, FRONTENDS, INTERNAL_ENDPOINTS, ByFamily


class ShortPath(NamedTuple):
    """A frontend and its endpoints, which new connections are spread over by chance.

    `internal` are those of its internal view, where that is on the short path and has endpoints of its own.
    """

    key: FrontendKey
    endpoints: tuple[Destination, ...]
    internal: tuple[Destination, ...] = ()


def short_paths(elements: Mapping[ElementKey, Value]) -> list[ShortPath]:
    """Return all frontends on the short path, in order."""
    sets = tuple(FRONTENDS.values())
    keys = sorted(s.frontend for s, value in elements.items() if s.set in sets and s.frontend and is_short(value))
    endpoints, internal = (_by_frontend(elements, kinds) for kinds in (ENDPOINTS, INTERNAL_ENDPOINTS))
    return [ShortPath(key, endpoints.get(key, ()), internal.get(key, ())) for key in keys]


def _by_frontend(
    elements: Mapping[ElementKey, Value], maps: ByFamily
) -> dict[FrontendKey, tuple[Destination, ...]]:
    found: dict[FrontendKey, list[Destination]] = {}
    kinds = tuple(maps.values())
    for slot, to in elements.items():
        if slot.set in kinds and isinstance(to, FrontendKey) and slot.frontend:
            found.setdefault(slot.frontend, []).append(Destination(to.address, to.port))
    return {key: tuple(sorted(targets)) for key, targets in found.items()}


def number_of_endpoints(verdict: str) -> int:
    """Return over how many endpoints a verdict spreads new connections."""
    return int(verdict.rpartition("_")[2])


def by_rules(endpoints: int) -> str:
    """Return the words for an internal view on the short path, empty without endpoints."""
    return f"short path, {endpoints} endpoint{'s' * (endpoints > 1)}" if endpoints else ""


def endpoints(state: State, key: FrontendKey, verdict: str) -> list[DestinationRecord]:
    """Look up the endpoints of a frontend to which a verdict leads, each by its number. Raises KernelError."""
    kind = (ENDPOINTS if is_short(verdict) else INTERNAL_ENDPOINTS)[family(key.address)]
    found = (state.find(kind, key, place) for place in range(number_of_endpoints(verdict)))
    targets = [match.value for match in found if match and isinstance(match.value, FrontendKey)]
    return [DestinationRecord(Destination(to.address, to.port), USUAL, 0, 0, 0, Counters()) for to in targets]
