"""Settings of the host that the data plane depends on, and the modules it needs.

Every write is "read first, write only if different", so that a process without the right to write starts all the
same where the values are right, for example after `--init-only` (contract 1.13, 1.14). `net/ipv4/vs/*` exist once
ip_vs is loaded and are per network namespace; the limit of tracked connections belongs to the machine.
"""

import errno
import os
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.config import Config, ConntrackSettings, IpvsTimeouts
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.wire.netlink import KernelError

PROC_SYS = Path("/proc/sys")
SYS_MODULE = Path("/sys/module")
IF_INET6 = Path("/proc/net/if_inet6")
RESOLV_CONF = Path("/etc/resolv.conf")
OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
WANTED_SYSCTLS = {
    # Without it conntrack does not know the rewritten tuple, and nothing can be masqueraded.
    "net/ipv4/vs/conntrack": 1,
    # A packet of a connection whose destination is gone ends the connection instead of vanishing.
    "net/ipv4/vs/expire_nodest_conn": 1,
    # Session affinity does not hold a client on a destination of weight 0.
    "net/ipv4/vs/expire_quiescent_template": 1,
    "net/ipv4/ip_forward": 1,
}
STRICT_ARP_SYSCTLS = {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}
SLOPPY_TCP = "net/ipv4/vs/sloppy_tcp"
"""Any TCP packet of a connection that IPVS does not know makes one, not only a first one (tcp_conn_schedule)."""
CONNTRACK = "net/netfilter/nf_conntrack_"
CONNTRACK_MAX = f"{CONNTRACK}max"
CONNTRACK_CEILING = 1 << 20
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
IPV6_DISABLED = "net/ipv6/conf/all/disable_ipv6"
IDLE_TCP_SECONDS = 7800
"""IPVS forgets an idle TCP connection after 900 s by default, long before the usual two-hour keepalive; this is
above it. An explicit setting wins."""
KERNEL_IDLE_TCP_SECONDS = 900
MODPROBE_SECONDS = 30
MANY_DESCRIPTORS = 1 << 20

log = structlog.get_logger()


class SysctlError(Exception):
    """A kernel setting could not be made."""


def prepare(config: Config, ipvs: Ipvs) -> None:
    """Bring kernel settings to what the data plane needs and the operator asked for. Raises SysctlError."""
    _prepare_conntrack(config.conntrack)
    for name, value in wanted_sysctls(config):
        set_sysctl(name, value)
    _set_timeouts(ipvs, config.ipvs_timeouts)


class Ipv6Forwarding:
    """Whether the host forwards IPv6, which matters once there is an IPv6 Service; others set it."""

    def __init__(self) -> None:
        self._reported = False

    def look(self, *, is_needed: bool) -> None:
        """Say once that packets will not reach pods, and again when it was turned on and off meanwhile."""
        is_off = is_needed and read_sysctl(IPV6_FORWARDING) == 0
        if is_off and not self._reported:
            log.warning(messages.IPV6_FORWARDING_OFF, sysctl=dotted(IPV6_FORWARDING))
        self._reported = is_off


def keep(config: Config) -> None:
    """Put back settings that another program has changed since; one that cannot be set is logged each time."""
    for name, value in wanted_sysctls(config):
        if read_sysctl(name) != value:
            log.warning(messages.SETTING_CHANGED_BY_OTHERS, sysctl=dotted(name), wanted=value)
            try:
                set_sysctl(name, value)
            except SysctlError as error:
                log.error("Could not restore kernel setting", err=str(error))


def obstacles(config: Config) -> list[str]:
    """Return the settings that `prepare` would have to change and must not here, changing nothing."""
    limit = conntrack_limit(config.conntrack, _cpus())
    wanted = [*conntrack_sysctls(config.conntrack), *wanted_sysctls(config)]
    if limit and _writable(PROC_SYS / CONNTRACK_MAX):
        wanted.append((CONNTRACK_MAX, limit))
    return [
        _cannot(name, was, value, "read-only")
        for name, value in wanted
        if (was := read_sysctl(name)) != value and not os.access(PROC_SYS / name, os.W_OK)
    ]


