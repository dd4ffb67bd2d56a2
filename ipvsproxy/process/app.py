"""Assembly: the parts of the proxy, put together in reading order.

`run` never returns: a signal ends the process (`signals`), or one of its threads does (`_guard`).
"""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from ipvsproxy.base import garbage_collection, messages
from ipvsproxy.base.errors import Fatal, plain
from ipvsproxy.config import Config, TenantPods
from ipvsproxy.config.advice import family_advice, nodeport_note
from ipvsproxy.exchange.inbox import Inbox, LockAcquired, NodeAddressesChanged, Source, kinds
from ipvsproxy.kernel import host
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.watch import Watcher
from ipvsproxy.kube.api import Observe
from ipvsproxy.kube.events import EventClient
from ipvsproxy.probe import kube_proxy
from ipvsproxy.process import log as log_settings
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.process.observability import Observability
from ipvsproxy.process.preflight import open_kernel, prepare
from ipvsproxy.process.reload import FileWatcher
from ipvsproxy.serve.traffic import CounterReader

log = structlog.get_logger()


def run(config: Config, recheck: Callable[[], list[str]]) -> None:
    """Run the proxy until the process is ended. Raises Fatal when it cannot start.

    `recheck` returns what is wrong with the configuration files as they are when it is called.
    """
    threading.excepthook = _crashed
    check_mode(config)
    garbage_collection.expect_many_objects()
    FileWatcher(config.files, recheck, _restart).start()
    host.set_oom_score(config.oom_score_adj)
    host.allow_descriptors()
    config = replace(config, families=_families(config))
    inbox = Inbox()
    observability = Observability(config, log_settings.set_verbosity)
    if config.service_metrics:
        observability.show_traffic(_kernel_counters())
    if config.tenant_label:
        observability.show_refusals(_kernel_refusals())
    objects, client, ask = source(config, observability.observe_request)
    if reason := objects.check():
        raise Fatal(reason)
    _listen(observability, client)
    lock = InstanceLock()
    holder = lock.take()
    kernel = open_kernel(config)
    if holder is None:
        prepare(kernel)
    watcher = Watcher(TABLE.name, inbox.put, lambda: inbox.put(NodeAddressesChanged()))
    _guard("kernel-watcher", watcher.run)
    objects.start(inbox)
    observability.send_events(client)
    loop = make_loop(config, inbox, kernel, report=observability.report, alone=holder is None, ask=ask)
    _guard("loop", loop.run)
    if holder is not None:
        log.warning(messages.STANDBY, holder=str(holder))
        observability.standby(str(holder))
        _guard("turn", partial(_wait_for_lock, lock, kernel, observability, inbox))
    threading.Event().wait()


def init(config: Config) -> None:
    """Do what needs more rights than running does: load modules, make kernel settings. Raises Fatal.

    For a first container with all privileges, so that the second one needs only CAP_NET_ADMIN. Asks no API
    server, so that it never waits for one.
    """
    prepare(open_kernel(config))
    log.info("Prepared the host")


def check_mode(config: Config) -> None:
    """Warn that another mode is replaced. Raises Fatal where a kube-proxy still serves in such a mode."""
    if not config.other_mode:
        return
    running = kube_proxy.other_mode(config)
    if running:
        raise Fatal(
            f"A kube-proxy is running on this node ({running}); nothing has been changed. Stop it before"
            f" ipvsproxy is started here. {config.other_mode}"
        )
    log.warning(messages.OTHER_MODE, reason=config.other_mode)


def _wait_for_lock(lock: InstanceLock, kernel: Kernel, observability: Observability, inbox: Inbox) -> None:
    """Wait until the other proxy of this node has exited, then let the loop start. Raises Fatal."""
    lock.wait()
    log.info("Acquired the instance lock")
    prepare(kernel)
    observability.standby("")
    inbox.put(LockAcquired())


def _families(config: Config) -> frozenset[int]:
    """Return the IP families this host supports. Raises Fatal when the settings are all for another one."""
    families = host.families()
    problem, warnings = family_advice(config, families)
    for warning in warnings:
        log.warning(warning)
    if problem:
        raise Fatal(problem)
    if note := nodeport_note(config):
        log.info(note)
    log.info("Found IP families", families=sorted(families))
    return families


def source(config: Config, observe: Observe) -> tuple[Source, EventClient | None, Callable[[], int] | None]:
    """Return where objects come from; if that is an API, the way to its events, and one to ask about other nodes.

    Imports stay inside: one source does not need what the other one needs.
    """
    wanted = kinds(tenants=bool(config.tenant_label))
    if config.manifests is not None:
        from ipvsproxy.kube.manifests import ManifestSource

        return ManifestSource(config.manifests, wanted), None, None
    from ipvsproxy.kube.source import ApiSource

    all_pods = config.tenant_pods is TenantPods.ALL
    api = ApiSource(
        config.kubeconfig, config.master, config.node_name, observe=observe, kinds=wanted, all_pods=all_pods
    )
    return api, api.client, api.ask


def _kernel_counters() -> Callable[[], CounterReader]:
    """Return how the kernel's counters are opened; imported here, since most proxies show none."""
    from ipvsproxy.kernel.read.reader import KernelReader

    return KernelReader


def _kernel_refusals() -> Callable[[], Mapping[int, int]]:
    """Return what reads the kernel's counts; imported here, since most proxies have no tenants."""
    from ipvsproxy.kernel.read.refusals import read_refusals

    return read_refusals


def _listen(observability: Observability, client: EventClient | None) -> None:
    """Open the servers of this process. Raises Fatal with bindAddressHardFail, after an event about it."""
    try:
        observability.listen()
    except OSError as error:
        observability.send_last_events(client, error)
        raise Fatal(f"cannot listen: {plain(error)}") from error


def _guard(name: str, work: Callable[[], None]) -> None:
    """Start a thread that the process cannot do without: when it cannot continue, the process exits."""

    def guarded() -> None:
        try:
            work()
        except Fatal as error:
            log.error(messages.FATAL, err=str(error))
            os._exit(1)

    threading.Thread(target=guarded, name=name, daemon=True).start()


def _crashed(crash: threading.ExceptHookArgs) -> None:
    """End the process when any of its threads crashes, so that a supervisor starts it again."""
    exception = (crash.exc_type, crash.exc_value, crash.exc_traceback)
    log.error("Thread crashed", thread=crash.thread.name if crash.thread else None, exc_info=exception)
    os._exit(1)


def _restart(file: Path) -> None:
    """End, so that a supervisor starts the process with what the file holds now."""
    log.error(messages.CONFIG_CHANGED, file=str(file))
    os._exit(1)
