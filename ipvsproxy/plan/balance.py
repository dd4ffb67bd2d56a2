"""How the connections of a Service are spread over its endpoints: the attributes of each destination.

In: what the Service and its slices ask for. Out: `Balance`, which gives the attributes of endpoints, and sentences
about what has no effect. Deterministic, no I/O.
"""

from collections.abc import Iterable, Mapping

import msgspec

from ipvsproxy.plan.model import EndpointSlice, Service
from ipvsproxy.plan.state import USUAL, Destination, DestinationAttributes
from ipvsproxy.plan.topology import PortEndpoint

Destinations = Mapping[Destination, DestinationAttributes]


class Balance(msgspec.Struct, frozen=True):
    """What is wanted of the destinations of a Service: `usual` of each."""

    usual: DestinationAttributes = USUAL

    def destinations(self, ordered: Iterable[Destination], _: Iterable[PortEndpoint]) -> Destinations:
        """Return destinations with their attributes, in the given order."""
        return dict.fromkeys(ordered, self.usual)


NOTHING_SPECIAL = Balance()


def balance_of(_: Service, __: Iterable[EndpointSlice]) -> Balance:
    """Return what a Service and its slices ask for."""
    return NOTHING_SPECIAL


def complaints(_: Balance, __: str) -> Iterable[str]:
    """Return what is asked for and has no effect with a scheduler."""
    return ()
