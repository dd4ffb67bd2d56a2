"""What commands read from the kernel, as plain values; and the interface through which they read it.

`kernel.read.reader.KernelReader` answers from the kernel. Code that only decides (`inspect.walk`) knows no more
than `State`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey, ServerAttributes
from ipvsproxy.ruleset.codec import element_text, value_text
from ipvsproxy.ruleset.elements import ElementKey, ElementOwner, Rest, Value
from ipvsproxy.ruleset.schema import SetSchema


class ElementMatch(NamedTuple):
    """An element that was found, and what a map has for it."""

    slot: ElementKey
    value: Value = ""

    def __str__(self) -> str:
        text = element_text(self.slot)
        return f"{text[:-2]} : {value_text(self.value)} }}" if self.value else text


class Counters(NamedTuple):
    """What IPVS has counted since the object was made; rates are a second's, as the kernel estimates them."""

    connections: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_bytes: int = 0
    out_bytes: int = 0
    connection_rate: int = 0
    in_packet_rate: int = 0
    out_packet_rate: int = 0
    in_byte_rate: int = 0
    out_byte_rate: int = 0


class DestinationRecord(NamedTuple):
    """A destination of a virtual server. The numbers are of connections."""

    destination: Destination
    attributes: DestinationAttributes
    active: int
    inactive: int
    persistent: int
    counters: Counters

    @property
    def weight(self) -> int:
        """Its part of new connections; none with 0."""
        return self.attributes.weight

    @property
    def is_full(self) -> bool:
        """Whether it has as many connections as its upper threshold allows, and so gets no more."""
        upper = self.attributes.upper_threshold
        return bool(upper) and self.active + self.inactive >= upper


class ServerRecord(NamedTuple):
    """A virtual server."""

    key: FrontendKey
    server: ServerAttributes
    counters: Counters


class Route(NamedTuple):
    """Where the kernel sends a packet.

    `local` means to this node; `source` is the address it would give packets of its own.
    """

    local: bool
    link: str
    source: bytes | None
    gateway: bytes | None


class State(Protocol):
    """What can be read from a node's kernel. All raise KernelError."""

    def find(self, kind: SetSchema, owner: ElementOwner, rest: Rest = None) -> ElementMatch | None:
        """Look one element up in a set or map; in one of intervals, the one that holds `rest`."""

    def route(self, address: bytes) -> Route | None:
        """Return the way to an address, None where there is none."""

    def masquerade_source(self, route: Route, address: bytes) -> bytes | None:
        """Return the source that masquerading gives what goes there by this route, None if that is unknown."""

    def server(self, key: FrontendKey) -> ServerRecord | None:
        """Return a virtual server, None where there is none."""

    def destinations(self, key: FrontendKey) -> Sequence[DestinationRecord]:
        """Return the destinations of a virtual server."""
