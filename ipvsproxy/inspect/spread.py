"""How IPVS spreads new connections over the destinations of a server, by its scheduler.

Source: net/netfilter/ipvs/ip_vs_*.c. A share is what a destination gets of the connections of many clients while
all of them bear the same load; what is to be known besides stands in `WORDS`.
"""

from collections.abc import Iterable

from ipvsproxy.plan.records import DestinationRecord
from ipvsproxy.plan.state import Destination

EVEN = frozenset(("rr", "lc", "dh"))
"""Schedulers that pass over weights, but for 0."""
HEAVIEST = frozenset(("fo", "ovf"))
BY_CLIENT = "{} chooses by the client: the shares are those of many clients."
BY_LOAD = "{} chooses by the connections that endpoints have: the shares are those of equal loads."
BY_FRONTEND = "{} chooses by the frontend's address: one endpoint gets all its connections; "
WORDS = {
    **dict.fromkeys(("sh", "mh"), BY_CLIENT),
    **dict.fromkeys(("lc", "wlc", "sed", "nq"), BY_LOAD),
    "dh": BY_FRONTEND + "if it is draining, they are refused.",
    **dict.fromkeys(("lblc", "lblcr"), BY_FRONTEND + "when it is overloaded, another one."),
    "fo": "{} sends everything to the endpoint of the greatest weight.",
    "ovf": "{} sends everything to the endpoint of the greatest weight that has no more connections than that.",
}


def describe(scheduler: str) -> str:
    """Return what is to be known of the shares, empty if nothing is."""
    return WORDS.get(scheduler, "").format(scheduler)


def shares(scheduler: str, reals: Iterable[DestinationRecord]) -> dict[Destination, float]:
    """Return the share, 0 to 1, of each destination that takes new connections."""
    live = [real for real in reals if real.weight > 0 and not real.is_full]
    if scheduler == "ovf":
        live = [real for real in live if real.active <= real.weight]
    if scheduler in HEAVIEST:
        most = max((real.weight for real in live), default=0)
        live = [real for real in live if real.weight == most]
    parts = {real.destination: 1 if scheduler in EVEN else real.weight for real in live}
    return {destination: part / sum(parts.values()) for destination, part in parts.items()}
