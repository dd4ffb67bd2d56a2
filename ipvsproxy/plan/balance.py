"""How the connections of a Service are spread over its endpoints: the attributes of each destination.

In: what the Service and its slices ask for. Out: `Balance`, which gives the attributes of endpoints, and sentences
about what has no effect. Deterministic, no I/O.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ipvsproxy.config.annotation_values import MOST_WEIGHT
from ipvsproxy.plan.model import Endpoint, EndpointSlice, Service
from ipvsproxy.plan.state import USUAL, Destination, DestinationAttributes
from ipvsproxy.plan.topology import PortEndpoints

UNWEIGHTED = frozenset(("rr", "lc", "dh"))
"""Schedulers that ask of a weight only whether it is 0 (net/netfilter/ipvs/ip_vs_{rr,lc,dh}.c)."""
STEPS = 10
"""In which an endpoint with a slow start gets its weight; weights of its Service are so many times as large."""
Destinations = Mapping[Destination, DestinationAttributes]


class Balance(msgspec.Struct, frozen=True):
    """What is wanted of the destinations of a Service: `usual` of those that `weights` does not name.

    `weights` has names of pods, `prefixes` beginnings of names, of which the longest counts; `lengths` are theirs,
    the longest first. `addresses` are of endpoints in slices with a weight, which comes before that of beginnings.
    Endpoints in `zone`, if there is one, get `same_zone` times the weight. `steps` are addresses of endpoints that
    have a part of their weight only, in `STEPS`-ths.
    """

    usual: DestinationAttributes = USUAL
    weights: Mapping[str, DestinationAttributes] = {}
    prefixes: Mapping[str, DestinationAttributes] = {}
    lengths: Sequence[int] = ()
    addresses: Mapping[bytes, DestinationAttributes] = {}
    zone: str = ""
    same_zone: int = 1
    steps: Mapping[bytes, int] = {}

    @property
    def is_weighted(self) -> bool:
        """Whether some endpoint may get a weight of its own other than 0."""
        if self.same_zone != 1:
            return True
        values = (*self.weights.values(), *self.prefixes.values(), *self.addresses.values())
        return any(attributes.weight not in (0, USUAL.weight) for attributes in values)

    def destinations(self, ordered: Iterable[Destination], endpoints: PortEndpoints) -> Destinations:
        """Return destinations with their attributes, in the given order."""
        if not (self.weights or self.prefixes or self.addresses or self.zone or self.steps):
            return dict.fromkeys(ordered, self.usual)
        return {destination: self.attributes(endpoints[destination]) for destination in ordered}

    def attributes(self, endpoint: Endpoint) -> DestinationAttributes:
        """Return the attributes of an endpoint."""
        name, found = endpoint.name, self.weights.get(endpoint.name)
        if found is None and self.addresses:
            found = self.addresses.get(endpoint.address)
        if found is None:
            # Each slice may have patterns: once for each length, and no comparison with all of them.
            known = (self.prefixes.get(name[:length]) for length in self.lengths)
            found = next(filter(None, known), self.usual)
        if self.zone and endpoint.zone == self.zone:
            found = msgspec.structs.replace(found, weight=min(found.weight * self.same_zone, MOST_WEIGHT))
        step = self.steps.get(endpoint.address) if self.steps else None
        return msgspec.structs.replace(found, weight=found.weight * step // STEPS) if step else found


NOTHING_SPECIAL = Balance()


def balance_of(
    service: Service, slices: Iterable[EndpointSlice], zone: str, steps: Mapping[bytes, int] | None = None
) -> Balance:
    """Return what a Service and its slices ask for on a node in a zone; what a slice asks for a pod comes first.

    `steps` are those of endpoints with a slow start, None where the Service has none.
    """
    wishing = [piece for piece in slices if piece.weights or piece.weight >= 0]
    upper, lower = service.max_connections
    scale = 1 if steps is None else STEPS
    if not (wishing or service.weights or upper or service.same_zone_weight != 1 or scale != 1):
        return NOTHING_SPECIAL
    weights = dict(service.weights)
    for piece in wishing:
        weights.update(piece.weights)

    def attributes(weight: int) -> DestinationAttributes:
        return DestinationAttributes(min(weight * scale, MOST_WEIGHT), upper, lower)

    made = {name: attributes(weight) for name, weight in weights.items()}
    of_slices = [(piece, attributes(piece.weight)) for piece in wishing if piece.weight >= 0]
    prefixes = {name[:-1]: made[name] for name in made if name.endswith("*")}
    return Balance(
        usual=DestinationAttributes(USUAL.weight * scale, upper, lower),
        weights={name: made[name] for name in made if not name.endswith("*")},
        prefixes=prefixes,
        lengths=sorted(set(map(len, prefixes)), reverse=True),
        addresses={e.address: value for piece, value in of_slices for e in piece.endpoints},
        zone=zone if service.same_zone_weight != 1 else "",
        same_zone=service.same_zone_weight,
        steps=steps or {},
    )


def complaints(
    service: Service, slices: Iterable[EndpointSlice], balance: Balance, scheduler: str
) -> Iterable[str]:
    """Yield what a Service or its slices ask for themselves, and has no effect."""
    if scheduler in UNWEIGHTED and service.slow_start_seconds and "slow_start_seconds" in service.annotated:
        yield f"a slow start has no effect with the scheduler {scheduler}, which does not know weights"
    asks = "weights" in service.annotated or "same_zone_weight" in service.annotated
    if not (asks or any(piece.weights or piece.weight >= 0 for piece in slices)):
        return
    if scheduler in UNWEIGHTED and balance.is_weighted:
        yield (
            f"weights other than 0 have no effect with the scheduler {scheduler}:"
            " the annotation ipvsproxy.io/scheduler names another, such as wrr, wlc, sh or mh"
        )
