"""The kernel of this network namespace as plain facts: releases, modules, settings, links, servers, programs.

Each reader reads one thing and changes nothing; what cannot be read raises KernelError or OSError, and the caller
goes on with the others. Modules that are built into the kernel are listed in modules.builtin.
"""

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

from pyroute2 import IPRoute

from ipvsproxy.base.address import format_ip
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import DestinationFacts, KernelFacts, Link, Process, ServerFacts
from ipvsproxy.kernel import host
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.local_ports import format_ports, unreserved
from ipvsproxy.kernel.pressure import Pressure
from ipvsproxy.kernel.process import PROC, arguments_of, without_interpreter
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey, ServerAttributes

MODULES = Path("/lib/modules")
READ_SYSCTLS = (
    "net/ipv4/conf/all/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/ipv4/vs/run_estimation",
    "net/ipv4/vs/conn_reuse_mode",
    host.IPV6_FORWARDING,
    host.IPV6_DISABLED,
)
IFF_UP, IFF_PROMISC = 0x1, 0x100
NO_PROXY = "--run-service-proxy=false"
"""With this, kube-router is a network plugin only."""
PROGRAMS = ("kube-proxy", "kube-router", "ipvsproxy")
FIRST_PID_NAMESPACE, INITS = "pid:[4026531836]", ("systemd", "init", "openrc-init", "runit")


def read_host(config: Config, servers: int, destinations: int) -> KernelFacts:
    """Return what is known of the kernel; `servers` and `destinations` are how many IPVS holds."""
    names = [*READ_SYSCTLS, *dict(host.wanted_sysctls(config)), *_reverse_paths()]
    concerns = Pressure().concerns(servers, destinations)
    return KernelFacts(
        release=platform.release(),
        loaded=_loaded(),
        loadable=_loadable(MODULES / platform.release()),
        sysctls={name: host.read_sysctl(name) for name in names},
        pressure=tuple(f"{c.subject}: {_numbers(c.numbers)}; {c.advice}" for c in concerns),
        unreserved=format_ports(unreserved(config.node_port_range)),
    )


def ipvs_modules() -> frozenset[str] | None:
    """Return the modules of IPVS that are loaded or can be; None where that is not to be seen here.

    Without the folder of modules, as in a container, none but the loaded ones count: a proxy that runs has had the
    kernel load those that Services ask for. Not so where IPVS is built in or not loaded at all.
    """
    loadable = _loadable(MODULES / platform.release())
    if loadable is None and not (host.SYS_MODULE / "ip_vs" / "initstate").exists():  # only loaded ones have it
        return None
    return frozenset(_loaded()) | frozenset(loadable or ())


def _loaded() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in host.SYS_MODULE.iterdir())) if host.SYS_MODULE.exists() else ()


def _numbers(numbers: dict[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in numbers.items())


def _reverse_paths() -> Iterator[str]:
    for path in (host.PROC_SYS / "net/ipv4/conf").glob("*/rp_filter"):
        yield str(path.relative_to(host.PROC_SYS))


def _loadable(folder: Path) -> tuple[str, ...] | None:
    """Return the modules of IPVS that this kernel has, in or beside it; None when its folder is not there."""
    found: set[str] = set()
    for name in ("modules.builtin", "modules.dep"):
        try:
            lines = (folder / name).read_text().splitlines()
        except OSError:
            continue
        names = (Path(line.partition(":")[0]).name.partition(".")[0] for line in lines)
        found |= {name.replace("-", "_") for name in names if name.startswith("ip_vs")}
    return tuple(sorted(found)) or None


def read_links() -> tuple[Link, ...]:
    """Return all links with their addresses. Raises KernelError."""
    with closing(Links()) as links:
        addresses = links.by_link()
    with IPRoute() as route:
        found = list(route.get_links())
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in found}
    return tuple(
        Link(
            name=names[link["index"]],
            kind=link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") or "",
            is_up=bool(link["flags"] & IFF_UP),
            is_promiscuous=bool(link["flags"] & IFF_PROMISC),
            master=names.get(link.get_attr("IFLA_MASTER"), ""),
            hairpin=_hairpin(link),
            addresses=tuple(sorted(map(format_ip, addresses.get(link["index"], ())))),
        )
        for link in found
    )


def _hairpin(link: object) -> bool | None:
    info = link.get_attr("IFLA_LINKINFO")  # type: ignore[attr-defined]
    if info is None or info.get_attr("IFLA_INFO_SLAVE_KIND") != "bridge":
        return None
    data = info.get_attr("IFLA_INFO_SLAVE_DATA")
    return bool(data.get_attr("IFLA_BRPORT_MODE")) if data is not None else None


def as_fact(
    key: FrontendKey, server: ServerAttributes, destinations: Mapping[Destination, DestinationAttributes]
) -> ServerFacts:
    """Return a virtual server as a fact."""
    backends = (DestinationFacts(format_ip(d.address), d.port, a.weight) for d, a in sorted(destinations.items()))
    name = Protocol(key.protocol).name
    return ServerFacts(format_ip(key.address), name, key.port, server.scheduler, tuple(backends))


def read_processes(programs: Iterable[str] = PROGRAMS, holder: int = 0) -> tuple[Process, ...]:
    """Return the processes of this network namespace that program Services, but this one.

    `holder` is the process that holds the lock of ipvsproxy, 0 if that is not to be seen. In a container without
    the host's processes that is none, or ourselves.
    """
    wanted = tuple(programs)
    here = Path("/proc/thread-self/ns/net").readlink()
    found = (_process(path, here, wanted, holder) for path in PROC.iterdir() if path.name.isdecimal())
    return tuple(process for process in found if process and process.pid != os.getpid())


def sees_host_processes() -> bool:
    """Whether the processes of the host can be seen: in its own PID namespace, or beside its init.

    The number of the first PID namespace is fixed (PROC_PID_INIT_INO of include/linux/proc_ns.h). A node that is a
    container itself has an init of its own, and its containers have not.
    """
    try:
        first = (PROC / "self/ns/pid").readlink().name
        return first == FIRST_PID_NAMESPACE or (PROC / "1/comm").read_text().strip() in INITS
    except OSError:
        return False


def _process(path: Path, here: Path, programs: tuple[str, ...], holder: int) -> Process | None:
    try:
        words = arguments_of(path)
        is_python = (path / "exe").readlink().name.startswith("python")
        program = program_of(words, programs, is_python=is_python)
        if not program or (path / "ns/net").readlink() != here:
            return None
    except OSError:
        return None  # it has ended, or is not ours to look at
    number = int(path.name)
    return Process(number, "ipvsproxy" if number == holder else program, " ".join(words)[:200])


def program_of(words: list[str], programs: tuple[str, ...], *, is_python: bool) -> str:
    """Return the name by which a command line is a service proxy; commands that only look are none.

    Under the name kube-proxy, a link to ipvsproxy that manifests of kube-proxy can go on to use, Python is at work
    (`is_python`), which no kube-proxy is written in.
    """
    name = Path(words[0]).name
    if name != "kube-proxy":
        words = without_interpreter(words)
        name = Path(words[0]).name if words else ""
    if name not in programs or NO_PROXY in words:
        return ""
    if name == "kube-proxy" and is_python:
        return "ipvsproxy"
    following = words[1] if len(words) > 1 else ""
    return name if name != "ipvsproxy" or following == "run" or following.startswith("-") else ""
