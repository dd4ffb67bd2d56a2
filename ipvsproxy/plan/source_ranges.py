"""Who may connect to the addresses of a load balancer: source ranges by family (contract 4.10).

In: the ranges of a Service and the node's own addresses. Out: disjoint ranges for each address.
Deterministic, no I/O.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, disjoint, family, is_covered
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.node import NodeFacts


class AdmittedSources(NamedTuple):
    """The source ranges of one family, in order and disjoint, and whether this node is in one of them."""

    ranges: tuple[Cidr, ...]
    node: bool


def admissions_of(service: Service, node: NodeFacts) -> dict[int, AdmittedSources]:
    """Return who may connect to the load balancer's addresses of a Service, by family; once for all of them."""
    families: dict[int, list[Cidr]] = {}
    for cidr in service.source_ranges:
        families.setdefault(family(cidr.network), []).append(cidr)
    return {
        number: AdmittedSources(ranges, any(is_covered(own, ranges) for own in node.addresses))
        for number, ranges in ((number, disjoint(found)) for number, found in families.items())
    }


def allowed(admissions: Mapping[int, AdmittedSources], address: bytes) -> tuple[Cidr, ...]:
    """Return ranges of the address's family, plus the address itself where the node may connect.

    A node process that connects to a VIP has the VIP as its source (contract 4.10.2, 4.10.3).
    """
    admission = admissions.get(family(address))
    if admission is None:
        return ()
    ranges = admission.ranges
    if not admission.node or is_covered(address, ranges):
        return ranges
    own = Cidr(address, len(address) * 8)
    place = bisect_right(ranges, own)
    return (*ranges[:place], own, *ranges[place:])
