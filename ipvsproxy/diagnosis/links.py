"""Checks of links: the bridge of the pods, hairpin ports, kube-ipvs0 and who else has its addresses."""

from collections.abc import Collection, Iterable, Iterator, Sequence

from ipvsproxy.base.address import is_link_local_v6, parse_cidr, parse_ip
from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.diagnosis.facts import Facts, Link
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning

SHOWN = 10
CALLS = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}


def pod_bridges(facts: Facts) -> list[Link]:
    """Return the bridges that local pods stand on: those with an address of a pod range, and with ports."""
    ranges = [parse_cidr(text) for text in (*facts.pod_cidrs, *facts.settings.cluster_cidrs)]
    masters = {link.master for link in facts.links or ()}

    def carries_pods(link: Link) -> bool:
        return any(parse_ip(address) in cidr for address in link.addresses for cidr in ranges)

    return [
        link for link in facts.links or () if link.kind == "bridge" and link.name in masters and carries_pods(link)
    ]


def check_bridge(facts: Facts) -> Iterator[Finding]:
    """What one pod of a bridge answers another is seen by the packet filter, so that it can be put right."""
    if facts.links is None or facts.host is None:
        yield unchecked("bridge", facts.unread.get("links", "could not be read"))
        return
    bridges = pod_bridges(facts)
    wrong = False
    for name in CALLS.values() if bridges else ():
        value = facts.host.sysctls.get(name)
        family = 6 if "ip6" in name else 4
        if value == 1 or not any((":" in a) == (family == 6) for link in bridges for a in link.addresses):
            continue
        wrong = True
        dotted = name.replace("/", ".")
        missing = "br_netfilter is not loaded" if value is None else f"{dotted} is {value}"
        yield problem(
            "bridge",
            f"{missing}: a pod gets no answer through a Service from a pod of the same node",
            f"pods stand on {', '.join(link.name for link in bridges)}; replies between them do not pass IPVS",
            step=f"modprobe br_netfilter && sysctl -w {dotted}=1",
        )
    if bridges and not wrong:
        yield fine("bridge", f"replies between the pods on {bridges[0].name} pass the packet filter")
    elif not bridges:
        yield fine("bridge", "pods do not stand on a bridge here")


def check_hairpin(facts: Facts) -> Iterator[Finding]:
    """A pod reaches itself through a Service: its port, or the bridge, gives back what came from it."""
    if facts.links is None:
        return
    lacking = {
        port.name: bridge.name
        for bridge in pod_bridges(facts)
        for port in facts.links
        if port.master == bridge.name and port.hairpin is False and not bridge.is_promiscuous
    }
    if lacking:
        port, bridge = next(iter(lacking.items()))
        yield problem(
            "hairpin",
            f"{counted(len(lacking), 'port')} of {bridge} with hairpin mode off: the pods there may not reach"
            " themselves through a Service",
            f"ports: {_some(lacking)}",
            step=f"set hairpinMode in the configuration of the network plugin; now: ip link set {port} type"
            f" bridge_slave hairpin on (or ip link set {bridge} promisc on)",
        )
    else:
        yield fine("hairpin", "pods can reach themselves as far as bridges are concerned")


def check_long_datagrams(facts: Facts) -> Iterator[Finding]:
    """UDP Services of IPv6 have a limit that nothing can lift. Naming it saves a search."""
    by_ipvs = (server for server in facts.servers or () if not server.is_short)
    if facts.host is None or not any(s.protocol == "UDP" and ":" in s.address for s in by_ipvs):
        return
    senders = "processes of this node"
    if facts.host.sysctls.get(CALLS[6]) == 1:
        senders += " and pods on a bridge"
    yield fine(
        "long datagrams",
        f"a limit of IPVS: IPv6 UDP datagrams above the MTU, from {senders}, do not reach Services",
    )


def check_vip_link(facts: Facts) -> Iterator[Finding]:
    """kube-ipvs0 is there, is a dummy link, and has VIPs and nothing else, which no other link has."""
    if facts.links is None:
        return
    link = next((link for link in facts.links if link.name == VIP_LINK), None)
    if link is None:
        yield problem(VIP_LINK, f"the link {VIP_LINK} is missing: no VIP is an address of this node",
                      step="is the proxy running? It makes the link with its next verification")  # fmt: skip
        return
    if link.kind != "dummy":
        yield problem(VIP_LINK, f"{VIP_LINK} is a link of type {link.kind or 'unknown'}, not dummy",
                      step=f"find out who made it, then delete it: ip link del {VIP_LINK}")  # fmt: skip
    findings = [*_foreign(facts, link), *_elsewhere(facts, link)]
    yield from findings
    if not findings and link.kind == "dummy":
        yield fine(VIP_LINK, f"{_addresses(link.addresses)}, VIPs and nothing else, on no other link")


def unserved(links: Iterable[Link], served: Collection[str]) -> list[str]:
    """Return the addresses of kube-ipvs0 that no virtual server has."""
    mine = (address for link in links if link.name == VIP_LINK for address in link.addresses)
    return [address for address in mine if address not in served and not is_link_local_v6(parse_ip(address))]


def _foreign(facts: Facts, link: Link) -> Iterator[Finding]:
    if facts.servers is None:
        return
    foreign = unserved([link], {server.address for server in facts.servers})
    if foreign:
        yield problem(
            VIP_LINK,
            f"the node takes {_addresses(foreign)} of {VIP_LINK} for its own, without a virtual server",
            f"addresses: {_some(foreign)}",
            step=f"another program wrote them; the next verification removes them (ip address del {foreign[0]} dev"
            f" {VIP_LINK} does so now)",
        )


def _elsewhere(facts: Facts, link: Link) -> Iterator[Finding]:
    mine = set(link.addresses)
    for other in facts.links or ():
        both = [a for a in other.addresses if a in mine and not is_link_local_v6(parse_ip(a))]
        if other.name != VIP_LINK and both:
            yield problem(
                VIP_LINK,
                f"{_some(both)} is a VIP and an address of {other.name} as well",
                step=f"take it off one of them: a Service must not use an address of the node as its VIP, or the"
                f" program that put it on {other.name} must stop",
            )


def check_held_vips(facts: Facts) -> Iterator[Finding]:
    """No ClusterIP is an address of the node itself."""
    for address, service in facts.held_vips.items():
        link = next(
            (one.name for one in facts.links or () if address in one.addresses and one.name != VIP_LINK), "?"
        )
        yield warning(
            "VIPs",
            f"{address} of Service {service} is an address of {link}: it is served, but neither bound nor guarded",
            step=f"give the Service another address, or take this one off {link}",
        )


def _addresses(found: Sequence[str]) -> str:
    return counted(len(found), "address", "addresses")


def _some(names: object) -> str:
    found = list(map(str, names))  # type: ignore[call-overload]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more
