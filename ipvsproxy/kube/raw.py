"""The fields of API objects that we read, named and nested as the API has them.

Everything not named here is skipped while parsing and never becomes a Python object. What they mean is decided
in `kube.service`, `kube.endpoint_slice` and `kube.node`.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrNone = Annotated[int, msgspec.Meta(ge=0, le=65535)]
NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Raw(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Base of everything read from the API."""


class Metadata(Raw, frozen=True, gc=False, rename="camel"):
    name: NonEmpty
    namespace: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Mapping[str, str] | None = None
    uid: str | None = None


class AnnotatedMetadata(Metadata, frozen=True, gc=False, rename="camel"):
    """`config.annotations` reads ours; one of a wrong type is no reason to refuse the object."""

    annotations: Mapping[str, Any] | None = None


class Identity(Raw, frozen=True, gc=False, rename="camel"):
    """As little as tells which object and version it is; a bookmark has a version only."""

    name: str | None = None
    namespace: str | None = None
    resource_version: str | None = None


class Meta(Raw, frozen=True, gc=False, rename="camel"):
    """What can be read even of an object that is refused."""

    metadata: Identity


class RawServicePort(Raw, frozen=True, gc=False, rename="camel"):
    port: PortNumber
    name: str | None = None
    protocol: str | None = None
    node_port: PortOrNone | None = None


class ClientIPConfig(Raw, frozen=True, gc=False, rename="camel"):
    timeout_seconds: int | None = None


class AffinityConfig(Raw, frozen=True, gc=False, rename="camel"):
    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(Raw, frozen=True, gc=False, rename="camel"):
    type: str | None = None
    cluster_ip: str | None = msgspec.field(default=None, name="clusterIP")
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    ip_families: tuple[str, ...] | None = None
    ports: tuple[RawServicePort, ...] | None = None
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    load_balancer_source_ranges: tuple[str, ...] | None = None
    external_traffic_policy: str | None = None
    internal_traffic_policy: str | None = None
    session_affinity: str | None = None
    session_affinity_config: AffinityConfig | None = None
    health_check_node_port: PortOrNone | None = None


class Ingress(Raw, frozen=True, gc=False, rename="camel"):
    ip: str | None = None
    ip_mode: str | None = None


class LoadBalancerStatus(Raw, frozen=True, gc=False, rename="camel"):
    ingress: tuple[Ingress, ...] | None = None


class ServiceStatus(Raw, frozen=True, gc=False, rename="camel"):
    load_balancer: LoadBalancerStatus | None = None


class RawService(Raw, frozen=True, gc=False, rename="camel"):
    metadata: AnnotatedMetadata
    spec: ServiceSpec
    status: ServiceStatus | None = None


class RawSlicePort(Raw, frozen=True, gc=False, rename="camel"):
    name: str | None = None
    protocol: str | None = None
    port: PortOrNone | None = None


class Conditions(Raw, frozen=True, gc=False, rename="camel"):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(Raw, frozen=True, gc=False, rename="camel"):
    name: str


class Hints(Raw, frozen=True, gc=False, rename="camel"):
    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class TargetRef(Raw, frozen=True, gc=False, rename="camel"):
    name: str | None = None


class RawEndpoint(Raw, frozen=True, gc=False, rename="camel"):
    addresses: tuple[str, ...] | None = None
    node_name: str | None = None
    conditions: Conditions | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None
    zone: str | None = None


class RawEndpointSlice(Raw, frozen=True, gc=False, rename="camel"):
    metadata: AnnotatedMetadata
    address_type: str | None = None
    ports: tuple[RawSlicePort, ...] | None = None
    endpoints: tuple[RawEndpoint, ...] | None = None


class NodeAddress(Raw, frozen=True, gc=False, rename="camel"):
    type: str
    address: str


class Taint(Raw, frozen=True, gc=False, rename="camel"):
    key: str


class NodeSpec(Raw, frozen=True, gc=False, rename="camel"):
    taints: tuple[Taint, ...] | None = None
    pod_cidr: str | None = msgspec.field(default=None, name="podCIDR")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(default=None, name="podCIDRs")


class NodeStatus(Raw, frozen=True, gc=False, rename="camel"):
    addresses: tuple[NodeAddress, ...] | None = None


class RawNode(Raw, frozen=True, gc=False, rename="camel"):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class RawNamespace(Raw, frozen=True, gc=False, rename="camel"):
    metadata: Metadata


class PodSpec(Raw, frozen=True, gc=False, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None


class PodIP(Raw, frozen=True, gc=False, rename="camel"):
    ip: str | None = None


class PodStatus(Raw, frozen=True, gc=False, rename="camel"):
    phase: str | None = None
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(default=None, name="podIPs")


class RawPod(Raw, frozen=True, gc=False, rename="camel"):
    metadata: Metadata
    spec: PodSpec | None = None
    status: PodStatus | None = None