def wanted_sysctls(config: Config) -> Iterator[tuple[str, int]]:
    """Yield the settings of this network namespace that must hold; what is off sets nothing back."""
    yield from WANTED_SYSCTLS.items()
    if config.strict_arp:
        yield from STRICT_ARP_SYSCTLS.items()
    if config.sloppy_tcp:
        yield SLOPPY_TCP, 1


def families() -> frozenset[int]:
    """Return the IP families that work here (contract 1.11)."""
    has_six = IF_INET6.exists() and read_sysctl(IPV6_DISABLED) != 1
    return frozenset((4, 6) if has_six else (4,))


def load_module(name: str) -> None:
    """Load a kernel module if it is not there; one that cannot be loaded is for the caller to notice.

    The kernel would load a scheduler by itself when one is first used, but it waits for that with the lock of
    IPVS and of all generic netlink in its hands, so a slow disk stops more than us. Where the program modprobe
    is missing, as in some images, that is what still happens.
    """
    program = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None or (SYS_MODULE / name).exists():
        return
    try:
        subprocess.run(  # noqa: S603 - a fixed program, no shell, and the name is one argument with our prefix
            [program, "--quiet", "--", name], check=False, timeout=MODPROBE_SECONDS, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("Could not load kernel module", module=name, err=plain(error))


def _prepare_conntrack(wanted: ConntrackSettings) -> None:
    """Set what was asked for; the keys exist once nf_conntrack is loaded, which IPVS usually has seen to."""
    if read_sysctl(CONNTRACK_MAX) is None:
        load_module("nf_conntrack")
    limit = conntrack_limit(wanted, _cpus())
    if limit:
        _set_conntrack_limit(limit)
    for name, value in conntrack_sysctls(wanted):
        set_sysctl(name, value)


def _cpus() -> int:
    """Return how many CPUs this machine has, whatever this process may use of them."""
    return os.sysconf("SC_NPROCESSORS_ONLN")


def conntrack_limit(wanted: ConntrackSettings, cpus: int) -> int:
    """Return how many connections may be tracked on a machine with so many CPUs, 0 to leave it as it is."""
    limit = wanted.max_per_core * cpus
    if limit > CONNTRACK_CEILING:
        return CONNTRACK_CEILING
    return max(limit, wanted.min) if limit else 0


def conntrack_sysctls(wanted: ConntrackSettings) -> Iterator[tuple[str, int]]:
    """Yield the settings other than the limit; 0 leaves one as it is, and liberal is never taken back."""
    seconds = {
        "tcp_timeout_established": wanted.tcp_established,
        "tcp_timeout_close_wait": wanted.tcp_close_wait,
        "tcp_be_liberal": wanted.tcp_be_liberal,
        "udp_timeout": wanted.udp,
        "udp_timeout_stream": wanted.udp_stream,
    }
    for name, value in seconds.items():
        if int(value) > 0:
            yield f"{CONNTRACK}{name}", int(value)


def _set_conntrack_limit(limit: int) -> None:
    """Set the limit and the buckets that go with it; only the machine's own network namespace may."""
    there = read_sysctl(CONNTRACK_MAX)
    if not _writable(PROC_SYS / CONNTRACK_MAX) and there not in (None, limit):
        if there < limit:
            log.warning(
                messages.CONNTRACK_LIMIT_OF_HOST,
                sysctl=dotted(CONNTRACK_MAX), value=there, wanted=limit,
            )  # fmt: skip
        return
    set_sysctl(CONNTRACK_MAX, limit)
    hash_size = SYS_MODULE / "nf_conntrack/parameters/hashsize"
    try:
        if int(hash_size.read_text()) < limit // 4:
            hash_size.write_text(f"{limit // 4}\n")
    except (OSError, ValueError) as error:
        log.warning(
            "Could not resize the conntrack hash table, lookups get slower", file=str(hash_size), err=plain(error)
        )


def _writable(path: Path) -> bool:
    """Whether the kernel offers it for writing at all, to any process."""
    try:
        return bool(path.stat().st_mode & stat.S_IWUSR)
    except OSError:
        return True


def _set_timeouts(ipvs: Ipvs, wanted: IpvsTimeouts) -> None:
    """Set the idle timeouts of IPVS in whole seconds; a refusal is only logged, it costs nothing else."""
    try:
        now = ipvs.timeouts()
        tcp = int(wanted.tcp) or (IDLE_TCP_SECONDS if now[0] == KERNEL_IDLE_TCP_SECONDS else 0)
        # When IPVS forgets a connection, conntrack's entry goes with it, so IPVS must not be the first.
        udp = int(wanted.udp) or max(now[2], read_sysctl(f"{CONNTRACK}udp_timeout_stream") or 0)
        seconds = (tcp or now[0], int(wanted.tcp_fin) or now[1], udp)
        if seconds != now:
            ipvs.set_timeouts(*seconds)
            log.info("Changed IPVS timeouts", tcpTcpfinUdp=seconds, was=now)
    except KernelError as error:
        log.error(messages.TIMEOUTS_REFUSED, wanted=wanted, err=str(error))


def set_oom_score(value: int) -> None:
    """Tell the kernel how gladly to kill this process when memory runs out; a refusal is not worth a warning."""
    try:
        if int(OOM_SCORE_ADJ.read_text()) != value:
            OOM_SCORE_ADJ.write_text(f"{value}\n")
    except (OSError, ValueError) as error:
        log.debug("Could not set the OOM score", value=value, err=plain(error))


def allow_descriptors() -> None:
    """Raise the limit of open files as far as this process may, as Go does for kube-proxy.

    Each healthCheckNodePort takes one for each family or address, and many container runtimes leave 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MANY_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.debug("Could not raise the limit of open files", limit=soft, wanted=wanted, err=plain(error))


def nameservers() -> frozenset[bytes]:
    """Return the DNS servers of this host; a name service on loopback is none that a Service could take.

    Raises KernelError when it cannot be known at the moment, for then a Service might take one.
    """
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise KernelError(f"reading {RESOLV_CONF}", error.errno) from error
        return frozenset()
    words = [line.split() for line in lines if line.startswith("nameserver")]
    return frozenset(address for _, *rest in words if rest and (address := _address(rest[0])))


def _address(text: str) -> bytes:
    try:
        return parse_ip(text.partition("%")[0])
    except ValueError:
        return b""


def read_sysctl(name: str) -> int | None:
    """Return a numeric setting, or None when the kernel does not have it."""
    try:
        return int((PROC_SYS / name).read_text())
    except (OSError, ValueError):
        return None


def set_sysctl(name: str, value: int) -> None:
    """Set a numeric setting unless it has the value. Raises SysctlError."""
    was = read_sysctl(name)
    if was == value:
        return
    try:
        (PROC_SYS / name).write_text(f"{value}\n")
    except FileNotFoundError:
        module = "nf_conntrack" if name.startswith(CONNTRACK) else "ip_vs"
        raise SysctlError(f"{dotted(name)} does not exist: load the module {module}") from None
    except OSError as error:
        raise SysctlError(_cannot(name, was, value, error.strerror)) from error
    log.info(messages.SETTING_CHANGED, sysctl=dotted(name), value=value, was=was)


def _cannot(name: str, was: int | None, value: int, reason: str | None) -> str:
    return (
        f"{dotted(name)} is {was} and cannot be set to {value} ({reason}): run once with --init-only where"
        " /proc/sys may be written to, as in the privileged first container of a new pod, or set it on the host"
    )


def dotted(name: str) -> str:
    """Return the name of a setting as sysctl(8) writes it."""
    return name.replace("/", ".")
