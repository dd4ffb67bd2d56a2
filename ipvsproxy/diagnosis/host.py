"""Checks of the kernel: what it can do, how it is set, and whether its tables are full."""

from collections.abc import Iterable, Iterator

from ipvsproxy.base.address import is_link_local_v6, is_loopback, parse_ip
from ipvsproxy.diagnosis.facts import Facts, KernelFacts, Link
from ipvsproxy.diagnosis.finding import CheckResult, Finding, fine, problem, unchecked, warning

OLDEST = (5, 10)
"""The oldest kernel that is tested."""
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
LASTING = ("then find out which program sets it otherwise (/etc/sysctl.d)",
           "and in /etc/sysctl.d, since ipvsproxy, as kube-proxy, leaves it to the operator")  # fmt: skip
STRICT = 1
NO_UPLINKS = frozenset(("bridge", "veth", "dummy", "vxlan", "geneve", "ipip", "sit", "gre", "wireguard", "tun"))
WHY = {
    "net/ipv4/vs/conntrack": "nothing can be masqueraded, so clients outside and the node itself get no replies",
    "net/ipv4/vs/expire_nodest_conn": "connections to removed endpoints hang instead of ending",
    "net/ipv4/vs/expire_quiescent_template": "session affinity holds clients on endpoints that are gone",
    "net/ipv4/ip_forward": "the node forwards nothing, neither to pods nor from them",
    IPV6_FORWARDING: "IPv6 Services do not reach pods",
}


def check_kernel(facts: Facts) -> Iterator[Finding]:
    """IPVS and nf_tables are there, the release is one that is tested."""
    host = facts.host
    if host is None:
        yield unchecked("kernel", facts.unread.get("host", "could not be read"))
        return
    if not host.has_ipvs:
        yield problem("kernel", "the kernel has no IPVS", f"release {host.release}",
                      step="load it: modprobe ip_vs, or use a kernel with CONFIG_IP_VS")  # fmt: skip
    if not host.has_nftables:
        yield problem("kernel", "the kernel has no nf_tables", f"release {host.release}",
                      step="load it: modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES_INET")  # fmt: skip
    if release(host) < OLDEST:
        yield warning(
            "kernel", f"Linux {host.release} is older than what is tested", step="use Linux 5.10 or later"
        )
    elif host.has_ipvs and host.has_nftables:
        yield fine("kernel", f"Linux {host.release} with IPVS and nf_tables")


def release(host: KernelFacts) -> tuple[int, ...]:
    """Return the two numbers that a release begins with."""
    numbers = host.release.split("-", 1)[0].split(".")[:2]
    return tuple(int(number) if number.isdecimal() else 0 for number in numbers)


def check_scheduler(facts: Facts) -> Iterator[Finding]:
    """The scheduler of the settings, and those of Services, are loaded, in use, or ones that this kernel has."""
    host, configured = facts.host, facts.settings.scheduler
    if host is None or not host.has_ipvs:
        return
    yield from _scheduler(facts, host, configured)
    for name in sorted({*facts.schedulers} - {configured}):
        if any(finding.verdict is CheckResult.PROBLEM for finding in _scheduler(facts, host, name)):
            yield warning(
                "scheduler",
                f"this kernel has no scheduler {name}, for which Services ask: they have {configured}",
                step="name another one in their annotation ipvsproxy.io/scheduler, or install its module",
            )


def _scheduler(facts: Facts, host: KernelFacts, name: str) -> Iterator[Finding]:
    module = f"ip_vs_{name}"
    if module in host.loaded or any(server.scheduler == name for server in facts.servers or ()):
        yield fine("scheduler", f"the scheduler {name} is there")
    elif host.loadable is None:
        yield unchecked("scheduler", f"{module} is not loaded, and which modules there are is not to be seen here")
    elif module in host.loadable:
        yield fine("scheduler", f"the scheduler {name} can be loaded")
    else:
        yield problem(
            "scheduler",
            f"this kernel has no scheduler {name}",
            f"there are: {', '.join(m.removeprefix('ip_vs_') for m in host.loadable if m != 'ip_vs')}",
            step="choose another one with --ipvs-scheduler, or install the modules of this kernel",
        )


