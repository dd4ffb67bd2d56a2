"""What a former kube-proxy has left in the kernel goes, once everything of ours is live (contract 4.18).

Rules of iptables-nft are ordinary nft rules with chains of their own: they are read over nfnetlink
(`kernel.filters.kube_proxy`), and removed by libnftables, one transaction for each table. The nftables mode has
tables of its own, the ipvs mode ipsets, which are destroyed over netlink. Legacy iptables is only looked at.

Removed once for each start: what comes back has been written by a kube-proxy that is running, which is reported
and its rules are not removed again. Numbers: include/uapi/linux/netfilter/ipset/ip_set.h.
"""

import errno
from collections.abc import Sequence

import structlog
import tenacity

from ipvsproxy.base import messages
from ipvsproxy.kernel.filters.kube_proxy import IPSET_MODULE, KubeProxyState, text
from ipvsproxy.kernel.filters.xtables import legacy_leftovers
from ipvsproxy.kernel.forward import FAMILIES
from ipvsproxy.kernel.wire.netlink import NLM_F_EXCL, KernelError, Wire, attribute, message
from ipvsproxy.kernel.wire.nfnetlink import (
    IPSET_ATTR_PROTOCOL,
    IPSET_ATTR_SETNAME,
    IPSET_CMD_DESTROY,
    IPSET_PROTOCOL,
    NETLINK_NETFILTER,
    NFGENMSG,
)
from ipvsproxy.plan.leftovers import HAIRPIN_SETS, PATTERN, SETS, kept, removal
from nft import Client, NftError, Table, Transaction

BUSY_SECONDS, BUSY_PAUSE = 2.0, 0.02

log = structlog.get_logger()


class Leftovers:
    """Rules, tables and sets of kube-proxy in this network namespace. Belongs to the loop's thread."""

    def __init__(self, nft: Client) -> None:
        self._nft = nft
        self._wire = Wire(NETLINK_NETFILTER)
        self._there = KubeProxyState(self._wire)
        self._removed = False
        self._reported: list[str] = []

    def remove_once_then_watch(self) -> str:
        """Remove what is there, the first time; later on report when it has come back, and return what that means.

        Logs what goes wrong.
        """
        try:
            if self._removed:
                return self._watch()
            self._remove_at_last()
        except KernelError as error:
            log.warning("Could not look for leftovers of kube-proxy, will retry", err=str(error))
        return ""

    def _remove_at_last(self) -> None:
        problems = self.remove(0.0 if self._reported else BUSY_SECONDS)
        for problem in problems:
            if problem not in self._reported:
                log.warning("Could not remove leftovers of kube-proxy, will retry", err=problem)
        self._reported = problems
        if not problems:
            self._removed = True
            for advice in legacy_advice():
                log.warning(advice)

    def remove(self, seconds: float = BUSY_SECONDS) -> list[str]:
        """Remove everything but what legacy iptables holds, and return what could not be removed.

        Rules let go of their sets a moment after they have gone; so long, in seconds, it may take at most. Raises
        KernelError when the kernel cannot be read.
        """
        problems, is_used = self._remove_rules()
        problems += self._remove_tables()
        if legacy_leftovers():
            return problems  # whose rules hold on to the sets
        unused = [name for name in SETS if not (is_used and name in HAIRPIN_SETS)]
        return problems + destroy_sets(unused, self._wire, seconds)

    def _remove_rules(self) -> tuple[list[str], bool]:
        """Remove chains and jumps; return the problems, and whether other programs go on using some of them."""
        problems, is_used = [], False
        for found in self._there.chains():
            staying = kept(found)
            if staying:
                is_used = True
                log.warning("Kept chains of kube-proxy that other programs use", chains=sorted(staying))
            where = f"{found.family} {found.table}"
            problems += self._run(where, removal(found), chains=len(found.chains - staying))
        return problems, is_used

    def _remove_tables(self) -> list[str]:
        problems = []
        for where in self._there.tables():
            problems += self._run(where, [f"delete table {where}"], tables=1)
        return problems

    def _run(self, where: str, commands: Sequence[str], **counts: int) -> list[str]:
        """Carry out commands on one table, all or none, and return what went wrong."""
        if not commands:
            return []
        transaction = Transaction(Table(*where.split()))
        transaction.load("\n".join(commands))
        try:
            self._nft.run(transaction)
        except NftError as error:
            return [f"{where}: {error.text[:200]}"]
        log.info("Removed leftovers of kube-proxy", table=where, **counts)
        return []

    def _watch(self) -> str:
        """Log once that a kube-proxy is running."""
        came_back = self._there.sure_signs()
        if came_back and not self._reported:
            log.error(
                messages.KUBE_PROXY_RUNS,
                found=came_back,
            )
        self._reported = came_back
        return f"a kube-proxy is running and writes {', '.join(came_back)}" if came_back else ""


def destroy_sets(names: Sequence[str], wire: Wire, seconds: float) -> list[str]:
    """Destroy those of the ipsets that exist, within some seconds, and return what could not be.

    A kernel that has not loaded ipset is not asked, since that would load it.
    """
    left = dict.fromkeys(names if IPSET_MODULE.exists() else (), 0)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_result(bool),
        wait=tenacity.wait_fixed(BUSY_PAUSE),
        stop=tenacity.stop_after_delay(seconds),
        retry_error_callback=lambda _: None,
    )
    retrying(_destroy_some, left, wire)
    return [f"ipset {name} is in use (error {code})" for name, code in left.items()]


def _destroy_some(left: dict[str, int], wire: Wire) -> bool:
    """Destroy ipsets, keep those that the kernel refused with their errors, and return whether there are any."""
    names = list(left)
    failures = wire.batch([_destroy(name, index) for index, name in enumerate(names)]) if names else {}
    if len(failures) < len(names):
        log.info("Removed leftovers of kube-proxy", ipsets=len(names) - len(failures))
    left.clear()
    left.update({names[index]: code for index, code in failures.items() if code != errno.ENOENT})
    return bool(left)


def _destroy(name: str, sequence: int) -> bytes:
    body = NFGENMSG.pack(FAMILIES["ip"], 0, 0) + attribute(IPSET_ATTR_PROTOCOL, bytes([IPSET_PROTOCOL]))
    # Exclusively: without it, newer kernels count what does not exist as destroyed.
    return message(IPSET_CMD_DESTROY, NLM_F_EXCL, body + attribute(IPSET_ATTR_SETNAME, text(name)), sequence)


def legacy_advice() -> list[str]:
    """Return what the operator has to do about rules in legacy iptables, if there are any."""
    return [
        "kube-proxy has left rules in legacy iptables, which only its program removes, so run on this host:"
        f" {program}-save | grep -vwE '{PATTERN}' | {program}-restore"
        for program in legacy_leftovers()
    ]
