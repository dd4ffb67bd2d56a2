"""Where the rules lead a packet, and the words for it."""

from collections.abc import Sequence
from typing import NamedTuple

from ipvsproxy.base.address import format_ip
from ipvsproxy.inspect.explanation import PacketOutcome
from ipvsproxy.plan.records import DestinationRecord, Route, ServerRecord
from ipvsproxy.plan.state import ONE_PACKET, PERSISTENT
from ipvsproxy.ruleset.elements import PacketVerdict


class End(NamedTuple):
    """Where the rules have led: to an outcome with its reason, or (None) on to IPVS."""

    outcome: PacketOutcome | None
    reason: str = ""


TO_IPVS = End(None)
ENDS = {
    PacketVerdict.REFUSE: End(PacketOutcome.REFUSED, "the Service has no usable endpoint anywhere"),
    PacketVerdict.DROP: End(
        PacketOutcome.DROPPED, "endpoints exist, but a Local policy forbids all of them on this node"
    ),
    PacketVerdict.ACCEPT: TO_IPVS,
    PacketVerdict.INSIDE_ONLY: End(PacketOutcome.REFUSED, "a port of ours that only our own DNAT leads to"),
}
WORDS = {
    PacketVerdict.ACCEPT: "accept: on to IPVS",
    PacketVerdict.REFUSE: "refuse: TCP reset or port unreachable",
    PacketVerdict.DROP: "drop, without an answer",
    PacketVerdict.INSIDE_ONLY: "only for packets that a view has sent here",
}


def by_chance(endpoints: Sequence[DestinationRecord]) -> str:
    """Return how the short path chooses."""
    return f"the short path: DNAT to one of {len(endpoints)} endpoints, by chance"


def next_hop(route: Route | None) -> str:
    """Return where a packet goes that no frontend takes."""
    if route is None:
        return "no route leads there"
    if route.local:
        return "a program of this node may listen there"
    via = f" via {format_ip(route.gateway)}" if route.gateway else ""
    return f"it is forwarded to {route.link}{via}"


def affinity(server: ServerRecord) -> str:
    """Return what a virtual server remembers of clients, empty for nothing."""
    if server.server.flags & ONE_PACKET:
        return ", each packet by itself (one-packet)"
    if server.server.flags & PERSISTENT:
        return f", affinity of clients for {server.server.timeout} s"
    return ""
