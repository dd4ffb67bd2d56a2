"""Assembly: the parts of the proxy, put together in reading order.

`run` never returns. The loop has a thread of its own, so that the main thread can wait for signals and end the
process at once, even while the loop is inside the kernel: every kernel state it leaves is a working one, and it
stays (contract 1.19). As process 1 of a container this is needed, since the kernel has no default action there.
"""

import os
import signal
import threading

import structlog

from ipvsproxy.address import parse_cidr
from ipvsproxy.config import Config
from ipvsproxy.kernel import host
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kernel import TABLE, Kernel
from ipvsproxy.kernel.links import AddressWatcher, Links
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kube.inbox import Inbox, NodeAddressesChanged, Source
from ipvsproxy.loop import Fatal, Loop
from ipvsproxy.plan.diff import IpvsStep, Verb
from nft import Libnftables, NftError, Transaction

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger()


def run(config: Config) -> None:
    """Run the proxy until a signal ends it. Raises Fatal when it cannot start."""
    # Blocked before any thread exists, so that all threads inherit it and only sigwait sees these signals.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    inbox = Inbox()
    kernel = open_kernel(config)
    AddressWatcher(lambda: inbox.put(NodeAddressesChanged())).start()
    source(config).start(inbox)
    loop = Loop(config, inbox, kernel)
    threading.Thread(target=_guarded, args=(loop,), name="loop", daemon=True).start()
    number = signal.sigwait(ENDING_SIGNALS)
    log.info("ending, the kernel keeps its state", signal=signal.Signals(number).name)
    os._exit(128 + number)


def open_kernel(config: Config) -> Kernel:
    """Open every kernel handle and check what the data plane needs. Raises Fatal."""
    try:
        ipvs = Ipvs()
    except KernelError as error:
        raise Fatal(
            f"the kernel has no IPVS ({error}): load the module ip_vs, or use a kernel that has it"
        ) from error
    except PermissionError as error:
        raise Fatal(f"{error}: the capability CAP_NET_ADMIN is needed") from error
    try:
        if not any(server.scheduler == config.scheduler for server in ipvs.servers().values()):
            ipvs.probe(config.scheduler)
    except KernelError as error:
        hint = f"load the module ip_vs_{config.scheduler}"
        raise Fatal(f"--ipvs-scheduler: {config.scheduler!r} is not available ({error}): {hint}") from error
    try:
        host.prepare(ipvs)
        links = Links()
        links.ensure_link()
        nft = Libnftables()
        return Kernel(ipvs, links, nft, Ruleset(TABLE.name), Forwarding(nft))
    except (KernelError, host.SysctlError, NftError) as error:
        raise Fatal(str(error)) from error


def source(config: Config) -> Source:
    """Return where objects come from. Imports stay inside: one source does not need what the other one needs."""
    if config.manifests is not None:
        from ipvsproxy.kube.manifests import ManifestSource

        return ManifestSource(config.manifests)
    from ipvsproxy.kube.client import ApiSource

    return ApiSource(config.kubeconfig, config.master, config.node_name)


def cleanup(config: Config) -> None:
    """Take everything of ours out of the kernel: servers, VIPs, kube-ipvs0, the nft table. Raises Fatal.

    Settings made with sysctl stay. Virtual servers inside --ipvs-exclude-cidrs and firewall-mark servers stay.
    """
    excluded = [parse_cidr(text) for text in config.exclude_cidrs]
    try:
        ipvs = Ipvs()
        doomed = [key for key in ipvs.servers() if not any(key.address in cidr for cidr in excluded)]
        ipvs.apply([IpvsStep(Verb.DEL_SERVICE, key) for key in doomed])
        Links().remove_link()
        # Last: the guard stays until nothing answers any more.
        nft = Libnftables()
        Forwarding(nft).remove()
        transaction = Transaction(TABLE)
        transaction.delete_table()
        nft.run(transaction)
    except (KernelError, NftError, PermissionError) as error:
        raise Fatal(f"cleanup did not complete: {error}") from error
    log.info("cleaned up", virtual_servers=len(doomed), table=str(TABLE))


def _guarded(loop: Loop) -> None:
    """Run the loop; whatever ends it ends the process, so that a supervisor starts it again."""
    try:
        loop.run()
    except Fatal as error:
        log.error("cannot go on", error=str(error))
    except BaseException:
        log.exception("the loop has crashed")
    os._exit(1)
