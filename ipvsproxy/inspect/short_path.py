"""Frontends on the short path, as the elements of the ruleset have them: IPVS has no virtual server for them."""

from collections.abc import Mapping
from typing import NamedTuple

from ipvsproxy.base.address import family
from ipvsproxy.plan.records import Counters, DestinationRecord, State
from ipvsproxy.plan.state import USUAL, Destination, FrontendKey
from ipvsproxy.ruleset.elements import SHORT_PATH_CHAIN, ElementKey, Value, is_short
from ipvsproxy.ruleset.schema import ENDPOINTS, FRONTENDS


class ShortPath(NamedTuple):
    """A frontend and its endpoints, which new connections are spread over by chance."""

    key: FrontendKey
    endpoints: tuple[Destination, ...]


def short_paths(elements: Mapping[ElementKey, Value]) -> list[ShortPath]:
    """Return all frontends on the short path, in order."""
    sets = tuple(FRONTENDS.values())
    keys = sorted(s.frontend for s, value in elements.items() if s.set in sets and s.frontend and is_short(value))
    found: dict[FrontendKey, list[Destination]] = {key: [] for key in keys}
    for slot, to in elements.items():
        if slot.set in ENDPOINTS.values() and isinstance(to, FrontendKey) and slot.frontend in found:
            found[slot.frontend].append(Destination(to.address, to.port))
    return [ShortPath(key, tuple(sorted(endpoints))) for key, endpoints in found.items()]


def number_of_endpoints(verdict: str) -> int:
    """Return over how many endpoints a verdict spreads new connections."""
    return int(verdict.removeprefix(SHORT_PATH_CHAIN))


def endpoints(state: State, key: FrontendKey, number: int) -> list[DestinationRecord]:
    """Look up the endpoints of a frontend, each by its number as a packet would. Raises KernelError."""
    found = (state.find(ENDPOINTS[family(key.address)], key, place) for place in range(number))
    targets = [match.value for match in found if match and isinstance(match.value, FrontendKey)]
    return [DestinationRecord(Destination(to.address, to.port), USUAL, 0, 0, 0, Counters()) for to in targets]
