"""Objects of the Kubernetes API into the values of `plan.model`.

In: JSON bytes (the API) or already parsed mappings (manifests). Out: a `Decoded`: the value, or None for an
object that is right but not ours to proxy (headless, ExternalName, another proxy's), together with complaints
about parts that had to be left out. An object that cannot be understood raises `Refused`, which names the
field; it costs that object only.

Rules: contract sections 2, 3.1 and 3.2; the raw fields are named in `kube.raw`.
"""

import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

from ipvsproxy.address import MAPPED_PREFIX, Cidr, family, parse_cidr, parse_ip
from ipvsproxy.config.kinds import NANOSECONDS, BadValue, duration
from ipvsproxy.kube.inbox import Kind, Object
from ipvsproxy.kube.raw import (
    Conditions,
    Identity,
    Meta,
    Metadata,
    NodeSpec,
    RawEndpoint,
    RawEndpointSlice,
    RawNode,
    RawService,
    RawServicePort,
    RawSlicePort,
    ServiceMetadata,
    ServiceSpec,
)
from ipvsproxy.plan.model import Endpoint, EndpointSlice, Node, Protocol, Service, ServicePort, SlicePort

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
DEFAULT_AFFINITY_SECONDS = 10800
MAX_AFFINITY_SECONDS = 86400
FAMILIES = {"IPv4": 4, "IPv6": 6}
ADDRESS_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
UNKNOWN = Conditions()
LONGEST = 300
"""Characters of what is said about one part of an object."""
MOST_SAID = 5
NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?")
"""Of objects and namespaces, a little wider than the API server has it: they go into logs and events."""
LONGEST_NAME = 253
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"


class Refused(ValueError):
    """An object that cannot be used; `field` is its path, such as `spec.ports[0].port`."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = _short(field)
        self.reason = _short(reason)
        super().__init__(f"{self.field}: {self.reason}" if field else self.reason)


def _short(text: str) -> str:
    """Whatever an object holds, what is said about it fits into a line."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def _said(complaints: Sequence[str]) -> tuple[str, ...]:
    """Return the first complaints, and how many more there are: a slice can have a thousand bad endpoints."""
    if not complaints:
        return ()
    more = len(complaints) - MOST_SAID
    return (*map(_short, complaints[:MOST_SAID]), *([f"and {more} more"] if more > 0 else []))


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """A value (None: right, but not proxied) and complaints about what was left out of it.

    `triggered` is when the change of a pod behind this version began, in seconds since the epoch, 0 if unknown.
    """

    object: Object | None
    complaints: tuple[str, ...] = ()
    triggered: float = 0.0


def decode_json(kind: Kind, data: bytes | msgspec.Raw) -> Decoded:
    """Decode one object from JSON.

    Raises Refused when it cannot be used.
    """
    decode, build = _JSON_READERS[kind]
    try:
        return build(decode(data))
    except UNREADABLE as error:
        raise _refused(error) from None


def decode_mapping(kind: Kind, tree: Any) -> Decoded:
    """Decode one object from parsed YAML or JSON.

    Raises Refused when it cannot be used.
    """
    try:
        return _BUILDERS[kind](msgspec.convert(tree, _RAW_TYPES[kind]))
    except UNREADABLE as error:
        raise _refused(error) from None


def identify(data: Any) -> Identity:
    """Return name, namespace and version of an object that may be wrong elsewhere (JSON or a mapping).

    A bookmark has no name. Raises Refused when not even this much can be read.
    """
    try:
        if isinstance(data, bytes | msgspec.Raw):
            return _META_DECODER.decode(data).metadata
        return msgspec.convert(data, Meta).metadata
    except UNREADABLE as error:
        raise _refused(error) from None


def key_of(kind: Kind, metadata: Identity | Metadata) -> str:
    """Return `namespace/name`, or the name for kinds without a namespace.

    Raises Refused when there is no name, or one that the API server would not take.
    """
    if not metadata.name:
        raise Refused("metadata.name", "missing")
    for field, text in (("metadata.name", metadata.name), ("metadata.namespace", metadata.namespace)):
        if text and (len(text) > LONGEST_NAME or not NAME.fullmatch(text)):
            raise Refused(field, f"{_short(text)!r} is not a name")
    return metadata.name if kind is Kind.NODE else f"{metadata.namespace or 'default'}/{metadata.name}"


