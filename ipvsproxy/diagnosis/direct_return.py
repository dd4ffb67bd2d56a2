"""Whether pods answer that are reached through a tunnel, by what IPVS knows of connections of clients.

The node cannot ask them that way itself: it reaches external addresses by NAT. IPVS sees the packets of clients,
and a client whose first packet has an answer goes on. In: connections by endpoint. Out: findings.
"""

from collections.abc import Iterator, Sequence

import msgspec

from ipvsproxy.diagnosis.finding import Finding, fine, problem, unchecked

CHECK, SHOWN = "direct return", 20


class TunnelView(msgspec.Struct, frozen=True):
    """An endpoint of a frontend with direct server return, and its TCP connections.

    `waiting` have sent their first packet and nothing else, `going_on` have had an answer.
    """

    frontend: str
    endpoint: str
    tunnel: str
    waiting: int = 0
    going_on: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether clients have connected, and none has had an answer."""
        return bool(self.waiting) and not self.going_on


def check(tunnels: Sequence[TunnelView]) -> Iterator[Finding]:
    """Yield what is known of the pods of one Service."""
    silent = [found for found in tunnels if found.is_silent]
    if silent:
        yield problem(
            CHECK, "no client has had an answer of endpoints that are reached through a tunnel",
            *(f"{found.endpoint} for {found.frontend} ({found.tunnel}): {found.waiting} connections wait"
              for found in silent[:SHOWN]),
            step="do their pods have the init container, with this VIP and this tunnel (docs/dsr.md)? Do firewalls"
            " let protocol 4 (ipip; IPv6: 41) or UDP port 6080 (gue) pass to pods?",
        )  # fmt: skip
    elif any(found.going_on for found in tunnels):
        yield fine(CHECK, f"clients get answers of endpoints that are reached through a tunnel ({len(tunnels)})")
    elif tunnels:
        yield unchecked(
            CHECK, "no client has a TCP connection to endpoints that are reached through a tunnel: whether their"
            " pods are prepared is not known"
        )  # fmt: skip
