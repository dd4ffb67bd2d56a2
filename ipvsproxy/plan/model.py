"""What the API returns, as plain frozen values with only the fields a service proxy uses.

In: nothing; `kube.decode` builds these values, whatever the source of the objects. Out: `plan.planner` reads them.
Addresses are packed bytes (see `ipvsproxy.base.address`), so a Service or slice that differs only in fields we do
not use is equal to its predecessor and costs nothing.

The words are Kubernetes' words. The kernel's words are in `plan.state`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ipvsproxy.base.address import Cidr
from ipvsproxy.base.frontend import Protocol as Protocol  # noqa: PLC0414 - one of the words of the API


class ServicePort(msgspec.Struct, frozen=True, gc=False):
    """One entry of `spec.ports`. `node_port` 0 means none."""

    name: str
    protocol: Protocol
    port: int
    node_port: int = 0


class Service(msgspec.Struct, frozen=True, gc=False):
    """A Service that wants to be proxied: neither headless nor ExternalName (contract 2, 3.1).

    `cluster_ips` holds at most one address a family. `source_ranges` is empty for "open", per family.
    `affinity_seconds` 0 means no session affinity. `external_local` is already false where the Service is not
    externally reachable by its type. `drain_seconds` is how long removed endpoints may keep their connections:
    None as configured, 0 without limit, UNTIL_POD_IS_GONE for as long as their pods are there. `scheduler` is
    empty for the configured one. With `one_packet` every UDP packet is balanced by itself. `weights` are those of
    pods by name, or by the beginning of a name and `*`. `max_connections` are those from which on an endpoint gets
    no more, and below which it gets some again: 0 and 0 without a limit. `same_zone_weight` multiplies the weights
    of endpoints in the node's zone. `scheduler_flags` are names of `plan.server.FLAGS`, None for those that the
    scheduler has of itself. `affinity_prefixes` are lengths for IPv4 and IPv6, 0 for the whole address. In
    `slow_start_seconds` a new endpoint comes to its whole weight. `share_with` are tenants whose pods may connect,
    `*` for all. With `tenant_dns` it is the DNS of its tenant. `ping` is what `plan.ping` knows, empty for
    nothing, `affinity_engine` a persistence engine of IPVS. `forwarding` is the kind of tunnel in which packets go
    to endpoints, which then answer clients directly, empty for none. `affinity_scope` is "service" for one
    affinity for all ports. `port_ranges` are protocol, first and last port of each range, in order. `annotated`
    are the fields here that annotations of its own have given. `misused` are complaints about annotations that do
    not count.
    """

    namespace: str
    name: str
    created: str
    cluster_ips: tuple[bytes, ...]
    ports: tuple[ServicePort, ...]
    external_ips: tuple[bytes, ...] = ()
    load_balancer_ips: tuple[bytes, ...] = ()
    source_ranges: tuple[Cidr, ...] = ()
    external_local: bool = False
    internal_local: bool = False
    affinity_seconds: int = 0
    health_check_port: int = 0
    uid: str = ""
    drain_seconds: float | None = None
    scheduler: str = ""
    one_packet: bool = False
    weights: tuple[tuple[str, int], ...] = ()
    max_connections: tuple[int, int] = (0, 0)
    same_zone_weight: int = 1
    scheduler_flags: tuple[str, ...] | None = None
    affinity_prefixes: tuple[int, int] = (0, 0)
    slow_start_seconds: float = 0.0
    data_path: str = ""
    share_with: tuple[str, ...] = ()
    tenant_dns: bool = False
    ping: str = ""
    affinity_engine: str = ""
    affinity_scope: str = ""
    forwarding: str = ""
    port_ranges: tuple[tuple[Protocol, int, int], ...] = ()
    annotated: tuple[str, ...] = ()
    misused: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Service":
        """Return it with defaults for the fields that annotations give, where its own have not given them."""
        missing = {field: value for field, value in defaults.items() if field not in self.annotated}
        return msgspec.structs.replace(self, **missing) if missing else self


class SlicePort(msgspec.Struct, frozen=True, gc=False):
    """One usable entry of an EndpointSlice's `ports`."""

    name: str
    protocol: Protocol
    port: int


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a slice: its first address and the conditions after defaulting (contract 3.2).

    `name` is that of its pod, `zone` that of its node, each empty where the slice names none.
    """

    address: bytes
    node: str = ""
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    zone_hints: tuple[str, ...] = ()
    node_hints: tuple[str, ...] = ()
    name: str = ""
    zone: str = ""


class EndpointSlice(msgspec.Struct, frozen=True, gc=False):
    """A slice that belongs to a Service; `service` is `namespace/name` of it, `family` is 4 or 6.

    `weights` are as a Service has them, `weight` is that of endpoints that they do not name, -1 for none.
    `misused` are complaints about annotations that do not count.
    """

    namespace: str
    name: str
    service: str
    family: int
    ports: tuple[SlicePort, ...]
    endpoints: tuple[Endpoint, ...]
    weights: tuple[tuple[str, int], ...] = ()
    weight: int = -1
    misused: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"


class Node(msgspec.Struct, frozen=True, gc=False):
    """The facts of a Node object: `addresses` are InternalIPs, then ExternalIPs, in order (contract 1.11).

    `eligible` is whether load balancers may send traffic to it: it is not about to be deleted (contract 5.1).
    """

    name: str
    addresses: tuple[bytes, ...] = ()
    pod_cidrs: tuple[Cidr, ...] = ()
    zone: str = ""
    eligible: bool = True

    @property
    def key(self) -> str:
        """Return the name: nodes have no namespace."""
        return self.name


class Namespace(msgspec.Struct, frozen=True, gc=False):
    """A Namespace: one of its labels may name a tenant."""

    name: str
    labels: Mapping[str, str] = {}

    @property
    def key(self) -> str:
        """Return the name: namespaces have no namespace."""
        return self.name


class Pod(msgspec.Struct, frozen=True, gc=False):
    """A pod with addresses of its own, which are none of its node's and none that it has given back."""

    namespace: str
    name: str
    node: str
    addresses: tuple[bytes, ...]

    @property
    def key(self) -> str:
        """Return `namespace/name`."""
        return f"{self.namespace}/{self.name}"
