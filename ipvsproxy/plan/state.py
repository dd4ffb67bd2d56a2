"""What the kernel holds, in the kernel's words: virtual servers, destinations, VIPs, set elements.

`Frontend` is one wanted (address, protocol, port) with everything that belongs to it. `KernelState` is the
shadow: what we know the kernel holds. The planner makes the first, observation and successful steps make the
second, `plan.diff` compares them.

Names of kernel objects are frozen Structs: made and hashed several times faster than named tuples, and there are
hundreds of thousands of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

import msgspec

from ipvsproxy.base.address import Cidr, format_endpoint
from ipvsproxy.base.frontend import FrontendKey as FrontendKey  # noqa: PLC0414 - the name of a server
from ipvsproxy.ruleset.elements import ElementKey, Masquerade, PacketVerdict, PortRange, Value

PERSISTENT = 0x1
"""IP_VS_SVC_F_PERSISTENT (include/uapi/linux/ip_vs.h): session affinity."""
ONE_PACKET = 0x4
"""IP_VS_SVC_F_ONEPACKET: no UDP packet belongs to a connection; each is scheduled by itself."""
SCHED_1 = 0x8
"""IP_VS_SVC_F_SCHED1: fallback to another destination (sh-fallback, mh-fallback)."""
SCHED_2 = 0x10
"""IP_VS_SVC_F_SCHED2: the client's port counts too (sh-port, mh-port)."""
SCHED_3 = 0x20
"""IP_VS_SVC_F_SCHED3: no scheduler of Linux 6.12 has a meaning for it."""
MASQUERADING, TUNNEL = 0, 2
"""Forwarding methods of destinations (IP_VS_CONN_F_MASQ, IP_VS_CONN_F_TUNNEL); the planner asks for these."""
FORWARDING_METHODS = {MASQUERADING: "masquerade", 1: "local", TUNNEL: "tunnel", 3: "direct routing", 4: "bypass"}
"""By the words of ipvsadm (IP_VS_CONN_F_FWD_MASK in include/uapi/linux/ip_vs.h)."""
IPIP, GUE = 0, 1
TUNNEL_TYPES = {IPIP: "ipip", GUE: "gue", 2: "gre"}
"""IP_VS_CONN_F_TUNNEL_TYPE_IPIP and those after it."""


class Destination(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """A real server of IPVS: one endpoint under one virtual server."""

    address: bytes
    port: int

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)


class DestinationAttributes(msgspec.Struct, frozen=True, order=True, gc=False, cache_hash=True):
    """All that IPVS holds of a destination beside its address and port (ip_vs_dest_user_kern).

    With weight 0 it takes no new connections. With as many connections as `upper_threshold` it takes no more until
    it has fewer than `lower_threshold`, 0 for no limit. The tunnel is that of the forwarding method TUNNEL: its
    type (0 IPIP, 1 GUE, 2 GRE), the UDP port of GUE, and flags of checksums.
    """

    weight: int = 1
    upper_threshold: int = 0
    lower_threshold: int = 0
    forwarding_method: int = MASQUERADING
    tunnel_type: int = 0
    tunnel_port: int = 0
    tunnel_flags: int = 0

    def __str__(self) -> str:
        texts = [f"weight {self.weight}"]
        if self.upper_threshold:
            texts.append(f"upper threshold {self.upper_threshold}")
        if self.lower_threshold:
            texts.append(f"lower threshold {self.lower_threshold}")
        if self.forwarding_method != MASQUERADING:
            texts.append(f"tunnel {self.forwarding}" if self.is_tunnel else self.forwarding)
        if self.tunnel_port:
            texts.append(f"port {self.tunnel_port}")
        if self.tunnel_flags:
            texts.append(f"flags {self.tunnel_flags}")
        return ", ".join(texts)

    @property
    def is_tunnel(self) -> bool:
        """Whether packets go to the destination in a tunnel."""
        return self.forwarding_method == TUNNEL

    @property
    def forwarding(self) -> str:
        """The way to the destination: a kind of tunnel, or the word of ipvsadm for the forwarding method."""
        if self.forwarding_method == TUNNEL:
            return TUNNEL_TYPES.get(self.tunnel_type, f"tunnel of type {self.tunnel_type}")
        return FORWARDING_METHODS.get(self.forwarding_method, f"method {self.forwarding_method}")


USUAL = DestinationAttributes()
"""A destination of which nothing special is wanted; the one value that most of them share."""


