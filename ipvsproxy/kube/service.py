"""A Service of the API into a `plan.model.Service`: contract sections 2 and 3.1."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec.structs import replace

from ipvsproxy.base.address import Cidr, family, parse_cidr, parse_ip
from ipvsproxy.config import annotations
from ipvsproxy.kube.decoded import FAMILIES, Decoded, InvalidObject, addresses, first_few, protocol, short
from ipvsproxy.kube.defaults import (
    AFFINITY_SECONDS,
    EXTERNAL_NAME,
    HEADLESS,
    HEADLESS_SERVICE,
    NAMESPACE,
    PORT_NAME,
    cluster_ips,
    family_name,
    unset,
)
from ipvsproxy.kube.raw import RawService, RawServicePort, ServiceSpec, ServiceStatus
from ipvsproxy.plan.model import Protocol, Service, ServicePort

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
MAX_AFFINITY_SECONDS = 86400
NO_CLIENT = {4: Cidr(bytes(4), 32), 6: Cidr(bytes(16), 128)}
"""Ranges that no client is in: a packet to a Service cannot have an unspecified source."""


def build_service(raw: RawService) -> Decoded:
    """Return the Service, None for one that is not proxied. Raises InvalidObject."""
    spec = raw.spec
    texts = cluster_ips(spec)
    reason = _not_proxied(raw, texts)
    if reason:
        return Decoded(None, skipped=reason)
    complaints = unset(spec, texts)
    ips = _cluster_ips(spec, texts, complaints)
    if not ips:
        return Decoded(None, first_few(complaints), skipped="it has no ClusterIP")
    external_ips = addresses("spec.externalIPs", spec.external_ips or (), complaints)
    vips = _given_addresses(raw.status) if raw.status else ()
    affinity_seconds = _affinity(spec, complaints)
    misused: list[str] = []
    own = _annotated(raw, affinity_seconds, misused) if raw.metadata.annotations else {}
    is_local: bool = own.pop(annotations.IS_LOCAL, False)
    has_policy = spec.external_traffic_policy == "Local"
    external_local = _is_reachable(spec) and (is_local or has_policy)
    service = Service(
        raw.metadata.namespace or NAMESPACE,
        raw.metadata.name,
        raw.metadata.creation_timestamp or "",
        cluster_ips=ips,
        ports=_service_ports(spec.ports or ()),
        external_ips=external_ips,
        load_balancer_ips=addresses("status.loadBalancer.ingress", vips, complaints),
        source_ranges=_source_ranges(spec.load_balancer_source_ranges or (), complaints),
        external_local=external_local,
        internal_local=is_local or spec.internal_traffic_policy == "Local",
        affinity_seconds=affinity_seconds,
        health_check_port=_health_check_port(spec, complaints) if external_local and has_policy else 0,
        uid=raw.metadata.uid or "",
        misused=first_few(misused),
        annotated=tuple(own),
    )
    return Decoded(replace(service, **own) if own else service, first_few(misused + complaints))


def _not_proxied(raw: RawService, texts: Sequence[str]) -> str:
    """Return why a Service with some ClusterIPs is left to others, empty if it is not."""
    labels = raw.metadata.labels or {}
    if PROXY_NAME_LABEL in labels:
        return f"the label {PROXY_NAME_LABEL} leaves it to {short(labels[PROXY_NAME_LABEL]) or 'another proxy'}"
    if raw.spec.type == EXTERNAL_NAME:
        return "type ExternalName: a name of the DNS, nothing to proxy"
    if HEADLESS in texts[:1]:
        return HEADLESS_SERVICE
    return ""


def _given_addresses(status: ServiceStatus) -> Sequence[str]:
    """Return the addresses at which a load balancer has packets for them sent to nodes as they are."""
    ingress = status.load_balancer.ingress if status.load_balancer else None
    return [entry.ip for entry in ingress if entry.ip and entry.ip_mode in (None, "VIP")] if ingress else ()


def _cluster_ips(spec: ServiceSpec, texts: Sequence[str], complaints: list[str]) -> tuple[bytes, ...]:
    """Return the ClusterIPs, one a family at most (contract 3.1, flows.json cluster_ip_by_family)."""
    if spec.cluster_ip and texts[0] != spec.cluster_ip:
        complaints.append(
            f"spec.clusterIP: {spec.cluster_ip} is not spec.clusterIPs[0], {texts[0]}, which is used"
        )
    found: dict[str, bytes] = {}
    for name, text in zip(spec.ip_families or map(family_name, texts), texts, strict=False):
        if text == HEADLESS or name in found or (name and name not in FAMILIES):
            continue
        address = _strict_address("spec.clusterIP", text)
        if name and family(address) != FAMILIES[name]:
            raise InvalidObject("spec.clusterIPs", f"{text} is not {name}")
        found[name] = address
    return tuple(sorted(found.values(), key=len))


def _strict_address(field: str, text: str) -> bytes:
    try:
        return parse_ip(text)
    except ValueError as error:
        raise InvalidObject(field, str(error)) from None


def _source_ranges(texts: Iterable[str], complaints: list[str]) -> tuple[Cidr, ...]:
    """Return the ranges; a /0 opens its family, which then has none (contract 3.1)."""
    if not texts:
        return ()
    found: dict[Cidr, None] = {}
    unreadable: set[int] = set()
    for text in texts:
        try:
            found[parse_cidr(text.strip())] = None
        except ValueError as error:
            unreadable |= _meant_families(text)
            complaints.append(f"spec.loadBalancerSourceRanges: {error}; left out")
    if not found:
        # Nothing usable must not mean open to all: an empty range list would.
        raise InvalidObject("spec.loadBalancerSourceRanges", "no entry is a CIDR")
    open_families = {family(cidr.network) for cidr in found if cidr.prefix == 0}
    ranges = [cidr for cidr in found if family(cidr.network) not in open_families]
    for number in sorted(unreadable - {family(cidr.network) for cidr in found}):
        # First, so that a long list of complaints does not hide it.
        complaints.insert(
            0, f"spec.loadBalancerSourceRanges: no readable range of IPv{number}; it is shut for all"
        )
        ranges.append(NO_CLIENT[number])
    return tuple(ranges)


def _meant_families(text: str) -> set[int]:
    """Return the families that an unreadable range may have been meant for."""
    if ":" in text:
        return {6}
    return {4} if "." in text else {4, 6}


def _service_ports(raw_ports: Iterable[RawServicePort]) -> tuple[ServicePort, ...]:
    ports = tuple(
        ServicePort(
            sys.intern(raw.name or PORT_NAME),
            protocol(raw.protocol, "spec.ports", index),
            raw.port,
            raw.node_port or 0,
        )
        for index, raw in enumerate(raw_ports)
    )
    if len(ports) > 1:
        _refuse_repetitions(ports)
    return ports


def _refuse_repetitions(ports: Iterable[ServicePort]) -> None:
    """The API server takes no two ports with one name, number or nodePort: only one of them could be served."""
    seen: set[tuple[str, Protocol, str | int]] = set()
    for index, port in enumerate(ports):
        for field, value in (("name", port.name), ("port", port.port), ("nodePort", port.node_port)):
            if value != 0 and (field, port.protocol, value) in seen:
                raise InvalidObject(
                    f"spec.ports[{index}].{field}", f"{value!r} is used twice for {port.protocol.name}"
                )
            seen.add((field, port.protocol, value))


def _is_reachable(spec: ServiceSpec) -> bool:
    """A Local policy counts only where the type makes the Service reachable from outside (contract 3.1)."""
    return spec.type in ("NodePort", "LoadBalancer") or bool(spec.external_ips)


def _affinity(spec: ServiceSpec, complaints: list[str]) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is None:
        return AFFINITY_SECONDS
    if 0 < seconds <= MAX_AFFINITY_SECONDS:
        return seconds
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    complaints.append(f"{field}: {seconds} is not within 1..{MAX_AFFINITY_SECONDS}; default used")
    return AFFINITY_SECONDS


def _annotated(raw: RawService, affinity_seconds: int, complaints: list[str]) -> dict[str, Any]:
    """Return what annotations give, by the field of Service."""
    own = annotations.read(annotations.SERVICE, raw.metadata.annotations, complaints)
    if own.get("one_packet") and affinity_seconds:
        problem = "contradicts sessionAffinity ClientIP; left out"
        complaints.append(annotations.misused(f"{annotations.PREFIX}one-packet", "true", problem))
        del own["one_packet"]
    return own


def _health_check_port(spec: ServiceSpec, complaints: list[str]) -> int:
    """Return the port of a Service with externalTrafficPolicy Local, where the API server has given it one."""
    if spec.type != "LoadBalancer":
        return 0
    if not spec.health_check_node_port:
        complaints.append("spec.healthCheckNodePort: missing; load balancers cannot ask who has endpoints")
    return spec.health_check_node_port or 0
