"""The places of endpoints on the short path, one of which a new connection gets by chance: weights as repetitions.

An endpoint has as many places as its weight demands in proportion to others, and none with weight 0.
Deterministic, no I/O.
"""

from collections.abc import Mapping
from itertools import chain, repeat
from math import gcd

from ipvsproxy.plan.balance import Destinations
from ipvsproxy.plan.state import USUAL, Destination
from ipvsproxy.ruleset.schema import MOST_ENDPOINTS

WEIGHTED_SCHEDULER = "wrr"
SHORT_SCHEDULERS = ("rr", WEIGHTED_SCHEDULER)
"""The schedulers of IPVS that send as many connections to each endpoint as chance does.

`rr` asks of a weight only whether it is 0.
"""


def places(destinations: Destinations, scheduler: str) -> tuple[Destination, ...]:
    """Return the endpoints that take new connections, each as often as it has places.

    Where weights demand more places than there are chains, each has one. That is for a moment: such a frontend has
    a virtual server (`plan.path`).
    """
    if are_usual(destinations):
        return tuple(destinations)
    counts = places_by_weight(destinations, scheduler)
    if sum(counts.values()) > MOST_ENDPOINTS:
        return tuple(counts)
    return tuple(chain.from_iterable(repeat(destination, count) for destination, count in counts.items()))


def are_usual(destinations: Destinations) -> bool:
    """Whether no endpoint has a weight of its own: of most frontends, and quickly seen."""
    found = [*destinations.values()]
    return found.count(USUAL) == len(found)


def places_by_weight(destinations: Destinations, scheduler: str) -> Mapping[Destination, int]:
    """Return how many places each endpoint needs that takes new connections, however many that are."""
    weights = {destination: found.weight for destination, found in destinations.items() if found.weight}
    if scheduler != WEIGHTED_SCHEDULER:
        return dict.fromkeys(weights, 1)
    unit = gcd(*weights.values())
    return {destination: weight // unit for destination, weight in weights.items()}
