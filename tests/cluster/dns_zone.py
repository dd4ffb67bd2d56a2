"""The names of a cluster, from its Services and EndpointSlices, after Kubernetes' DNS specification 1.1.0."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from tests.support.api_object import ApiObject

ZONE = "cluster.local"
SCHEMA_VERSION = "1.1.0"
FAMILIES = {4: "A", 6: "AAAA"}
_SERVICE_LABEL = "kubernetes.io/service-name"


class Record(NamedTuple):
    """One answer. `value`: an address, a name or a text; of SRV the name, with a port."""

    kind: str
    name: str
    value: str
    port: int = 0


class NamedEndpoint(NamedTuple):
    """One address behind a Service, with its name there."""

    ip: str
    hostname: str
    ports: list[ApiObject]


class Zone:
    """Answers from the objects of one moment."""

    def __init__(self, services: list[ApiObject], slices: list[ApiObject]) -> None:
        self._services = {(s["metadata"]["namespace"], s["metadata"]["name"]): s for s in services}
        self._slices = slices

    def records(self, name: str, kind: str) -> list[Record] | None:
        """The records of a name; None if there is no such name."""
        if name.endswith((".in-addr.arpa", ".ip6.arpa")):
            return self._pointers(name) or None
        if not name.endswith(f".{ZONE}"):
            return None
        found = self._below_zone(name, name.removesuffix(f".{ZONE}").split("."))
        if found is None or kind == "ANY":
            return found
        return [record for record in found if record.kind in (kind, "CNAME")]

    def _below_zone(self, name: str, labels: list[str]) -> list[Record] | None:
        match labels:
            case ["dns-version"]:
                return [Record("TXT", name, SCHEMA_VERSION)]
            case [address, _namespace, "pod"]:
                return _addresses(name, [_dashed(address)])
            case [*rest, service, namespace, "svc"] if (namespace, service) in self._services:
                return self._of_service(name, rest, self._services[namespace, service])
            case _:
                return None

    def _of_service(self, name: str, rest: list[str], service: ApiObject) -> list[Record] | None:
        spec = service["spec"]
        if spec.get("type") == "ExternalName":
            return self._external(name, spec["externalName"]) if not rest else None
        base = name.split(".", len(rest))[-1]
        headless = spec.get("clusterIP") == "None"
        match rest:
            case []:
                return self._plain(name, service, headless=headless) or (None if headless else [])
            case [port, protocol] if port.startswith("_") and protocol.startswith("_"):
                wanted = (port[1:], protocol[1:].upper())
                found = self._ports(name, base, service, headless=headless)
                return [record for is_named, record in found if is_named == wanted] or None
            case [hostname] if headless:
                ips = [each.ip for each in self._endpoints(service) if each.hostname == hostname]
                return _addresses(name, ips) or None
            case _:
                return None

    def _external(self, name: str, target: str) -> list[Record]:
        records = [Record("CNAME", name, target)]
        return records + (self.records(target.rstrip(".").lower(), "ANY") or [])

    def _plain(self, name: str, service: ApiObject, *, headless: bool) -> list[Record]:
        ips = (
            [each.ip for each in self._endpoints(service)] if headless else service["spec"].get("clusterIPs") or []
        )
        ports = [record for _, record in self._ports(name, name, service, headless=headless)]
        return _addresses(name, ips) + ports

    def _ports(
        self, name: str, base: str, service: ApiObject, *, headless: bool
    ) -> Iterator[tuple[tuple[str, str], Record]]:
        """Each port's name and protocol, with its SRV record."""
        if headless:
            for each in self._endpoints(service):
                for port in each.ports:
                    yield _port(port), Record("SRV", name, f"{each.hostname}.{base}", port["port"])
        else:
            for port in service["spec"].get("ports") or []:
                yield _port(port), Record("SRV", name, base, port["port"])

    def _endpoints(self, service: ApiObject) -> Iterator[NamedEndpoint]:
        meta = service["metadata"]
        everyone = service["spec"].get("publishNotReadyAddresses", False)
        for each in self._slices:
            labels = each["metadata"].get("labels") or {}
            if each["metadata"]["namespace"] == meta["namespace"] and labels.get(_SERVICE_LABEL) == meta["name"]:
                yield from _of_slice(each, everyone=everyone)

    def _pointers(self, name: str) -> list[Record]:
        ip = _reversed(name)
        found = []
        for (namespace, service), each in self._services.items():
            base = f"{service}.{namespace}.svc.{ZONE}"
            if ip in (each["spec"].get("clusterIPs") or []):
                found.append(Record("PTR", name, base))
            elif each["spec"].get("clusterIP") == "None":
                names = [endpoint.hostname for endpoint in self._endpoints(each) if endpoint.ip == ip]
                found += [Record("PTR", name, f"{hostname}.{base}") for hostname in names]
        return found


def _of_slice(each: ApiObject, *, everyone: bool) -> Iterator[NamedEndpoint]:
    for endpoint in each.get("endpoints") or []:
        if everyone or (endpoint.get("conditions") or {}).get("ready", True):
            for ip in endpoint["addresses"]:
                hostname = endpoint.get("hostname") or ip.replace(".", "-").replace(":", "-")
                yield NamedEndpoint(ip, hostname, each.get("ports") or [])


def _port(port: ApiObject) -> tuple[str, str]:
    return port.get("name") or "", port.get("protocol", "TCP")


def _addresses(name: str, ips: list[str]) -> list[Record]:
    unique = dict.fromkeys(ip for ip in ips if ip)
    return [Record(FAMILIES[ipaddress.ip_address(ip).version], name, ip) for ip in unique]


def _dashed(label: str) -> str:
    """The address of a pod's name; empty if it is none."""
    for text in (label.replace("-", "."), label.replace("-", ":")):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return ""


def _reversed(name: str) -> str:
    """The address of a name below arpa; empty if it is none."""
    if name.endswith(".in-addr.arpa"):
        text = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
    else:
        digits = "".join(reversed(name.removesuffix(".ip6.arpa").split(".")))
        text = ":".join(digits[at : at + 4] for at in range(0, len(digits), 4))
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""
