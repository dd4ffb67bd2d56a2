"""A node as a kube-proxy leaves it, in each of its modes, made with the tools that it uses itself.

Written from contract 9.1 to 9.3: names, jumps, and the rules that decide about packets, for one Service of two
endpoints. Beside them stand rules of the kubelet and of other programs, which nobody but they may touch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import Destination, FrontendKey, ServerAttributes
from tests.lab import netns
from tests.lab.lab import Lab, LabHost, LabNode

TCP = 6
TOOLS = ("tool:iptables-restore", "tool:ip6tables-restore", "tool:ipset", "tool:ipvsadm", "tool:nft")
FOREIGN_SET = "OTHERS"
# A FORWARD chain that drops: replies pass by kube-proxy's rules, then by ours. Neighbours must find each other,
# and the network plugin lets pods open connections, no more than that.
FOREIGN = """*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 9999 -m comment --comment "of the operator" -j ACCEPT
-A INPUT -j KUBE-ROUTER-INPUT
-A FORWARD -p ipv6-icmp -j ACCEPT
-A FORWARD -i cni0 -m conntrack --ctstate NEW -m comment --comment "of the network plugin" -j ACCEPT
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-DROP - [0:0]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -p tcp -m tcp --dport 4444 -j CNI-HOSTPORT
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
"""
COMMON_NAT = """-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
"""
FORWARD = """-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""


@dataclasses.dataclass(frozen=True)
class Served:
    """The Service as the proxies of a node see it, in one family."""

    family: int
    cluster_ip: str
    balancer: str
    node_port: int
    node_addresses: tuple[str, ...]
    pods: tuple[LabHost, ...]
    cluster_cidr: str

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(pod.address(self.family) for pod in self.pods)

    @property
    def frontends(self) -> list[tuple[str, int]]:
        return [(self.cluster_ip, 80), (self.balancer, 80), *((a, self.node_port) for a in self.node_addresses)]

    @property
    def program(self) -> str:
        return "iptables" if self.family == 4 else "ip6tables"

    @property
    def table(self) -> str:
        return "ip" if self.family == 4 else "ip6"


def _chains(table: str, names: str, rules: str) -> str:
    declared = "".join(f":{name} - [0:0]\n" for name in names.split())
    return f"*{table}\n{declared}{rules}COMMIT\n"


def leave_foreign(lab: Lab, node: LabNode) -> None:
    """Put what belongs to others on the node."""
    for program in ("iptables", "ip6tables"):
        lab.run(node, [f"{program}-restore", "-n"], FOREIGN)
    lab.run(node, ["ipset", "create", FOREIGN_SET, "hash:ip"])
    lab.run(node, ["ipvsadm", "-A", "-f", "77", "-s", "wlc"])


