"""What the node's kernel holds, read without the proxy's code: IPVS servers, addresses; and a conntrack flush.

Files of /proc/net are read with the thread inside the namespace. `ip` is asked where /proc does not tell.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import pathlib
import socket
import struct

from tests.conformance.scenario_file import KUBE_IPVS0, endpoint_name
from tests.lab import netns

PROC_NET = pathlib.Path("/proc/thread-self/net")
NETLINK_NETFILTER = 12
CTNETLINK_DELETE = 1 << 8 | 2
NLM_F_REQUEST, NLM_F_ACK = 1, 4


@dataclasses.dataclass
class ListedServer:
    """One virtual server of /proc/net/ip_vs, named ADDRESS:PORT/PROTO; destinations with their weights."""

    name: str
    address: str
    flags: tuple[str, ...]
    destinations: dict[str, int] = dataclasses.field(default_factory=dict)


def servers(where: str) -> dict[str, ListedServer]:
    """Read all virtual servers of a namespace, but those by firewall mark."""
    with netns.inside(where):
        lines = (PROC_NET / "ip_vs").read_text().splitlines()
    found: dict[str, ListedServer] = {}
    current: ListedServer | None = None
    for line in lines[3:]:
        words = line.split()
        if words[0] == "->":
            if current:
                name = endpoint_name(*_hexadecimal(words[1]))
                current.destinations[name] = int(words[3])
        elif words[0] == "FWM":
            current = None
        else:
            host, port = _hexadecimal(words[1])
            current = ListedServer(f"{endpoint_name(host, port)}/{words[0]}", host, tuple(words[2:]))
            found[current.name] = current
    return found


def _hexadecimal(text: str) -> tuple[str, int]:
    """Read AC1E0029:0050 or [2001:0db8:...]:0050."""
    host, _, port = text.rpartition(":")
    number = ipaddress.IPv6Address(host.strip("[]")) if "[" in host else ipaddress.IPv4Address(int(host, 16))
    return str(number), int(port, 16)


def bound6(where: str) -> set[str]:
    """Read the IPv6 addresses on kube-ipvs0: one small file, fit for polling."""
    with netns.inside(where):
        rows = [line.split() for line in (PROC_NET / "if_inet6").read_text().splitlines()]
    return {str(ipaddress.IPv6Address(bytes.fromhex(row[0]))) for row in rows if row[5] == KUBE_IPVS0}


def bound(where: str) -> set[str]:
    """Read all addresses on kube-ipvs0, but link-local ones."""
    text = netns.run(where, ["ip", "-j", "address", "show", "dev", KUBE_IPVS0], check=False)
    infos = [info for link in json.loads(text or "[]") for info in link.get("addr_info", ())]
    return {info["local"] for info in infos if info["scope"] != "link"}


def flush_conntrack(where: str) -> None:
    """Forget all connections of the namespace."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
    header = struct.pack("=IHHII", 16 + len(body), CTNETLINK_DELETE, NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with netns.inside(where), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as channel:
        channel.settimeout(10)
        channel.send(header + body)
        channel.recv(4096)
