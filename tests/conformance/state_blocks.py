"""The `state` block of a scenario against the kernel.

Judged: `virtual_servers` (each is there, with these destinations), `bound_addresses` (exactly these VIPs, of the
scenario's family), `virtual_server_count` and the count without node addresses, `all_virtual_servers`
(persistence), `cluster_endpoints` and `local_endpoints` (the destinations of the ClusterIP's server). Not judged:
what only kube-proxy has (ipsets, the loopback set), metrics, and what is no kernel state.

The blocks tell of kube-proxy's own ipvs mode for one family. Servers of the other family, on the lab's own
addresses and on synthetic ports that no Service has are left out, as are those on loopback addresses, which no
Service gets here (docs/operations.md, addresses that Services do not get). Where a flow of the scenario says that
this mode differs from what is wanted, the flow is the judge and not the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.conformance.kernel_state import ListedServer, bound, servers
from tests.conformance.network import Network
from tests.conformance.scenario_file import LOOPBACKS, Scenario, address, parse_endpoint_name
from tests.support.api_object import ApiObject

TICKS = (1, 100, 250, 300, 1000)
StateFinding = tuple[str, object, object]


class KernelBlocks:
    """What there is of a scenario in the kernel, without what belongs to the lab."""

    def __init__(self, network: Network, scenario: Scenario, marker_prefix: str) -> None:
        self.scenario = scenario
        ports = _ports(scenario)
        self.servers = {
            name: server
            for name, server in servers(network.node).items()
            if self._mine(server.address, marker_prefix, network)
            and (int(name.rpartition("/")[0].rpartition(":")[2]) in ports)
        }
        self.bound = {text for text in bound(network.node) if self._mine(text, marker_prefix, network)}

    def _mine(self, text: str, marker_prefix: str, network: Network) -> bool:
        family = 6 if ":" in text else 4
        lab = network.node_addresses - self.scenario.node_addresses
        return family == self.scenario.family and text not in lab and not text.startswith(marker_prefix)


def _ports(scenario: Scenario) -> set[int]:
    ports = [port for service in scenario.services for port in service.get("ports") or ()]
    return {int(port[key]) for port in ports for key in ("port", "nodePort") if port.get(key)}


def check(kernel: KernelBlocks) -> tuple[list[StateFinding], int, int]:
    """Return what differs as (name, expected, seen), and how many facts were judged and how many not."""
    findings: list[StateFinding] = []
    judged = 0
    for key, wanted in kernel.scenario.state.items():
        rule = RULES.get(key)
        if rule is None:
            continue
        judged += 1
        findings += rule(kernel, wanted)
    return findings, judged, len(kernel.scenario.state) - judged


def _virtual_servers(kernel: KernelBlocks, wanted: ApiObject) -> Iterator[StateFinding]:
    disputed = {flow.frontend for flow in kernel.scenario.flows if flow.differs}
    for text, destinations in wanted.items():
        name, _, proto = text.partition("/")
        name = f"{parse_endpoint_name(name)}/{proto}"
        if name in disputed or _is_on_loopback(name):
            continue
        server = kernel.servers.get(name)
        expected = sorted(map(parse_endpoint_name, destinations))
        seen = _live(server) if server else "no such server"
        if seen != expected:
            yield f"virtual server {name}", expected, seen


def _is_on_loopback(name: str) -> bool:
    return name.rpartition(":")[0].strip("[]") in LOOPBACKS


def _live(server: ListedServer) -> list[str]:
    return sorted(name for name, weight in server.destinations.items() if weight > 0)


def _bound_addresses(kernel: KernelBlocks, wanted: list[str]) -> Iterator[StateFinding]:
    # What the host owns already is local without being bound.
    own = kernel.scenario.node_addresses | set(LOOPBACKS)
    expected = {address(text) for text in wanted} - own
    if kernel.bound - own != expected:
        yield "bound addresses", sorted(expected), sorted(kernel.bound - own)


def _count(kernel: KernelBlocks, wanted: int) -> Iterator[StateFinding]:
    refused = sum(map(_is_on_loopback, kernel.scenario.state.get("virtual_servers", ())))
    if len(kernel.servers) != wanted - refused:
        yield "number of virtual servers", wanted - refused, sorted(kernel.servers)


def _count_without_node(kernel: KernelBlocks, wanted: int) -> Iterator[StateFinding]:
    own = kernel.scenario.node_addresses
    found = [name for name, server in kernel.servers.items() if server.address not in own]
    if len(found) != wanted:
        yield "number of virtual servers without node addresses", wanted, sorted(found)


def _all_servers(kernel: KernelBlocks, wanted: ApiObject) -> Iterator[StateFinding]:
    if not wanted.get("persistent"):
        return
    for name, server in kernel.servers.items():
        if not _persists(server, wanted.get("timeout_s")):
            yield f"persistence of {name}", wanted, " ".join(server.flags)


def _persists(server: ListedServer, seconds: int | None) -> bool:
    """The file of /proc tells the timeout in ticks, of which kernels have 100, 250, 300 or 1000 a second."""
    if "persistent" not in server.flags:
        return False
    told = int(server.flags[server.flags.index("persistent") + 1])
    return seconds is None or told in {seconds * ticks for ticks in TICKS}


def _cluster_endpoints(kernel: KernelBlocks, wanted: list[str]) -> Iterator[StateFinding]:
    if not any(service.get("internalTrafficPolicy") == "Local" for service in kernel.scenario.services):
        yield from _cluster_ip_destinations(kernel, wanted)


def _local_endpoints(kernel: KernelBlocks, wanted: list[str]) -> Iterator[StateFinding]:
    if all(service.get("internalTrafficPolicy") == "Local" for service in kernel.scenario.services):
        yield from _cluster_ip_destinations(kernel, wanted)


def _cluster_ip_destinations(kernel: KernelBlocks, wanted: list[str]) -> Iterator[StateFinding]:
    addresses = {service.get("clusterIP") for service in kernel.scenario.services}
    expected = sorted(map(parse_endpoint_name, wanted))
    for name, server in kernel.servers.items():
        if server.address in addresses and _live(server) != expected:
            yield f"destinations of {name}", expected, _live(server)


RULES: dict[str, Callable[[KernelBlocks, object], Iterator[StateFinding]]] = {
    "virtual_servers": _virtual_servers,
    "bound_addresses": _bound_addresses,
    "virtual_server_count": _count,
    "ipvs_virtual_server_count_without_node_ips": _count_without_node,
    "all_virtual_servers": _all_servers,
    "cluster_endpoints": _cluster_endpoints,
    "local_endpoints": _local_endpoints,
}