def leave_ipvs_mode(lab: Lab, node: LabNode, served: Sequence[Served]) -> None:
    """Virtual servers, kube-ipvs0 with the VIPs, ipsets and rules."""
    lab.run(node, ["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
    netns.set_sysctls(node.netns, {"net/ipv4/vs/conntrack": 1})
    with netns.inside(node.netns):
        ipvs = Ipvs()
        for one in served:
            steps = [_server(one, *frontend) for frontend in one.frontends]
            assert ipvs.apply(steps) == []
        ipvs.close()
    finish_ipvs_mode(lab, node, served)


def finish_ipvs_mode(lab: Lab, node: LabNode, served: Sequence[Served]) -> None:
    """VIPs, ipsets and rules, where servers and kube-ipvs0 are there already."""
    for one in served:
        length = 32 if one.family == 4 else 128
        for vip in (one.cluster_ip, one.balancer):
            lab.run(node, ["ip", "address", "replace", f"{vip}/{length}", "dev", "kube-ipvs0"])
    for one in served:
        lab.run(node, ["ipset", "restore"], _sets(one))
        lab.run(node, [f"{one.program}-restore", "-n"], _ipvs_rules(one))


def _server(served: Served, address: str, port: int) -> IpvsStep:
    key = FrontendKey(parse_ip(address), TCP, port)
    destinations = tuple(Destination(parse_ip(endpoint), 8080) for endpoint in served.endpoints)
    return IpvsStep(Verb.NEW_SERVICE, key, ServerAttributes("rr", 0, 0), destinations)


def _sets(served: Served) -> str:
    prefix, family = ("KUBE-", "inet") if served.family == 4 else ("KUBE-6-", "inet6")
    kinds = {
        "LOOP-BACK": "hash:ip,port,ip", "CLUSTER-IP": "hash:ip,port", "EXTERNAL-IP": "hash:ip,port",
        "EXTERNAL-IP-LOCAL": "hash:ip,port", "LOAD-BALANCER": "hash:ip,port", "LOAD-BALANCER-FW": "hash:ip,port",
        "LOAD-BALANCER-LOCAL": "hash:ip,port", "LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
        "LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip", "NODE-PORT-SCTP-HASH": "hash:ip,port",
        "NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port", "IPVS-IPS": "hash:ip",
    }  # fmt: skip
    ports = "NODE-PORT-TCP NODE-PORT-LOCAL-TCP NODE-PORT-UDP NODE-PORT-LOCAL-UDP HEALTH-CHECK-NODE-PORT"
    lines = [f"create {prefix + name} {kind} family {family}" for name, kind in kinds.items()]
    lines += [f"create {prefix + name} bitmap:port range 0-65535" for name in ports.split()]
    lines += [f"add {prefix}LOOP-BACK {e},tcp:8080,{e}" for e in served.endpoints]
    lines += [f"add {prefix}CLUSTER-IP {served.cluster_ip},tcp:80"]
    lines += [f"add {prefix}LOAD-BALANCER {served.balancer},tcp:80"]
    lines += [f"add {prefix}IPVS-IPS {vip}" for vip in (served.cluster_ip, served.balancer)]
    lines += [f"add {prefix}NODE-PORT-TCP {served.node_port}"]
    return re.sub(r"KUBE-\S+", lambda name: name[0][:31], "\n".join(lines)) + "\n"


def _ipvs_rules(served: Served) -> str:
    loopback = "127.0.0.0/8" if served.family == 4 else "::1/128"
    nat = f"""-A KUBE-SERVICES -s {loopback} -j RETURN
-A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES ! -s {served.cluster_cidr} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
{COMMON_NAT}"""
    guard = """-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A KUBE-IPVS-FILTER -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
-A KUBE-NODE-PORT -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
"""
    filters = "KUBE-FORWARD KUBE-NODE-PORT KUBE-PROXY-FIREWALL KUBE-SOURCE-RANGES-FIREWALL KUBE-IPVS-FILTER"
    made = _chains("nat", "KUBE-SERVICES KUBE-POSTROUTING KUBE-NODE-PORT KUBE-LOAD-BALANCER KUBE-MARK-MASQ", nat)
    made += _chains("filter", f"{filters} KUBE-IPVS-OUT-FILTER", guard + FORWARD)
    return made if served.family == 4 else made.replace("--match-set KUBE-", "--match-set KUBE-6-")


def leave_iptables_mode(lab: Lab, node: LabNode, served: Sequence[Served]) -> None:
    """DNAT rules: a chain for the Service, one for each endpoint, one for what comes from outside."""
    for one in served:
        lab.run(node, [f"{one.program}-restore", "-n"], _iptables_rules(one))


def _iptables_rules(served: Served) -> str:
    service, outside = "KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-EXT-AAAAAAAAAAAAAAAA"
    ends = {f"KUBE-SEP-{letter * 16}": address for letter, address in zip("BC", served.endpoints, strict=True)}
    first, second = ends
    nat = f"""-A KUBE-SERVICES -d {served.cluster_ip} -p tcp -m tcp --dport 80 -j {service}
-A KUBE-SERVICES -d {served.balancer} -p tcp -m tcp --dport 80 -j {outside}
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {served.node_port} -j {outside}
-A {outside} -j KUBE-MARK-MASQ
-A {outside} -j {service}
-A {service} ! -s {served.cluster_cidr} -d {served.cluster_ip} -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A {service} -m statistic --mode random --probability 0.5 -j {first}
-A {service} -j {second}
{COMMON_NAT}"""
    for chain, address in ends.items():
        target = f"{address}:8080" if served.family == 4 else f"[{address}]:8080"
        nat += f"-A {chain} -s {address} -j KUBE-MARK-MASQ\n"
        nat += f"-A {chain} -p tcp -m tcp -j DNAT --to-destination {target}\n"
    jumps = "".join(
        f'-A {where} -m conntrack --ctstate NEW -m comment --comment "kubernetes" -j {target}\n'
        for where, target in (
            ("INPUT", "KUBE-EXTERNAL-SERVICES"), ("INPUT", "KUBE-PROXY-FIREWALL"), ("FORWARD", "KUBE-SERVICES"),
            ("FORWARD", "KUBE-EXTERNAL-SERVICES"), ("OUTPUT", "KUBE-SERVICES"), ("INPUT", "KUBE-NODEPORTS"),
        )
    )  # fmt: skip
    # What had no endpoint when kube-proxy ended is refused for ever.
    jumps += f"-A KUBE-SERVICES -d {served.cluster_ip} -p tcp -m tcp --dport 81 -j REJECT\n"
    names = "KUBE-SERVICES KUBE-POSTROUTING KUBE-NODEPORTS KUBE-MARK-MASQ KUBE-PROXY-CANARY"
    filters = (
        "KUBE-SERVICES KUBE-EXTERNAL-SERVICES KUBE-NODEPORTS KUBE-FORWARD KUBE-PROXY-FIREWALL KUBE-PROXY-CANARY"
    )
    made = _chains("nat", f"{names} {service} {outside} {' '.join(ends)}", nat)
    return made + _chains("filter", filters, jumps + FORWARD) + _chains("mangle", "KUBE-PROXY-CANARY", "")


def leave_nftables_mode(lab: Lab, node: LabNode, served: Sequence[Served]) -> None:
    """A table for each family, with chains on the same hooks; nobody opens FORWARD for it."""
    for one in served:
        lab.run(node, [f"{one.program}", "-P", "FORWARD", "ACCEPT"])
        lab.run(node, ["nft", "-f", "-"], _nft_table(one))


def _nft_table(served: Served) -> str:
    address = f"{served.table} daddr"
    first, second = served.endpoints
    brackets = "{}" if served.family == 4 else "[{}]"
    ends = [brackets.format(first), brackets.format(second)]
    nodes = ", ".join(served.node_addresses)
    return f"""table {served.table} kube-proxy {{
    chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
    chain services {{
        {address} {served.cluster_ip} tcp dport 80 goto service
        {address} {served.balancer} tcp dport 80 goto external
        {address} {{ {nodes} }} tcp dport {served.node_port} goto external
    }}
    chain external {{ jump mark-for-masquerade; goto service; }}
    chain service {{
        {served.table} saddr != {served.cluster_cidr} jump mark-for-masquerade
        numgen random mod 2 vmap {{ 0 : goto endpoint-0, 1 : goto endpoint-1 }}
    }}
    chain endpoint-0 {{ meta l4proto tcp dnat to {ends[0]}:8080; }}
    chain endpoint-1 {{ meta l4proto tcp dnat to {ends[1]}:8080; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{
        type nat hook postrouting priority srcnat
        mark & 0x4000 != 0 meta mark set mark and 0xffffbfff masquerade fully-random
    }}
    chain filter-forward {{
        type filter hook forward priority filter
        ct state new {address} {{ {served.cluster_ip} }} reject
    }}
}}"""


LEAVE = {"ipvs": leave_ipvs_mode, "iptables": leave_iptables_mode, "nftables": leave_nftables_mode}
