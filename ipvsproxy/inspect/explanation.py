"""What `inspect.walk` finds out about a packet, as plain values."""

from enum import StrEnum
from typing import NamedTuple

from ipvsproxy.inspect.admission import NOT_JUDGED, AdmissionRule
from ipvsproxy.plan.records import DestinationRecord, ElementMatch, ServerRecord
from ipvsproxy.plan.state import FrontendKey


class Sender(StrEnum):
    """Where a packet comes from."""

    NODE = "node"
    POD = "local pod"
    OUTSIDE = "outside"


class PacketOutcome(StrEnum):
    """What becomes of a packet."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    DROPPED = "dropped"
    NOT_OURS = "not ours"


class Packet(NamedTuple):
    """The first packet of a new connection; `link` is the one it comes in by, empty for a process of this node."""

    source: bytes
    to: FrontendKey
    link: str = ""


class Step(NamedTuple):
    """Something that happens on the way: in which chain (or part of the kernel), what, and by which element."""

    place: str
    what: str
    match: ElementMatch | None = None


class Target(NamedTuple):
    """An endpoint that the packet may go to.

    `share` of new connections is 0 to 1. `source` is what the endpoint sees, None where it is not known;
    `masquerade` is why that is an address of this node, empty if it is the packet's own.
    """

    real: DestinationRecord
    share: float
    source: bytes | None
    masquerade: str


class Explanation(NamedTuple):
    """The whole way. `server` and `targets` are empty unless IPVS has the packet.

    `admission` is what tenants have to do with it.
    """

    packet: Packet
    sender: Sender
    steps: tuple[Step, ...]
    outcome: PacketOutcome
    reason: str
    server: ServerRecord | None = None
    targets: tuple[Target, ...] = ()
    admission: AdmissionRule = NOT_JUDGED

    @property
    def frontend(self) -> FrontendKey:
        """Return what the packet is for: the frontend that is dialled, or the one for ranges with its port."""
        ranges = (step.match.slot for step in self.steps if step.match and step.match.slot.set.port_interval)
        return next((slot.frontend for slot in ranges if slot.frontend), self.packet.to)
