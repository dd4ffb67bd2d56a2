"""A file of packet-flow scenarios, read liberally: unknown keys are ignored, missing ones have defaults.

The format is described by the file itself (`conventions`). Addresses are compared in one spelling, so
everything that comes from a file passes `address` or `endpoint_name` first.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import pathlib
from collections.abc import Iterable, Mapping

from tests.support.api_object import ApiObject

DEFAULT_NODE = "node"
LOOPBACKS = ("127.0.0.1", "::1")
KUBE_IPVS0 = "kube-ipvs0"
SENDERS = ("pod", "remote-pod", "node", "external", "localhost")


class Unusable(ValueError):
    """The file is not one of flows."""


@dataclasses.dataclass(frozen=True)
class Flow:
    """Who sends what where, and what must come of it. `by_others`: by the rules of another program."""

    id: str
    name: str
    sender: str
    source: str
    address: str
    port: int
    proto: str
    expect: str
    endpoints: frozenset[str] = frozenset()
    masquerade: bool | None = None
    masquerade_by_endpoint: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    sticky: bool = False
    repeat: int = 0
    differs: bool = False
    by_others: bool = False

    @property
    def frontend(self) -> str:
        return f"{endpoint_name(self.address, self.port)}/{self.proto.upper()}"

    @property
    def family(self) -> int:
        return 6 if ":" in self.address else 4


@dataclasses.dataclass(frozen=True)
class ScenarioEndpoint:
    """One address of a Service's slices, with its ports as (name, number, proto)."""

    service: str
    address: str
    local: bool
    node: str | None
    ports: tuple[tuple[str, int, str], ...]
    raw: ApiObject


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A node, its configuration, Services, endpoints and flows.

    `host_rules` are an addition to the format: nftables rules of another program on the node. So are `namespaces`,
    by name with their labels, and `pods` of the node: {"namespace", "name", "address"}.
    """

    id: str
    family: int
    node: ApiObject
    config: ApiObject
    services: tuple[ApiObject, ...]
    endpoints: tuple[ScenarioEndpoint, ...]
    flows: tuple[Flow, ...]
    state: ApiObject
    host_rules: str = ""
    namespaces: ApiObject = dataclasses.field(default_factory=dict)
    pods: tuple[ApiObject, ...] = ()

    def on(self, data_path: str) -> Scenario:
        """Return the scenario with this setting of the data path."""
        return dataclasses.replace(self, config={**self.config, "dataPath": data_path})

    @property
    def node_name(self) -> str:
        return str(self.node.get("name") or DEFAULT_NODE)

    @property
    def interfaces(self) -> dict[str, list[str]]:
        links = self.node.get("interfaces") or {}
        mine = {name: texts or () for name, texts in links.items() if name != KUBE_IPVS0}
        return {name: [address(text) for text in texts] for name, texts in mine.items()}

    @property
    def node_addresses(self) -> frozenset[str]:
        """What the host itself owns, loopback included."""
        listed = (text for texts in self.interfaces.values() for text in texts)
        return frozenset((*listed, *LOOPBACKS))

    @property
    def health_ports(self) -> frozenset[int]:
        return frozenset(s["healthCheckNodePort"] for s in self.services if s.get("healthCheckNodePort"))

    def with_flows(self, flows: Iterable[Flow]) -> Scenario:
        return dataclasses.replace(self, flows=tuple(flows))

    def addresses(self) -> set[str]:
        """Every address that packets of this scenario bear, before and after NAT."""
        of_flows = {text for flow in self.flows for text in (flow.source, flow.address)}
        return of_flows | {e.address for e in self.endpoints} | self.node_addresses


def address(text: str) -> str:
    """Return an address in its usual spelling; a prefix length is cut off."""
    return str(ipaddress.ip_address(text.strip().split("/")[0]))


def endpoint_name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_endpoint_name(text: str) -> str:
    """Return ADDRESS:PORT or [ADDRESS]:PORT in the usual spelling."""
    host, _, port = text.rpartition(":")
    return endpoint_name(address(host.strip("[]")), int(port))


def load(path: pathlib.Path) -> list[Scenario]:
    """Read a file. Raises Unusable and OSError."""
    try:
        content = json.loads(path.read_text())
        return [_scenario(raw) for raw in content["scenarios"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{path}: {type(error).__name__}: {error}") from error


def _scenario(raw: ApiObject) -> Scenario:
    node = raw.get("node") or {}
    flows = [_flow(flow, raw["id"], number) for number, flow in enumerate(raw.get("flows") or (), 1)]
    name = node.get("name") or DEFAULT_NODE
    return Scenario(
        id=raw["id"],
        family=6 if "6" in str(raw.get("family", "")) else 4,
        node=node,
        config=raw.get("config") or {},
        services=tuple(raw.get("services") or ()),
        endpoints=tuple(_endpoint(entry, name) for entry in raw.get("endpoints") or () if _has_ip(entry)),
        flows=tuple(flows),
        state=raw.get("state") or {},
        host_rules=raw.get("host_rules") or "",
        namespaces=raw.get("namespaces") or {},
        pods=tuple(raw.get("pods") or ()),
    )


def _flow(raw: ApiObject, scenario: str, number: int) -> Flow:
    by_endpoint = raw.get("masquerade_by_endpoint") or {}
    sender, target = raw.get("from"), address(raw["dst_ip"])
    # Processes of the node get their source from the kernel anyway.
    source = raw.get("src_ip") or LOOPBACKS[":" in target]
    return Flow(
        id=raw.get("id") or f"{scenario}/{number:02}",
        name=raw.get("name", ""),
        sender=sender if sender in SENDERS else "external",
        source=address(source),
        address=target,
        port=int(raw["dst_port"]),
        proto=(raw.get("proto") or "TCP").lower(),
        expect=raw["expect"],
        endpoints=frozenset(map(parse_endpoint_name, raw.get("endpoints") or ())),
        masquerade=raw.get("masquerade"),
        masquerade_by_endpoint={parse_endpoint_name(key): value for key, value in by_endpoint.items()},
        sticky=bool((raw.get("affinity") or {}).get("sticky")),
        repeat=int(raw.get("repeat") or 0),
        differs=bool(raw.get("differs")),
        by_others=bool(raw.get("by_others")),
    )


def _has_ip(raw: ApiObject) -> bool:
    try:
        address(raw["address"])
    except ValueError:
        return False
    return True


def _endpoint(raw: ApiObject, node: str) -> ScenarioEndpoint:
    told = raw.get("ports") or ()
    ports = [(p.get("name") or "", p.get("port"), (p.get("protocol") or "TCP").lower()) for p in told]
    return ScenarioEndpoint(
        service=raw["service"],
        address=address(raw["address"]),
        local=bool(raw.get("local", raw.get("node") == node)),
        node=raw.get("node"),
        ports=tuple((name, number, proto) for name, number, proto in ports if number),
        raw=raw,
    )