def check_sysctls(facts: Facts) -> Iterator[Finding]:
    """Kernel settings are what the data plane needs."""
    host = facts.host
    if host is None:
        return
    # Those of IPVS exist once there is IPVS.
    wanted = {name: v for name, v in facts.settings.sysctls.items() if host.has_ipvs or "/vs/" not in name}
    if any(":" in server.address for server in facts.servers or ()):
        wanted[IPV6_FORWARDING] = 1
    wrong = {name: value for name, value in wanted.items() if host.sysctls.get(name) != value}
    for name, value in wrong.items():
        dotted = name.replace("/", ".")
        why = WHY.get(name, "")
        yield problem(
            "sysctls",
            f"{dotted} is {host.sysctls.get(name)}, not {value}" + (f": {why}" if why else ""),
            step=f"sysctl -w {dotted}={value}; {LASTING[name == IPV6_FORWARDING]}",
        )
    if not wrong:
        yield fine("sysctls", f"{len(wanted)} kernel settings are as needed")


def check_local_ports(facts: Facts) -> Iterator[Finding]:
    """No connection of the node itself gets a NodePort as its source port."""
    if facts.host is None or not facts.host.has_ipvs:
        return
    if not facts.host.unreserved:
        yield fine("local ports", "no NodePort is used as a source port of this node's own connections")
        return
    yield warning(
        "local ports",
        f"the kernel may choose NodePorts ({facts.host.unreserved}) as source ports of connections of this node:"
        " IPVS takes the answers for requests to a Service, and such connections fail",
        "net.ipv4.ip_local_port_range overlaps with --node-port-range",
        step="run ipvsproxy once with --init-only where /proc/sys may be written to, or add these ports to"
        " net.ipv4.ip_local_reserved_ports",
    )


def check_reverse_path(facts: Facts) -> Iterator[Finding]:
    """Strict reverse-path filtering does not meet a node with several ways out."""
    if facts.host is None or facts.links is None:
        return
    uplinks = [link.name for link in facts.links if is_uplink(link)]
    strict = [name for name in uplinks if _filter(facts.host, name) == STRICT]
    if strict and len(uplinks) > 1:
        yield warning(
            "reverse path",
            f"rp_filter is strict on {', '.join(strict)}, and the node has several uplinks: what comes in on one"
            " and is answered on another is dropped without a word",
            f"uplinks: {', '.join(uplinks)}",
            step=f"sysctl -w net.ipv4.conf.{strict[0]}.rp_filter=2 (loose), unless every route is symmetric",
        )
    else:
        yield fine("reverse path", "rp_filter does not meet asymmetric routes here")


def is_uplink(link: Link) -> bool:
    """Whether a link leads out of the node."""
    return link.is_up and not link.master and link.kind not in NO_UPLINKS and any(map(_is_routed, link.addresses))


def _is_routed(address: str) -> bool:
    packed = parse_ip(address)
    return not (is_loopback(packed) or is_link_local_v6(packed))


def _filter(host: KernelFacts, link: str) -> int:
    """Return what counts: the larger one of the link's value and that for all links."""
    names = (f"net/ipv4/conf/{name}/rp_filter" for name in ("all", link))
    return max(host.sysctls.get(name) or 0 for name in names)


def check_pressure(facts: Facts) -> Iterator[Finding]:
    """The tables of conntrack and IPVS have room."""
    if facts.host is None:
        return
    yield from _pressed(facts.host.pressure)
    if not facts.host.pressure:
        count, limit = (facts.host.sysctls.get(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
        yield fine(
            "pressure", "the tables of conntrack and IPVS have room", f"conntrack: {count} of {limit} entries"
        )


def _pressed(concerns: Iterable[str]) -> Iterator[Finding]:
    for concern in concerns:
        numbers, _, advice = concern.partition("; ")
        finding = problem if concern.startswith("conntrack") else warning
        yield finding("pressure", numbers, step=advice)
