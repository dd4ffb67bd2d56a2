"""Assembly: the parts of the proxy, put together in reading order.

`run` never returns: a signal ends the process (`signals`), or one of its threads does (`_guard`).
"""

import errno
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from ipvsproxy import log as log_settings
from ipvsproxy import memory
from ipvsproxy.address import parse_cidr
from ipvsproxy.config import Config
from ipvsproxy.config.advice import family_advice
from ipvsproxy.kernel import host
from ipvsproxy.kernel.alone import Lock
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.elements import Elements
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.leftovers import Leftovers, legacy_advice
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.kernel.rules import ELSEWHERE, TABLE
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.watch import Watcher
from ipvsproxy.kube.api import Observe
from ipvsproxy.kube.events import Door
from ipvsproxy.kube.inbox import Alone, Inbox, NodeAddressesChanged, Source
from ipvsproxy.loop import Fatal, Loop
from ipvsproxy.outside import Outside
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.reload import FileWatcher
from ipvsproxy.serve.traffic import Look
from nft import Client, Libnftables, NftError, Transaction
from nft import ruleset as static_rules

NEEDS_NET_ADMIN = "the process needs the capability CAP_NET_ADMIN"
HINTS = {
    errno.EPERM: NEEDS_NET_ADMIN,
    errno.EACCES: NEEDS_NET_ADMIN,
    errno.EOPNOTSUPP: "load the module dummy on this host (modprobe dummy), or use a kernel that has CONFIG_DUMMY",
}

NEVER = (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)
"""Answers of nftables to rules that it will not take another time either."""
NEEDS_MODULES = (
    "load the modules nft_ct, nft_nat, nft_masq, nft_fib_inet, nft_reject_inet on this host, or use a kernel that"
    " has them, with CONFIG_NF_TABLES_ARP (or --quiet-arp=false), and nftables 1.0.2 or later"
)

log = structlog.get_logger()


def run(config: Config, recheck: Callable[[], list[str]]) -> None:
    """Run the proxy until the process is ended. Raises Fatal when it cannot start.

    `recheck` returns what is wrong with the configuration files as they are when it is called.
    """
    threading.excepthook = _crashed
    memory.expect_many_objects()
    FileWatcher(config.files, recheck, _restart).start()
    host.set_oom_score(config.oom_score_adj)
    host.allow_descriptors()
    config = replace(config, families=_families(config))
    inbox = Inbox()
    outside = Outside(config, log_settings.set_verbosity)
    if config.service_metrics:
        outside.show_traffic(_kernel_counters())
    objects, door = source(config, outside.observe_request)
    _listen(outside, door)
    lock = Lock()
    holder = lock.take()
    kernel = open_kernel(config)
    if holder is None:
        prepare(kernel)
    watcher = Watcher(TABLE.name, inbox.put, lambda: inbox.put(NodeAddressesChanged()))
    _guard("kernel-watcher", watcher.run)
    objects.start(inbox)
    outside.send_events(door)
    loop = Loop(config, inbox, kernel, report=outside.report, alone=holder is None)
    _guard("loop", loop.run)
    if holder is not None:
        log.warning("another ipvsproxy has this node, waiting for its end", holder=str(holder))
        outside.standby(str(holder))
        _guard("turn", partial(_await_turn, lock, kernel, outside, inbox))
    threading.Event().wait()


def init(config: Config) -> None:
    """Do what needs more rights than running does: load modules, make kernel settings. Raises Fatal.

    For a first container with all privileges, so that the second one needs only CAP_NET_ADMIN. Asks no API
    server, so that it never waits for one.
    """
    prepare(open_kernel(config))
    log.info("this host is ready")


def open_kernel(config: Config) -> Kernel:
    """Open every kernel handle and check what the data plane needs; nothing is changed. Raises Fatal."""
    ipvs = _open_ipvs()
    try:
        _probe_scheduler(ipvs, config.scheduler)
        ruleset, nft = _open_ruleset(), Libnftables()
        mark = config.masquerade_mark
        _probe_rules(nft, static_rules(mark, quiet_arp=config.quiet_arp))
        return Kernel(
            ipvs, Links(), nft, ruleset, Forwarding(nft, mark), mark,
            nameservers=host.nameservers,
            quiet_arp=config.quiet_arp,
            keep_settings=partial(host.keep, config),
            make_settings=partial(host.prepare, config, ipvs),
            take_over=Leftovers(nft).tend,
            read_set=Elements(TABLE.name).texts,
            conntrack=Conntrack(),
        )  # fmt: skip
    except (KernelError, NftError, OSError) as error:
        raise Fatal(_with_hint(error)) from error


def prepare(kernel: Kernel) -> None:
    """Make the kernel settings and the link that the data plane needs. Raises Fatal."""
    try:
        kernel.prepare()
    except (KernelError, host.SysctlError, OSError) as error:
        raise Fatal(_with_hint(error)) from error


def _await_turn(lock: Lock, kernel: Kernel, outside: Outside, inbox: Inbox) -> None:
    """Wait until the other proxy of this node has ended, then let the loop go. Raises Fatal."""
    lock.wait()
    log.info("the other ipvsproxy has ended, taking over")
    prepare(kernel)
    outside.standby("")
    inbox.put(Alone())


