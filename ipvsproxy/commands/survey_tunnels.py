"""The endpoints of a Service that are reached through a tunnel, with what IPVS knows of their connections."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

from ipvsproxy.diagnosis.direct_return import TunnelView
from ipvsproxy.kernel.read.connections import MOST, Connection
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Frontend

FIRST = "SYN_RECV"
"""The state of a connection that has sent its first packet; IPVS sees no answer that bypasses the node."""


def find_tunnels(frontends: Iterable[Frontend], table: Iterable[Connection]) -> tuple[TunnelView, ...]:
    """Return them, none where the table of connections cannot be read."""
    direct = [frontend for frontend in frontends if frontend.direct_return]
    if not direct:
        return ()
    try:
        return tuple(_views(direct, islice(table, MOST)))
    except OSError:
        return ()


def _views(direct: Iterable[Frontend], found: Iterable[Connection]) -> Iterator[TunnelView]:
    counts = Counter(
        (c.frontend, c.endpoint, c.state == FIRST) for c in found if c.frontend.protocol == Protocol.TCP
    )
    for frontend in direct:
        for to, attributes in frontend.destinations.items():
            waiting, going_on = (counts[frontend.key, to, is_first] for is_first in (True, False))
            yield TunnelView(str(frontend.key), str(to), attributes.forwarding, waiting, going_on)
