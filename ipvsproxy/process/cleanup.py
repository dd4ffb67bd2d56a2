"""Taking everything of ours and of a former kube-proxy out of the kernel (contract 1.15).

A kube-proxy that runs keeps what it has: on the way back to it, it is started first, and this takes ours away.
"""

import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import Ranges, parse_cidr
from ipvsproxy.base.errors import Fatal
from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.config import Config
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.ipvs import PROBE, Ipvs
from ipvsproxy.kernel.leftovers import Leftovers, legacy_advice
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.local_ports import give_back
from ipvsproxy.kernel.own_source import prefer_own_sources
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.tables import TABLE, delete_tables
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.process import other_proxy
from ipvsproxy.process.handover import await_kube_proxy
from ipvsproxy.process.other_proxy import IPVS_MODE, OtherProxy
from ipvsproxy.process.preflight import open_ruleset, with_hint
from nft import Libnftables, NftError

REQUEST_SECONDS = 5.0
"""For requests that are under way when the rules of a kube-proxy begin to count; longer ones are cut."""
FLAG = "--cleanup-kube-proxy"
RUNS, MAY_RUN = "it runs on this node", "it may run: the processes of the host are not visible here"

log = structlog.get_logger()


def cleanup(config: Config, *, everything: bool = False, wait: bool = False, handover: bool = False) -> None:
    """Take servers, VIPs, kube-ipvs0, nft tables, rules in tables of others and ipsets out of the kernel.

    Not while a proxy is at work, which would put it all back: `wait` waits for its end, `handover` for the rules
    of a kube-proxy as well. What belongs to a kube-proxy that runs, or may run, stays unless `everything` is to
    go. Settings made with sysctl stay, as do virtual servers inside --ipvs-exclude-cidrs and firewall-mark
    servers. Raises Fatal when something could not be removed, after everything else has been.
    """
    lock = InstanceLock()
    holder = lock.take()
    if holder is not None:
        if not (wait or handover):
            raise Fatal(
                f"an ipvsproxy is at work on this node ({holder}): end it first, or it would put everything back"
            )
        log.info(messages.WAITING_FOR_PROXY, holder=str(holder))
        lock.wait()
    if handover and not _is_taken_over():
        log.info(messages.NOTHING_FOUND)
        return
    problems = []
    for step in _steps(config, None if everything else _spared(config)):
        try:
            problems += step()
        except (KernelError, NftError, OSError) as error:
            problems.append(with_hint(error))
    if problems:
        raise Fatal(f"cleanup did not complete: {'; '.join(problems)}")
    log.info("Cleaned up the node")


def _is_taken_over() -> bool:
    """Wait for a kube-proxy that has this node, and tell whether anything of ours is to be removed. Raises Fatal.

    Where no ipvsproxy ever was, virtual servers are those of other programs.
    """
    try:
        modes = await_kube_proxy().values()
        return bool(Ruleset(TABLE.name).tables()) or (IPVS_MODE not in modes and Links().look())
    except (KernelError, OSError) as error:
        raise Fatal(with_hint(error)) from error


def _spared(config: Config) -> OtherProxy | None:
    """Return the kube-proxy whose objects stay, and state why they do; None when there is none to be seen."""
    found = other_proxy.look(config)
    if found.is_gone:
        return None
    stays = ["rules", "virtual servers", VIP_LINK] if found.is_in_ipvs_mode else ["rules"]
    log.warning(
        messages.KUBE_PROXY_KEPT,
        stays=stays,
        reason=RUNS if found.running.signs else MAY_RUN,
        signs=list(found.running.signs) or None,
        rules=list(found.rules) or None,
        removedBy=FLAG,
    )
    return found


def _steps(config: Config, spared: OtherProxy | None) -> Sequence[Callable[[], list[str]]]:
    """Return what is to be done, in this order.

    The guard stays until nothing answers any more; beside a kube-proxy it goes first, so that the rules of that
    serve each new connection at once, and what is under way has some seconds to end; what the node itself begins
    then must not have a VIP as its source. One in the ipvs mode has taken servers and addresses over, and removes
    those that it does not want. Reserved ports are given back while there is the link that records them.
    """
    ours = (partial(_remove_servers, config), give_back, _remove_links)
    if spared is None:
        return (*ours, _remove_rule, _remove_tables, _remove_leftovers)
    if spared.is_in_ipvs_mode:
        return (_remove_tables, give_back, _remove_routes, _remove_rule)
    return (prefer_own_sources, _remove_tables, _let_end, *ours, _remove_rule)


def _remove_servers(config: Config) -> list[str]:
    """Remove all virtual servers but excluded ones and return what could not be removed. Raises KernelError."""
    excluded = Ranges(map(parse_cidr, config.exclude_cidrs))
    try:
        ipvs = Ipvs()
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []  # a kernel without IPVS has no servers
        raise
    removed = [key for key in ipvs.servers() if key.address not in excluded]
    refused = ipvs.apply([IpvsStep(Verb.DEL_SERVICE, key) for key in (*removed, PROBE)])
    log.info("Removed virtual servers", count=len(removed) - len(refused))
    return [f"virtual server {item.step.key}: {os.strerror(item.errno)}" for item in refused]


def _let_end() -> list[str]:
    time.sleep(REQUEST_SECONDS)
    return []


# Each of these returns what could not be removed. Raises KernelError, NftError when nothing could be looked at.


def _remove_links() -> list[str]:
    return Links().remove_link()


def _remove_routes() -> list[str]:
    return Links().remove_routes()


def _remove_rule() -> list[str]:
    return Forwarding(Libnftables()).remove() if _has_nftables() else []


def _remove_tables() -> list[str]:
    if _has_nftables():
        Libnftables().run(delete_tables(Ruleset(TABLE.name).tables()))
    return []


def _remove_leftovers() -> list[str]:
    return (Leftovers(Libnftables()).remove() if _has_nftables() else []) + legacy_advice()


def _has_nftables() -> bool:
    """Whether the kernel can have rules of ours at all."""
    try:
        open_ruleset().close()
    except Fatal:
        return False
    return True