UNREADABLE = (msgspec.ValidationError, msgspec.DecodeError, UnicodeError, RecursionError)


def _refused(error: Exception) -> Refused:
    """Say what msgspec says in terms of a field."""
    if isinstance(error, msgspec.ValidationError):
        return Refused(*_field_and_reason(str(error)))
    return Refused("", "nested too deeply" if isinstance(error, RecursionError) else str(error))


def _field_and_reason(message: str) -> tuple[str, str]:
    """Take msgspec's message apart: "Expected `int` - at `$.spec.ports[0].port`".

    A wrong mapping key is shown as "- at `key` in `$.metadata.labels`".
    """
    reason, _, path = message.partition(" - at `")
    if path.startswith("key` in `"):
        reason, path = f"{reason} as a key", path.removeprefix("key` in `")
    return path.rstrip("`").removeprefix("$").removeprefix("."), reason


def _service(raw: RawService) -> Decoded:
    spec = raw.spec
    labels = raw.metadata.labels or {}
    if PROXY_NAME_LABEL in labels or spec.type == "ExternalName":
        return Decoded(None)
    cluster_ips = _cluster_ips(spec)
    if not cluster_ips:
        return Decoded(None)
    complaints: list[str] = []
    external_ips = _addresses("spec.externalIPs", spec.external_ips or (), complaints)
    ingress = (raw.status.load_balancer.ingress or ()) if raw.status and raw.status.load_balancer else ()
    vips = [entry.ip for entry in ingress if entry.ip and entry.ip_mode in (None, "VIP")]
    external_local = _external_local(spec)
    service = Service(
        namespace=raw.metadata.namespace or "default",
        name=raw.metadata.name,
        created=raw.metadata.creation_timestamp or "",
        cluster_ips=cluster_ips,
        ports=_service_ports(spec.ports or ()),
        external_ips=external_ips,
        load_balancer_ips=_addresses("status.loadBalancer.ingress", vips, complaints),
        source_ranges=_source_ranges(spec.load_balancer_source_ranges or (), complaints),
        external_local=external_local,
        internal_local=spec.internal_traffic_policy == "Local",
        affinity_seconds=_affinity(spec, complaints),
        health_check_port=_health_check_port(spec, complaints) if external_local else 0,
        uid=raw.metadata.uid or "",
        drain_seconds=_drain_timeout(raw.metadata, complaints),
    )
    return Decoded(service, _said(complaints))


def _cluster_ips(spec: ServiceSpec) -> tuple[bytes, ...]:
    """Return the ClusterIPs, one a family at most (contract 3.1, flows.json cluster_ip_by_family)."""
    texts = spec.cluster_ips or (spec.cluster_ip or "",)
    if not spec.ip_families:
        texts = (spec.cluster_ip or texts[0],)
    found: dict[str, bytes] = {}
    for name, text in zip(spec.ip_families or ("",), texts, strict=False):
        if text in ("", "None") or name in found or (name and name not in FAMILIES):
            continue
        address = _strict_address("spec.clusterIP", text)
        if name and family(address) != FAMILIES[name]:
            raise Refused("spec.clusterIPs", f"{text} is not {name}")
        found[name] = address
    return tuple(sorted(found.values(), key=len))


def _strict_address(field: str, text: str) -> bytes:
    try:
        return parse_ip(text)
    except ValueError as error:
        raise Refused(field, str(error)) from None


def _addresses(field: str, texts: Iterable[str], complaints: list[str]) -> tuple[bytes, ...]:
    if not texts:
        return ()
    found: dict[bytes, None] = {}
    for text in texts:
        if not text.strip():
            continue
        try:
            found[parse_ip(text.strip())] = None
        except ValueError as error:
            complaints.append(f"{field}: {error}; left out")
    return tuple(found)