def _families(config: Config) -> frozenset[int]:
    """Return the IP families this host supports. Raises Fatal when the settings are all for another one."""
    families = host.families()
    problem, warnings = family_advice(config, families)
    for warning in warnings:
        log.warning(warning)
    if problem:
        raise Fatal(problem)
    log.info("IP families", families=sorted(families))
    return families


def _open_ipvs() -> Ipvs:
    try:
        return Ipvs()
    except KernelError as error:
        raise Fatal(
            f"the kernel has no IPVS ({error}): load the module ip_vs on this host (modprobe ip_vs), or use a"
            " kernel that has CONFIG_IP_VS"
        ) from error
    except OSError as error:
        raise Fatal(_with_hint(error)) from error


def _open_ruleset() -> Ruleset:
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
            f"the kernel has no nf_tables ({error}): load the module nf_tables on this host (modprobe nf_tables),"
            " or use a kernel that has CONFIG_NF_TABLES_INET"
        ) from error
    return ruleset


def _probe_rules(nft: Client, rules: str) -> None:
    """Have the kernel judge the static rules, which takes modules that only they make it load. Raises Fatal.

    What may be better in a moment (memory, another program's transaction) is for the loop, which tries again.
    """
    transaction = Transaction(TABLE, ELSEWHERE)
    transaction.delete_table()
    transaction.load(rules)
    try:
        nft.check(transaction)
    except NftError as error:
        if error.errno not in NEVER:
            log.warning("nftables does not take the rules at the moment", error=error.text[:200])
            return
        hint = HINTS.get(error.errno, "") if error.errno in (errno.EPERM, errno.EACCES) else NEEDS_MODULES
        raise Fatal(f"nftables does not take the rules ({error.text[:500]}): {hint}") from error


def _probe_scheduler(ipvs: Ipvs, scheduler: str) -> None:
    """Make sure that virtual servers can have this scheduler. Raises Fatal, KernelError."""
    if any(server.scheduler == scheduler for server in ipvs.servers().values()):
        return
    module = f"ip_vs_{scheduler}"
    host.load_module(module)
    try:
        ipvs.probe(scheduler)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        raise Fatal(
            f"the IPVS scheduler {scheduler!r} (--ipvs-scheduler, ipvs.scheduler) is not there: load the module"
            f" {module} on this host (modprobe {module}), or choose another one"
        ) from error


def _with_hint(error: Exception) -> str:
    """Return what went wrong and, where it is known, what to do about it."""
    hint = HINTS.get(getattr(error, "errno", None) or 0, "")
    return f"{error}: {hint}" if hint else str(error)


def source(config: Config, observe: Observe) -> tuple[Source, Door | None]:
    """Return where objects come from, and the way to the API's events if there is an API.

    Imports stay inside: one source does not need what the other one needs.
    """
    if config.manifests is not None:
        from ipvsproxy.kube.manifests import ManifestSource

        return ManifestSource(config.manifests), None
    from ipvsproxy.kube.client import ApiSource

    api = ApiSource(config.kubeconfig, config.master, config.node_name, observe=observe)
    return api, api.client


def _kernel_counters() -> Callable[[], Look]:
    """Return how the kernel's counters are opened; imported here, since most proxies show none."""
    from ipvsproxy.kernel.view import View

    return View


def _listen(outside: Outside, door: Door | None) -> None:
    """Open the servers of this process. Raises Fatal with bindAddressHardFail, after an event about it."""
    try:
        outside.listen()
    except OSError as error:
        outside.last_words(door, error)
        raise Fatal(f"cannot listen: {error}") from error


def cleanup(config: Config) -> None:
    """Take everything of ours and of a former kube-proxy out of the kernel (contract 1.15).

    Not while a proxy is at work, which would put it all back. That is: servers, VIPs, kube-ipvs0, nft tables,
    rules in tables of others, ipsets. Settings made with sysctl
    stay, as do virtual servers inside --ipvs-exclude-cidrs and firewall-mark servers. Raises Fatal when something
    could not be removed, after everything else has been.
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
            problems.append(_with_hint(error))
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
        transaction = Transaction(TABLE, ELSEWHERE)
        transaction.delete_table()
        Libnftables().run(transaction)
    return []


def _remove_leftovers() -> list[str]:
    return (Leftovers(Libnftables()).remove() if _has_nftables() else []) + legacy_advice()


def _has_nftables() -> bool:
    """Whether the kernel can have rules of ours at all."""
    try:
        _open_ruleset().close()
    except Fatal:
        return False
    return True


def _guard(name: str, work: Callable[[], None]) -> None:
    """Start a thread without which the process is of no use: when it cannot go on, the process ends."""

    def guarded() -> None:
        try:
            work()
        except Fatal as error:
            log.error("cannot go on", error=str(error))
            os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def _crashed(crash: threading.ExceptHookArgs) -> None:
    """End the process with any of its threads, so that a supervisor starts it again: none is there for nothing."""
    told = (crash.exc_type, crash.exc_value, crash.exc_traceback)
    log.error("a thread has crashed", thread=crash.thread.name if crash.thread else None, exc_info=told)
    os._exit(1)


def _restart(file: Path) -> None:
    """End, so that a supervisor starts the process with what the file holds now."""
    log.error("the content of the configuration file was updated, ending to be started again", file=str(file))
    os._exit(1)
