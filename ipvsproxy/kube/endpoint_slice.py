"""An EndpointSlice of the API into a `plan.model.EndpointSlice`: contract sections 2 and 3.2."""

import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from ipvsproxy.base.address import MAPPED_PREFIX, family, parse_ip
from ipvsproxy.config import annotations
from ipvsproxy.kube.decoded import FAMILIES, Decoded, InvalidObject, first_few, protocol
from ipvsproxy.kube.defaults import NAMESPACE, PORT_NAME
from ipvsproxy.kube.raw import Conditions, RawEndpoint, RawEndpointSlice, RawSlicePort
from ipvsproxy.plan.model import Endpoint, EndpointSlice, SlicePort

HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ADDRESS_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
UNKNOWN = Conditions()
MOST_HINTS = 8
"""Zones, and nodes, that the API server takes as hints for one endpoint; each port looks through them."""


def build_slice(raw: RawEndpointSlice) -> Decoded:
    """Return the slice, None for one that a proxy cannot use. Raises InvalidObject."""
    labels = raw.metadata.labels or {}
    service = labels.get(SERVICE_NAME_LABEL, "")
    if HEADLESS_LABEL in labels:
        return Decoded(None, skipped=f"of a headless Service, by the label {HEADLESS_LABEL}")
    if raw.address_type == "FQDN":
        return Decoded(None, skipped="addressType FQDN: names are not proxied, only addresses")
    if not raw.address_type:
        raise InvalidObject("addressType", "missing; it is IPv4 or IPv6, and there is no default")
    if raw.address_type not in FAMILIES:
        raise InvalidObject("addressType", f"{raw.address_type!r} is none of IPv4, IPv6, FQDN")
    if not service:
        return Decoded(None, skipped=f"no label {SERVICE_NAME_LABEL}, which names the Service")
    complaints: list[str] = []
    misused: list[str] = []
    given = raw.metadata.annotations
    own = annotations.read(annotations.ENDPOINT_SLICE, given, misused) if given else {}
    namespace = raw.metadata.namespace or NAMESPACE
    wanted = FAMILIES[raw.address_type]
    built = EndpointSlice(
        namespace=namespace,
        name=raw.metadata.name,
        service=f"{namespace}/{service}",
        family=wanted,
        ports=_slice_ports(raw.ports or (), complaints),
        endpoints=_endpoints(raw.endpoints or (), wanted, complaints),
        misused=first_few(misused),
    )
    return Decoded(
        replace(built, **own) if own else built,
        first_few(misused + complaints),
        _trigger_time(given) if given else 0.0,
    )


def _trigger_time(annotations: Mapping[str, Any]) -> float:
    text = annotations.get(TRIGGER_TIME)
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _slice_ports(raw_ports: Sequence[RawSlicePort], complaints: list[str]) -> tuple[SlicePort, ...]:
    """Ports without a number are left out (contract 3.2)."""
    ports = []
    for index, raw in enumerate(raw_ports):
        if raw.port:
            number = protocol(raw.protocol, "ports", index)
            ports.append(SlicePort(sys.intern(raw.name or PORT_NAME), number, raw.port))
        else:
            complaints.append(f"ports[{index}].port: missing; the port is left out")
    return tuple(ports)


def _endpoints(raws: Sequence[RawEndpoint], wanted: int, complaints: list[str]) -> tuple[Endpoint, ...]:
    """Return the endpoints of a slice; those that cannot be used are complained about and left out."""
    try:
        found = _sound(raws, ADDRESS_FAMILIES[wanted])
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or (wanted == 6 and any(endpoint.address.startswith(MAPPED_PREFIX) for endpoint in found)):
        found = [_endpoint(*pair) for pair in _usable(raws, wanted, complaints)]
        complaints += [
            f"endpoints[{index}].addresses: only the first of {len(raw.addresses)} is used"
            for index, raw in enumerate(raws)
            if raw.addresses and len(raw.addresses) > 1
        ]
    return tuple(found)


def _sound(raws: Iterable[RawEndpoint], address_family: int) -> list[Endpoint]:
    """Return the endpoints of a slice with nothing unusual in it: each has one address, of the right family.

    Raises OSError, ValueError, TypeError for others.
    """
    found, parse = [], socket.inet_pton
    for raw in raws:
        (text,) = raw.addresses  # type: ignore[misc]
        found.append(_endpoint(parse(address_family, text), raw))
    return found


def _usable(
    raws: Iterable[RawEndpoint], wanted: int, complaints: list[str]
) -> Iterator[tuple[bytes, RawEndpoint]]:
    """Go through a slice with something unusual in it, endpoint by endpoint."""
    for index, raw in enumerate(raws):
        if not raw.addresses:
            complaints.append(f"endpoints[{index}].addresses: missing; left out")
            continue
        try:
            address = parse_ip(raw.addresses[0])
        except ValueError as error:
            complaints.append(f"endpoints[{index}].addresses[0]: {error}; left out")
            continue
        if family(address) != wanted:
            complaints.append(f"endpoints[{index}].addresses[0]: {raw.addresses[0]} is not IPv{wanted}; left out")
            continue
        yield address, raw


def _endpoint(address: bytes, raw: RawEndpoint) -> Endpoint:
    conditions, hints, target = raw.conditions or UNKNOWN, raw.hints, raw.target_ref
    intern = sys.intern
    return Endpoint(
        address,
        intern(raw.node_name or ""),
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        tuple(intern(hint.name) for hint in (hints.for_zones or ())[:MOST_HINTS]) if hints else (),
        tuple(intern(hint.name) for hint in (hints.for_nodes or ())[:MOST_HINTS]) if hints else (),
        (target.name or "") if target else "",
        intern(raw.zone or ""),
    )