def _source_ranges(texts: Iterable[str], complaints: list[str]) -> tuple[Cidr, ...]:
    """Return the ranges; a /0 opens its family, which then has none (contract 3.1)."""
    if not texts:
        return ()
    found: dict[Cidr, None] = {}
    for text in texts:
        try:
            found[parse_cidr(text.strip())] = None
        except ValueError as error:
            complaints.append(f"spec.loadBalancerSourceRanges: {error}; left out")
    if not found:
        # Nothing usable must not mean open to all: an empty range list would.
        raise Refused("spec.loadBalancerSourceRanges", "no entry is a CIDR")
    open_families = {family(cidr.network) for cidr in found if cidr.prefix == 0}
    return tuple(cidr for cidr in found if family(cidr.network) not in open_families)


def _service_ports(raw_ports: Iterable[RawServicePort]) -> tuple[ServicePort, ...]:
    ports: dict[tuple[str, Protocol], ServicePort] = {}
    for index, raw in enumerate(raw_ports):
        protocol = _protocol(f"spec.ports[{index}].protocol", raw.protocol)
        port = ServicePort(sys.intern(raw.name or ""), protocol, raw.port, raw.node_port or 0)
        if ports.setdefault((port.name, protocol), port) is not port:
            raise Refused(f"spec.ports[{index}]", f"name {port.name!r} is used twice for {protocol.name}")
    return tuple(ports.values())


def _protocol(field: str, text: str | None) -> Protocol:
    try:
        return Protocol[text or "TCP"]
    except KeyError:
        raise Refused(field, f"{text!r} is none of TCP, UDP, SCTP") from None


def _external_local(spec: ServiceSpec) -> bool:
    """Local counts only where the type makes the Service reachable from outside (contract 3.1)."""
    reachable = spec.type in ("NodePort", "LoadBalancer") or bool(spec.external_ips)
    return reachable and spec.external_traffic_policy == "Local"


def _affinity(spec: ServiceSpec, complaints: list[str]) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return DEFAULT_AFFINITY_SECONDS
    if 0 < seconds <= MAX_AFFINITY_SECONDS:
        return seconds
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    complaints.append(f"{field}: {seconds} is not within 1..{MAX_AFFINITY_SECONDS}; default used")
    return DEFAULT_AFFINITY_SECONDS


def _drain_timeout(metadata: ServiceMetadata, complaints: list[str]) -> float | None:
    """Return the Service's own drain timeout in seconds, None where the configured one counts."""
    value = metadata.annotations.drain_timeout if metadata.annotations else None
    if value is None:
        return None
    try:
        nanoseconds = duration(value) if isinstance(value, str) else -1
    except BadValue:
        nanoseconds = -1
    if nanoseconds >= 0:
        return nanoseconds / NANOSECONDS
    field = "metadata.annotations[ipvsproxy.io/drain-timeout]"
    complaints.append(f"{field}: {str(value)[:40]!r} is not a duration such as 30s or 1h; default used")
    return None


def _health_check_port(spec: ServiceSpec, complaints: list[str]) -> int:
    """Return the port of a Service with externalTrafficPolicy Local, where the API server has given it one."""
    if spec.type != "LoadBalancer":
        return 0
    if not spec.health_check_node_port:
        complaints.append("spec.healthCheckNodePort: missing; load balancers cannot ask who has endpoints")
    return spec.health_check_node_port or 0


def _slice(raw: RawEndpointSlice) -> Decoded:
    labels = raw.metadata.labels or {}
    service = labels.get(SERVICE_NAME_LABEL, "")
    if raw.address_type == "FQDN" or HEADLESS_LABEL in labels:
        return Decoded(None)
    if raw.address_type not in FAMILIES:
        raise Refused("addressType", f"{raw.address_type!r} is none of IPv4, IPv6, FQDN")
    if not service:
        return Decoded(None, (f"metadata.labels: no {SERVICE_NAME_LABEL}; slice ignored",))
    complaints: list[str] = []
    namespace = raw.metadata.namespace or "default"
    wanted = FAMILIES[raw.address_type]
    built = EndpointSlice(
        namespace=namespace,
        name=raw.metadata.name,
        service=f"{namespace}/{service}",
        family=wanted,
        ports=_slice_ports(raw.ports or ()),
        endpoints=tuple(_endpoints(raw.endpoints or (), wanted, complaints)),
    )
    return Decoded(built, _said(complaints), _trigger_time(raw))


