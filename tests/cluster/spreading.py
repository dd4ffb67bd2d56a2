"""How connections to load balancers are spread over nodes, as clouds do it: nftables, and a route for each node.

A new TCP connection gets a node by source, destination and ports; once the node has answered, the connection keeps
it, whatever health check ports say later. Each datagram gets a node in the same way. The mark of a packet is the
last byte of its node's address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

TABLE = "balancers"
FIRST_TABLE = 1000
"""Of routes: this one and the mark."""


def mark(node_ip: str) -> int:
    return ipaddress.ip_address(node_ip).packed[-1]


def routes(node_ip: str) -> list[list[str]]:
    """The words after `ip` that send marked packets to the node."""
    number, table = str(mark(node_ip)), str(FIRST_TABLE + mark(node_ip))
    return [
        ["rule", "add", "fwmark", number, "lookup", table],
        ["route", "add", "default", "via", node_ip, "table", table],
    ]


def ruleset(hops: Mapping[str, Iterable[str]]) -> str:
    """For `nft -f -`: nodes by the address of the load balancer; without a node, its packets are dropped."""
    lines = [f"table ip {TABLE}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    lines += [" chain output {", "  type route hook output priority mangle"]
    lines.append("  ct state established ct mark != 0 meta mark set ct mark accept")
    lines += [f"  ip daddr {ip} {_spread(list(nodes))}" for ip, nodes in sorted(hops.items())]
    lines += ["  meta l4proto tcp ct mark set meta mark", " }", "}"]
    return "\n".join(lines) + "\n"


def _spread(nodes: list[str]) -> str:
    if not nodes:
        return "drop"
    if len(nodes) == 1:
        return f"meta mark set {mark(nodes[0])}"
    entries = ", ".join(f"{number} : {mark(node)}" for number, node in enumerate(nodes))
    return f"meta mark set jhash ip saddr . ip daddr . th sport . th dport mod {len(nodes)} map {{ {entries} }}"