class ServerAttributes(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """All that IPVS holds of a virtual server beside its key; `timeout` in seconds, 0 without persistence.

    `netmask` states which clients persistence takes for one: an IPv4 mask as a number, the length of an IPv6
    prefix, None for the whole address. `engine` is the name of a persistence engine, empty for none.
    """

    scheduler: str
    flags: int
    timeout: int
    netmask: int | None = None
    engine: str = ""


class Claim(IntEnum):
    """By what a Service claims a frontend; lower is stronger.

    The API server gave it the ClusterIP or NodePort, a load balancer's controller the address in its status;
    external IPs are what its author wrote.
    """

    ALLOCATED = 0
    LOAD_BALANCER = 1
    EXTERNAL = 2


class View(msgspec.Struct, frozen=True, gc=False):
    """Some clients of a frontend are led to another virtual server: which clients, and to which one.

    `audience` is LOCAL or a group of sources (`ruleset.schema`). Everybody else gets the frontend's own server. A
    client of several audiences is led by the view for its group.
    """

    audience: int
    server: FrontendKey


class Path(StrEnum):
    """Which way packets to a frontend go: through its virtual server, or by conntrack's DNAT alone."""

    IPVS = "ipvs"
    SHORT = "short"


IPVS_PATH, SHORT_PATH = Path
"""Looked up once: reading a member from its class takes Python 3.11 some 600 instructions."""


NO_DESTINATIONS: Mapping[Destination, DestinationAttributes] = {}


class GroupAdmission(msgspec.Struct, frozen=True, gc=False):
    """Which groups of local pods may connect to a frontend, and whether others are dropped or refused."""

    groups: tuple[int, ...]
    drops: bool = False


class Frontend(msgspec.Struct, frozen=True, gc=False):
    """One wanted frontend: its virtual server and everything the ruleset has about it.

    `views` lead new connections of some clients to other virtual servers: a Local policy has one for local pods
    and the node. `ranges` lists who may connect (empty: everybody). `bind` means that the address is a VIP we put
    on the node, `quiet` that no ARP is answered for it. `hairpins` are addresses of destinations that run on this
    node. `drain_seconds` is how long a destination that is no longer wanted may keep its connections, 0 without
    limit, UNTIL_POD_IS_GONE: as long as it is in `remaining`, all endpoints that the slices list; it is filled for
    that, and on the short path where not all are in use. `serving` (UDP only) are all endpoints of the Service
    port that serve, on whatever node, whether or not this frontend uses them. `destinations` are in the order in
    which a new server gets them. On the short path there is no server; `path_reason` states why a frontend is not
    on it that was to be. `internal` are the endpoints of its internal view there, which needs no other server and
    is none of `views`. `admission` is None where all local pods may connect. `ping` is what the Service asks for
    pings (`plan.ping`), empty for nothing. With `port_ranges` the port of `key` is 0, which stands for all ports
    in them. With `direct_return` destinations are reached through a tunnel and answer clients themselves.
    """

    key: FrontendKey
    server: ServerAttributes
    destinations: Mapping[Destination, DestinationAttributes]
    verdict: PacketVerdict
    masquerade: Masquerade = Masquerade.NEVER
    views: tuple[View, ...] = ()
    ranges: tuple[Cidr, ...] = ()
    bind: bool = False
    hairpins: tuple[bytes, ...] = ()
    health_check_port: int = 0
    drain_seconds: float = 0.0
    remaining: tuple[Destination, ...] = ()
    claim: Claim = Claim.ALLOCATED
    quiet: bool = False
    serving: tuple[Destination, ...] = ()
    admission: GroupAdmission | None = None
    path: Path = Path.IPVS
    path_reason: str = ""
    internal: Mapping[Destination, DestinationAttributes] = NO_DESTINATIONS
    ping: str = ""
    port_ranges: tuple[PortRange, ...] = ()
    direct_return: bool = False

    @property
    def balanced(self) -> Mapping[Destination, DestinationAttributes]:
        """The destinations that a virtual server of this frontend should have."""
        return NO_DESTINATIONS if self.path is SHORT_PATH else self.destinations

    @property
    def endpoints(self) -> dict[Destination, None]:
        """The endpoints that connections may lead to, as long as they may last; on the short path all of them."""
        return dict.fromkeys((*self.destinations, *self.internal, *self.remaining))

    @property
    def in_maintenance(self) -> frozenset[Destination]:
        """The destinations that get no new connections by an annotation."""
        return frozenset(d for d, attributes in self.destinations.items() if attributes.weight == 0)

    def server_for(self, audience: int) -> FrontendKey | None:
        """Return the virtual server that a view leads some clients to, None without such a view."""
        return next((view.server for view in self.views if view.audience == audience), None)

    def has_rules_of(self, other: "Frontend") -> bool:
        """Whether the ruleset and the VIPs are the same for both: most changes are of destinations only."""
        return (
            self.hairpins == other.hairpins
            and (self.path is IPVS_PATH or self._has_endpoints_of(other))
            and self.has_other_rules_of(other)
        )

    def has_other_rules_of(self, other: "Frontend") -> bool:
        """Whether the ruleset and the VIPs are the same for both, but for their endpoints."""
        return (
            self.verdict == other.verdict
            and self.masquerade == other.masquerade
            and self.views == other.views
            and self.ranges == other.ranges
            and self.admission == other.admission
            and self.bind == other.bind
            and self.health_check_port == other.health_check_port
            and self.path is other.path
            and (self.path is IPVS_PATH or self.server.scheduler == other.server.scheduler)
            and self.internal == other.internal
            and self.ping == other.ping
            and self.port_ranges == other.port_ranges
            and self.direct_return == other.direct_return
        )

    def _has_endpoints_of(self, other: "Frontend") -> bool:
        return self.destinations == other.destinations and self.remaining == other.remaining


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
    """A virtual server as the kernel has it, with its destinations."""

    server: ServerAttributes
    destinations: dict[Destination, DestinationAttributes]


@dataclass
class KernelState:
    """The shadow: what we know the kernel holds. Only the loop's thread changes it."""

    servers: dict[FrontendKey, ServerState] = field(default_factory=dict)
    vips: set[Vip] = field(default_factory=set)
    elements: dict[ElementKey, Value] = field(default_factory=dict)

    def everything(self) -> "Dirty":
        """Name all there is."""
        return Dirty(set(self.servers), {vip.address for vip in self.vips}, set(self.elements))


class Dirty(msgspec.Struct):
    """Names of kernel objects whose wanted state may differ from the shadow.

    `reasons` is what the kernel answered about those that have just failed; it is not kept with what is pending.
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
