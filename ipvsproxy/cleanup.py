"""Taking everything of ours and of a former kube-proxy out of the kernel (contract 1.15)."""

import errno
import os
from functools import partial

import structlog

from ipvsproxy.address import parse_cidr
from ipvsproxy.config import Config
from ipvsproxy.kernel.alone import Lock
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.leftovers import Leftovers, legacy_advice
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.kernel.rules import TABLE, delete_tables
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.loop import Fatal
from ipvsproxy.opening import open_ruleset, with_hint
from ipvsproxy.plan.diff import IpvsStep, Verb
from nft import Libnftables, NftError

log = structlog.get_logger()


def cleanup(config: Config) -> None:
    """Take servers, VIPs, kube-ipvs0, nft tables, rules in tables of others and ipsets out of the kernel.

    Not while a proxy is at work, which would put it all back. Settings made with sysctl stay, as do virtual
    servers inside --ipvs-exclude-cidrs and firewall-mark servers. Raises Fatal when something could not be
    removed, after everything else has been.
    """
    lock = Lock()
    holder = lock.take()
    if holder is not None:
        raise Fatal(
            f"an ipvsproxy is at work on this node ({holder}): end it first, or it would put everything back"
        )
    problems = []
    # In this order: the guard stays until nothing answers any more.
    for step in (partial(_remove_servers, config), _remove_links, _remove_rule, _remove_tables, _remove_leftovers):
        try:
            problems += step()
        except (KernelError, NftError, OSError) as error:
            problems.append(with_hint(error))
    if problems:
        raise Fatal(f"cleanup did not complete: {'; '.join(problems)}")
    log.info("cleaned up")


def _remove_servers(config: Config) -> list[str]:
    """Remove all virtual servers but excluded ones and return what could not be removed. Raises KernelError."""
    excluded = [parse_cidr(text) for text in config.exclude_cidrs]
    try:
        ipvs = Ipvs()
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []  # a kernel without IPVS has no servers
        raise
    doomed = [key for key in ipvs.servers() if not any(key.address in cidr for cidr in excluded)]
    refused = ipvs.apply([IpvsStep(Verb.DEL_SERVICE, key) for key in doomed])
    log.info("virtual servers removed", count=len(doomed) - len(refused))
    return [f"virtual server {item.step.key}: {os.strerror(item.errno)}" for item in refused]


# Each of these returns what could not be removed. Raises KernelError, NftError when nothing could be looked at.


def _remove_links() -> list[str]:
    return Links().remove_link()


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