def _trigger_time(raw: RawEndpointSlice) -> float:
    text = raw.metadata.annotations.trigger_time if raw.metadata.annotations else None
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _slice_ports(raw_ports: Iterable[RawSlicePort]) -> tuple[SlicePort, ...]:
    """Ports without a name or number are left out; an empty name is a name (contract 3.2)."""
    return tuple(
        SlicePort(sys.intern(raw.name), _protocol(f"ports[{index}].protocol", raw.protocol), raw.port)
        for index, raw in enumerate(raw_ports)
        if raw.name is not None and raw.port
    )


def _endpoints(raws: Sequence[RawEndpoint], wanted: int, complaints: list[str]) -> Iterable[Endpoint]:
    """Return the endpoints of a slice; those that cannot be used are complained about and left out."""
    try:
        pairs = [(socket.inet_pton(ADDRESS_FAMILIES[wanted], raw.addresses[0]), raw) for raw in raws]  # type: ignore[index]
    except (OSError, ValueError, TypeError, IndexError):
        pairs = list(_usable(raws, wanted, complaints))
    else:
        if wanted == 6 and any(address.startswith(MAPPED_PREFIX) for address, _ in pairs):
            pairs = list(_usable(raws, wanted, complaints))
    return [_endpoint(address, raw) for address, raw in pairs]


def _usable(
    raws: Iterable[RawEndpoint], wanted: int, complaints: list[str]
) -> Iterator[tuple[bytes, RawEndpoint]]:
    """Go through a slice with something unusual in it, endpoint by endpoint."""
    for index, raw in enumerate(raws):
        if not raw.addresses:
            continue
        try:
            address = parse_ip(raw.addresses[0])
        except ValueError as error:
            complaints.append(f"endpoints[{index}].addresses[0]: {error}; left out")
            continue
        if family(address) != wanted:
            complaints.append(f"endpoints[{index}].addresses[0]: {raw.addresses[0]} is of the other family")
            continue
        yield address, raw


def _endpoint(address: bytes, raw: RawEndpoint) -> Endpoint:
    conditions, hints = raw.conditions or UNKNOWN, raw.hints
    return Endpoint(
        address,
        sys.intern(raw.node_name or ""),
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        tuple(sys.intern(hint.name) for hint in hints.for_zones or ()) if hints else (),
        tuple(sys.intern(hint.name) for hint in hints.for_nodes or ()) if hints else (),
    )


def _node(raw: RawNode) -> Decoded:
    complaints: list[str] = []
    reported = (raw.status.addresses or ()) if raw.status else ()
    texts = [a.address for kind in ("InternalIP", "ExternalIP") for a in reported if a.type == kind]
    spec = raw.spec or NodeSpec()
    cidrs = spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ())
    node = Node(
        name=raw.metadata.name,
        addresses=_addresses("status.addresses", texts, complaints),
        pod_cidrs=tuple(_strict_cidr("spec.podCIDRs", text) for text in cidrs),
        zone=(raw.metadata.labels or {}).get(ZONE_LABEL, ""),
        eligible=not raw.metadata.deletion_timestamp
        and all(taint.key != DELETION_TAINT for taint in spec.taints or ()),
    )
    return Decoded(node, _said(complaints))


def _strict_cidr(field: str, text: str) -> Cidr:
    try:
        return parse_cidr(text)
    except ValueError as error:
        raise Refused(field, str(error)) from None


_RAW_TYPES: dict[Kind, Any] = {
    Kind.SERVICE: RawService,
    Kind.ENDPOINT_SLICE: RawEndpointSlice,
    Kind.NODE: RawNode,
}
_META_DECODER = msgspec.json.Decoder(Meta)
_BUILDERS: dict[Kind, Callable[[Any], Decoded]] = {
    Kind.SERVICE: _service,
    Kind.ENDPOINT_SLICE: _slice,
    Kind.NODE: _node,
}
_JSON_READERS = {kind: (msgspec.json.Decoder(type_).decode, _BUILDERS[kind]) for kind, type_ in _RAW_TYPES.items()}
