"""NodePorts on the loopback addresses of the node: which ones, and where each leads (`serve.relay`).

They lead to the ClusterIP, as a process of the node would connect to it. TCP only. Deterministic, no I/O.
"""

from collections.abc import Container, Mapping

from ipvsproxy.base.address import family
from ipvsproxy.plan.model import Protocol, Service

LOOPBACK = {4: b"\x7f\0\0\1", 6: bytes(15) + b"\1"}
SocketAddress = tuple[bytes, int]
"""A packed address and a port."""


def localhost_ports(service: Service, families: Container[int]) -> Mapping[SocketAddress, SocketAddress]:
    """Return where a Service answers on loopback addresses of some families, each with its ClusterIP and port."""
    return {
        (LOOPBACK[family(address)], port.node_port): (address, port.port)
        for address in service.cluster_ips
        if family(address) in families
        for port in service.ports
        if port.node_port and port.protocol is Protocol.TCP
    }
