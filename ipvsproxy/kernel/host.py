"""Settings of the host that the data plane depends on.

Every write is "read first, write only if different", so that a process without the right to write starts all
the same where the values are right (contract 1.13, 1.14). `net/ipv4/vs/*` exist once ip_vs is loaded and are
per network namespace.
"""

from pathlib import Path

import structlog

from ipvsproxy.kernel.ipvs import Ipvs

PROC_SYS = Path("/proc/sys")
WANTED_SYSCTLS = {
    # Without it conntrack does not know the rewritten tuple, and nothing can be masqueraded.
    "net/ipv4/vs/conntrack": 1,
    # A packet of a connection whose destination is gone ends the connection instead of vanishing.
    "net/ipv4/vs/expire_nodest_conn": 1,
    # Session affinity does not hold a client on a destination of weight 0.
    "net/ipv4/vs/expire_quiescent_template": 1,
    "net/ipv4/ip_forward": 1,
}
IPV6_FORWARDING = "net/ipv6/conf/all/forwarding"
IDLE_TCP_SECONDS = 7800
"""IPVS forgets an idle TCP connection after 900 s by default, long before the usual two-hour keepalive; this is
above it. An explicit setting wins."""
KERNEL_IDLE_TCP_SECONDS = 900

log = structlog.get_logger()


class SysctlError(Exception):
    """A kernel setting could not be made."""


def prepare(ipvs: Ipvs) -> None:
    """Bring the settings of this network namespace to what the data plane needs.

    Raises SysctlError when one cannot be set, KernelError when IPVS refuses its timeouts.
    """
    for name, value in WANTED_SYSCTLS.items():
        set_sysctl(name, value)
    if read_sysctl(IPV6_FORWARDING) == 0:
        log.warning("IPv6 forwarding is off, IPv6 Services will not reach pods", sysctl=IPV6_FORWARDING)
    tcp, _, _ = ipvs.timeouts()
    if tcp == KERNEL_IDLE_TCP_SECONDS:
        ipvs.set_timeouts(IDLE_TCP_SECONDS, 0, 0)
        log.info("IPVS TCP idle timeout raised", seconds=IDLE_TCP_SECONDS, was=tcp)


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
    except OSError as error:
        raise SysctlError(f"{name.replace('/', '.')} is {was} and cannot be set to {value}: {error}") from error
    log.info("kernel setting changed", sysctl=name.replace("/", "."), value=value, was=was)
