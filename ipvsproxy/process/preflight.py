"""Every handle of the kernel, opened and tested beforehand: an error names what is missing and what to do.

Nothing is changed here but by `prepare`. Every function raises Fatal.
"""

import errno

import structlog

from ipvsproxy.base.errors import Fatal, located, plain
from ipvsproxy.config import Config
from ipvsproxy.kernel import host
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.element_changes import KernelNft
from ipvsproxy.kernel.elements import ElementReader
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.notrack import Notrack
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.scripts import FOR_ALL, Scripts
from ipvsproxy.kernel.tables import TABLE, new_transaction
from ipvsproxy.kernel.this_host import ThisHost
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.state import KernelState
from nft import Client, NftError, can_read_tables

NEEDS_NET_ADMIN = "the process needs the capability CAP_NET_ADMIN"
HINTS = {
    errno.EPERM: NEEDS_NET_ADMIN,
    errno.EACCES: NEEDS_NET_ADMIN,
    errno.EOPNOTSUPP: "load the module dummy on this host (modprobe dummy), or use a kernel that has CONFIG_DUMMY",
}

TOO_OLD = (
    "libnftables crashes when it reads the tables of this host, where a newer one has made a set: use an image, or"
    " packages, with a libnftables as new as the newest on this host"
)
NEVER = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)
"""Answers of nftables to rules that it will not take another time either."""
NEEDS_MODULES = (
    "load the modules nft_ct, nft_nat, nft_masq, nft_fib_inet, nft_reject_inet on this host, or use a kernel that"
    " has them, with CONFIG_NF_TABLES_ARP (or --suppress-vip-arp=false), and nftables 1.0.2 or later"
)

log = structlog.get_logger()


def open_kernel(config: Config) -> Kernel:
    """Open every kernel handle and check what the data plane needs; nothing is changed. Raises Fatal."""
    ipvs = _open_ipvs()
    try:
        probe_scheduler(ipvs, config.scheduler)
        ruleset, nft = open_ruleset(), KernelNft()
        if not can_read_tables():
            raise Fatal(TOO_OLD)
        mark = config.masquerade_mark
        scripts = Scripts(mark, config.suppress_vip_arp, config.conntrack.tcp_be_liberal)
        probe_rules(nft, scripts.whole(FOR_ALL))
        shadow, read_set = KernelState(), ElementReader(TABLE.name).all
        rules = Rules(nft, ruleset, RulesetParts(Forwarding(nft, mark), Notrack()), scripts, shadow, read_set)
        return Kernel(shadow, ipvs, Links(), rules, Conntrack(), ThisHost(config, ipvs, nft))
    except (KernelError, NftError, OSError) as error:
        raise Fatal(with_hint(error)) from error


def prepare(kernel: Kernel) -> None:
    """Make the kernel settings and the link that the data plane needs. Raises Fatal."""
    try:
        kernel.prepare()
    except (KernelError, host.SysctlError, OSError) as error:
        raise Fatal(with_hint(error)) from error


def _open_ipvs() -> Ipvs:
    try:
        return Ipvs()
    except KernelError as error:
        raise Fatal(
            f"the kernel has no IPVS ({error}): load the module ip_vs on this host (modprobe ip_vs), or use a"
            " kernel that has CONFIG_IP_VS"
        ) from error
    except OSError as error:
        raise Fatal(with_hint(error)) from error


def open_ruleset() -> Ruleset:
    """Return our table as seen from outside; asking for it makes the kernel load nf_tables. Raises Fatal.

    Before libnftables is opened, which ends the whole process where there is no nf_tables to talk to.
    """
    try:
        ruleset = Ruleset(TABLE.name)
        ruleset.stamp()
    except (KernelError, OSError) as error:
        if error.errno in HINTS:
            raise
        raise Fatal(
            f"the kernel has no nf_tables ({plain(error)}): load the module nf_tables on this host"
            " (modprobe nf_tables), or use a kernel that has CONFIG_NF_TABLES_INET"
        ) from error
    return ruleset


def probe_rules(nft: Client, rules: str) -> None:
    """Have the kernel judge the static rules, which takes modules that only they make it load. Raises Fatal.

    What may be better in a moment (memory, another program's transaction) is for the loop, which tries again.
    """
    transaction = new_transaction()
    transaction.delete_table()
    transaction.load(rules)
    try:
        nft.check(transaction)
    except NftError as error:
        if error.errno not in NEVER:
            log.warning("Kernel refused the nftables ruleset, will retry", err=error.text[:200])
            return
        hint = HINTS.get(error.errno, "") if error.errno in (errno.EPERM, errno.EACCES) else NEEDS_MODULES
        raise Fatal(f"nftables rejects the rules ({error.text[:500]}): {hint}") from error


def probe_scheduler(ipvs: Ipvs, scheduler: str) -> None:
    """Make sure that virtual servers can have this scheduler. Raises Fatal, KernelError."""
    if any(server.scheduler == scheduler for server in ipvs.servers().values()):
        return
    module = f"ip_vs_{scheduler}"
    host.load_module(module)
    if not ipvs.has(scheduler):
        raise Fatal(
            f"the IPVS scheduler {scheduler!r} (--ipvs-scheduler, ipvs.scheduler) is not there: load the module"
            f" {module} on this host (modprobe {module}), or choose another one"
        )


def with_hint(error: Exception) -> str:
    """Return what went wrong and, where it is known, what to do about it."""
    hint = HINTS.get(getattr(error, "errno", None) or 0, "")
    return f"{located(error)}: {hint}" if hint else located(error)
