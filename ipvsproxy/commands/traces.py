"""Whether test connections were balanced on this node: IPVS has them, or connection tracking, on the short path.

An answer alone shows little: rules of a kube-proxy, or another host, may have given it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ipvsproxy.kernel.read.connections import Asker, trace
from ipvsproxy.kernel.read.tracked import trace_tracked
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.state import ONE_PACKET, SHORT_PATH, Frontend, FrontendKey

Found = Mapping[Asker, bool]


class Dialled(NamedTuple):
    """Who asked which address and port, and the frontend that serves it: a range of ports has port 0."""

    asker: Asker
    key: FrontendKey
    frontend: Frontend

    @property
    def is_short(self) -> bool:
        """Whether it is on the short path."""
        return self.frontend.path is SHORT_PATH


def balanced_here(asked: Collection[Dialled]) -> Found:
    """Return, by who asked, whether this node balanced the connection, of those for which that is known."""
    by_rules = [each for each in asked if each.is_short]
    by_ipvs = [each for each in asked if not each.is_short and not each.frontend.server.flags & ONE_PACKET]
    return {**_known(_of_ipvs, by_ipvs), **_known(_of_rules, by_rules)}


def _known(look: Callable[[Sequence[Dialled]], Found], asked: Sequence[Dialled]) -> Found:
    try:
        return look(asked) if asked else {}
    except (OSError, KernelError):
        return {}


def _of_ipvs(asked: Sequence[Dialled]) -> Found:
    found = trace([each.asker for each in asked])
    if found is None:
        return {}
    servers = {each.asker: {each.key, *(view.server for view in each.frontend.views)} for each in asked}
    return {asker: not servers[asker].isdisjoint(had) for asker, had in found.items()}


def _of_rules(asked: Sequence[Dialled]) -> Found:
    found = trace_tracked({each.asker: each.key for each in asked})
    ends = {each.asker: {*each.frontend.destinations, *each.frontend.internal} for each in asked}
    return {asker: not ends[asker].isdisjoint(had) for asker, had in found.items()}
