"""What the kernel holds, in the kernel's words: virtual servers, destinations, VIPs, set elements.

`Frontend` is one wanted (address, protocol, port) with everything that belongs to it. `KernelState` is the
shadow: what we know the kernel holds. The planner makes the first, observation and successful steps make the
second, `plan.diff` compares them.

Names of kernel objects are frozen Structs: made and hashed several times faster than named tuples, and there are
hundreds of thousands of them.
"""

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import msgspec

from ipvsproxy.base.address import Cidr, format_endpoint
from ipvsproxy.plan.model import Protocol

PERSISTENT = 0x1
"""IP_VS_SVC_F_PERSISTENT (include/uapi/linux/ip_vs.h): session affinity."""
ONE_PACKET = 0x4
"""IP_VS_SVC_F_ONEPACKET: no UDP packet belongs to a connection; each is scheduled by itself."""
SCHED_1 = 0x8
"""IP_VS_SVC_F_SCHED1: fallback to another destination (sh-fallback, mh-fallback)."""
SCHED_2 = 0x10
"""IP_VS_SVC_F_SCHED2: the client's port counts too (sh-port, mh-port)."""
OTHERWISE = 0x80000000
"""No flag of IPVS: a server has attributes that we never set, and all of them are to be set anew."""
UNLIKE_OURS = -1
"""No weight: a destination has thresholds or another forwarding method than ours, and is to be set anew."""


class FrontendKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where a Service port answers; `address` is packed, `protocol` an IP protocol number."""

    address: bytes
    protocol: int
    port: int

    def __str__(self) -> str:
        return f"{format_endpoint(self.address, self.port)}/{Protocol(self.protocol).name}"


class Destination(msgspec.Struct, frozen=True, order=True, gc=False):
    """A real server of IPVS: one endpoint under one virtual server."""

    address: bytes
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


class ServerAttributes(msgspec.Struct, frozen=True, order=True, gc=False):
    """Attributes of a virtual server; `timeout` in seconds, 0 without persistence."""

    scheduler: str
    flags: int
    timeout: int


class PacketVerdict(StrEnum):
    """What happens to a new connection to a frontend, as a verdict of the ruleset."""

    ACCEPT = "accept"
    REFUSE = "goto refuse"
    DROP = "drop"
    INSIDE_ONLY = "goto inside_only"


class Masquerade(StrEnum):
    """Which new connections to a frontend leave with a node address, as a verdict of the ruleset."""

    NEVER = ""
    UNLESS_LOCAL_POD = "goto masquerade_unless_local_pod"
    ALWAYS = "goto masquerade_always"


class Claim(IntEnum):
    """By what a Service claims a frontend; lower is stronger.

    The API server gave it the ClusterIP or NodePort, a load balancer's controller the address in its status;
    external IPs are what its author wrote.
    """

    ALLOCATED = 0
    LOAD_BALANCER = 1
    EXTERNAL = 2


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One wanted frontend: its virtual server and everything the ruleset says about it.

    `inside` is where new connections from local pods and the node go instead, for the second view of a
    Local policy. `ranges` lists who may connect (empty: everybody). `bind` means that the address is a VIP we
    put on the node, `quiet` that no ARP is answered for it. `hairpins` are addresses of destinations that run on
    this node. `drain_seconds` is how long a destination that is no longer wanted may keep its connections, 0
    without limit.
    `serving` (UDP only) are all endpoints of the Service port that serve, on whatever node, whether or not this
    frontend uses them.
    """

    key: FrontendKey
    server: ServerAttributes
    destinations: tuple[Destination, ...]
    verdict: PacketVerdict
    masquerade: Masquerade = Masquerade.NEVER
    inside: Destination | None = None
    ranges: tuple[Cidr, ...] = ()
    bind: bool = False
    hairpins: tuple[bytes, ...] = ()
    health_check_port: int = 0
    drain_seconds: float = 0.0
    claim: Claim = Claim.ALLOCATED
    quiet: bool = False
    serving: tuple[Destination, ...] = ()

    def has_rules_of(self, other: "Frontend") -> bool:
        """Whether the ruleset and the VIPs are the same for both: most changes are of destinations only."""
        return (
            self.verdict == other.verdict
            and self.masquerade == other.masquerade
            and self.inside == other.inside
            and self.ranges == other.ranges
            and self.bind == other.bind
            and self.hairpins == other.hairpins
            and self.health_check_port == other.health_check_port
        )


class ElementKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where an element lives: the name of a set or map of the ruleset, and the key as nft text."""

    set: str
    key: str


class VipForm(StrEnum):
    """How a VIP is made local: an address of kube-ipvs0, or a `local` host route to lo.

    STRAY is a route of ours to another link, as a former version has made it; none is ever wanted.
    """

    ADDRESS = "address"
    ROUTE = "route"
    STRAY = "route to another link"


class Vip(msgspec.Struct, frozen=True, order=True, gc=False):
    """A VIP in the form it has, or should have, in the kernel."""

    address: bytes
    form: VipForm


class ServerState(msgspec.Struct, gc=False):
    """A virtual server as the kernel has it: attributes and the weight of each destination, or UNLIKE_OURS."""

    server: ServerAttributes
    weights: dict[Destination, int]


@dataclass
class KernelState:
    """The shadow: what we know the kernel holds. Only the loop's thread changes it."""

    servers: dict[FrontendKey, ServerState] = field(default_factory=dict)
    vips: set[Vip] = field(default_factory=set)
    elements: dict[ElementKey, str] = field(default_factory=dict)

    def everything(self) -> "Dirty":
        """Name all there is."""
        return Dirty(set(self.servers), {vip.address for vip in self.vips}, set(self.elements))


class Dirty(msgspec.Struct):
    """Names of kernel objects whose wanted state may differ from the shadow.

    `reasons` is what the kernel said about those that have just failed; it is not kept with what is pending.
    """

    servers: set[FrontendKey] = msgspec.field(default_factory=set)
    vips: set[bytes] = msgspec.field(default_factory=set)
    slots: set[ElementKey] = msgspec.field(default_factory=set)
    reasons: dict[FrontendKey | bytes | ElementKey, str] = msgspec.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.servers or self.vips or self.slots)

    def __len__(self) -> int:
        return len(self.servers) + len(self.vips) + len(self.slots)

    def update(self, other: "Dirty") -> None:
        """Add all names of another set."""
        self.servers |= other.servers
        self.vips |= other.vips
        self.slots |= other.slots

    def copy(self) -> "Dirty":
        """Return a set that can be changed by itself."""
        return Dirty(set(self.servers), set(self.vips), set(self.slots), dict(self.reasons))

    def without(self, other: "Dirty") -> "Dirty":
        """Return the names that another set does not have, with their reasons."""
        return Dirty(self.servers - other.servers, self.vips - other.vips, self.slots - other.slots, self.reasons)
