"""The only loop: take what changed, plan it, compare, apply, and now and then verify.

One thread runs this loop and owns the wanted state and every kernel handle; nobody else writes to the kernel.
It holds no decision of its own: what the node should have is in `desired`, which steps follow is decided in
plan.diff, and how they are carried out in kernel.kernel.

Nothing is programmed before every kind of object has been listed once, and while another proxy has this node;
objects are followed meanwhile. An object that the kernel refused waits in `plan.backoff`, longer each time; when a
whole turn failed, everything is pending, and `_retry` says when it goes on.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import structlog

from ipvsproxy.base import garbage_collection, messages
from ipvsproxy.base.address import parse_cidr
from ipvsproxy.base.timer import Timer
from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import (
    ApiServers,
    Changed,
    Event,
    Inbox,
    Listed,
    LockAcquired,
    NodeAddressesChanged,
    Removed,
    SourceFailed,
)
from ipvsproxy.exchange.report import Report, Sync
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.affected import families_behind, services_affected
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.dependencies import redirect_ends
from ipvsproxy.plan.diff import Steps, diff
from ipvsproxy.plan.notification import Notification
from ipvsproxy.plan.rules import elements
from ipvsproxy.plan.state import Dirty, FrontendKey
from ipvsproxy.reconciler.drain import Drainer
from ipvsproxy.reconciler.foreign_servers import ForeignServers
from ipvsproxy.reconciler.repair import Repairer
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.elements import ElementKey
from nft import NftError

RETRY_SECONDS = (0.1, 30.0)
LOGGED_AT_ONCE = 10
SUSPICION_SECONDS = 1.0

log = structlog.get_logger()


class Fatal(Exception):
    """The process cannot do its work and must end."""


class Loop:
    """The machine: everything between the inbox and the kernel."""

    def __init__(  # noqa: PLR0913 - what a process is put together of
        self,
        config: Config,
        inbox: Inbox,
        kernel: Kernel,
        clock: Callable[[], float] = time.monotonic,
        report: Report | None = None,
        *,
        alone: bool = True,
        ask: Callable[[], int] | None = None,
    ) -> None:
        self._report = report or Report()
        self._config = config
        self._inbox = inbox
        self._kernel = kernel
        self._clock = clock
        self._wanted = WantedState(config, self._report, ask, clock)
        self._report.holders(self._wanted.ledger.holders)
        self._excluded = [parse_cidr(text) for text in config.exclude_cidrs]
        self._pending = Dirty()
        self._sweeper = Sweeper(kernel, clock, self._report)
        self._drainer = Drainer(kernel, self._sweeper, clock, self._report)
        self._foreign = ForeignServers(self._report, config.node_name)
        self._repairer = Repairer(kernel, self._report, clock, config.sync_period, config.node_name)
        self._alone = alone
        self._rival = ""
        self._started = False
        self._node_unseen = True
        self._backoff = Backoff()
        self._retry = Timer(clock, *RETRY_SECONDS)
        self._next_verify = 0.0

    def run(self) -> None:
        """Run for ever. Raises Fatal."""
        while True:
            if self.reconcile(self._inbox.take(self._timeout())) and not self._wanted.backlog:
                # What arrives meanwhile is handled together.
                time.sleep(self._config.min_sync_period)

    def reconcile(self, events: list[Event]) -> bool:
        """Handle some events and whatever is due; tell whether that was any work. Raises Fatal."""
        external = [event for event in events if not self._is_own(event)]
        for event in external:
            self._handle(event)
        self._wanted.ask_about_addresses()
        if not self._may_work or (events and not external):
            return False
        if self._started:
            # In a busy cluster, too, where events never stop.
            self._repairer.sample()
            if not external and self._timeout() != 0:
                return False
        if external:
            self._report.queued()
        began = self._clock()
        try:
            changes = self._work()
            self._sweeper.sweep()
        except (KernelError, NftError) as error:
            # Nothing is known to be lost by stopping half way: what was not recorded is still pending.
            log.exception("Could not sync, will retry", err=str(error))
            self._everything_pending()
            self._retry.later()
            self._report.failed()
        else:
            if self._started:
                self._report_sync(self._clock() - began, changes)
        return True

    def _handle(self, event: Event) -> None:
        """Take note of an event. Raises Fatal."""
        match event:
            case Changed() | Removed() | Listed():
                self._take(event)
            case NodeAddressesChanged():
                self._node_unseen = True
            case OtherNodeAddresses():
                self._wanted.store.neighbours(event)
            case ApiServers(servers):
                self._wanted.api_servers(servers)
            case LockAcquired():
                self._alone = True
            case SourceFailed(reason):
                raise Fatal(reason)
            case _:
                self._repairer.mark(event)

    def _is_own(self, event: Event) -> bool:
        """Whether the kernel tells of what we have done, or of what we will read anyway."""
        return isinstance(event, Notification) and (not self._started or self._kernel.consume_own(event))

    @property
    def _may_work(self) -> bool:
        return self._alone and self._wanted.store.synced

    def _take(self, event: Listed | Changed | Removed) -> None:
        different = self._wanted.store.apply(event)
        count = len(event.objects) if isinstance(event, Listed) else event.versions
        # Old annotations come with every version of a slice: only what has just changed says when it began.
        triggered = event.triggered if isinstance(event, Changed) and different else 0.0
        self._report.received(event.kind, count, triggered)

    def _report_sync(self, seconds: float, changes: int) -> None:
        log.debug("Completed sync", seconds=round(seconds, 6), changes=changes, pending=len(self._pending))
        self._report.synced(
            Sync(
                seconds=seconds,
                changes=changes,
                services=len(self._wanted.store.services),
                frontends=len(self._wanted.ledger.frontends),
                draining=self._drainer.servers,
                draining_destinations=self._drainer.destinations,
                pending=len(self._pending) + len(self._backoff),
                behind=families_behind(self._pending, self._backoff.families),
                limited=self._wanted.limited,
                backlog=self._wanted.backlog,
            )
        )

    def _everything_pending(self) -> None:
        """What is wanted, what is there (some of it may be to go), and what failed."""
        self._pending.update(self._wanted.ledger.everything())
        self._pending.update(self._kernel.shadow.everything())
        self._pending.update(self._backoff.everything())

    def _work(self) -> int:
        """Do what is due and return the number of changes to the kernel."""
        if not self._started:
            return self._start() if self._retry.due() else 0
        is_time = self._clock() >= self._next_verify
        problem = None
        if is_time or self._node_unseen or self._wanted.store.node_changed:
            problem = self._try_to_look_at_node()
        if is_time or self._wanted.store.host_ports.has_news:
            self._read_listeners()
        self._plan()
        if self._is_due(self._repairer.next):
            self._repair()
        if is_time:
            self._verify()
        is_work = self._pending or self._is_due(self._backoff.next)
        changes = self._apply() if is_work and self._retry.due() else 0
        changes += self._end_drains()
        if problem:
            raise problem
        return changes

    def _try_to_look_at_node(self) -> KernelError | None:
        """Look at the node, or return why that cannot be done: Services are served with the facts there were."""
        try:
            self._look_at_node()
        except KernelError as error:
            self._node_unseen = True
            return error
        return None

    def _read_listeners(self) -> None:
        """Read on which ports programs of this node listen; where that fails, what was known counts."""
        try:
            self._wanted.listening(self._kernel.listening())
        except KernelError as error:
            log.warning("Could not list listening sockets, keeping the last known ones", err=str(error))

    def _start(self) -> int:
        """Adopt what is there, load the rules, and bring everything to the wanted state, in this order.

        Where something is adopted, the guard must know every frontend of it before it takes effect, so all rules
        come in one transaction. On an empty node the Services that everybody else waits for come first.
        """
        began = self._clock()
        self._wanted.store.all_dirty()
        self._kernel.adopt()
        self._read_listeners()
        self._look_at_node()
        shadow, (first, rest) = self._kernel.shadow, self._wanted.stages()
        changes = 0
        # A start that is tried again has planned everything already, perhaps with other facts.
        is_new = not (shadow.servers or shadow.vips or self._wanted.ledger.frontends)
        if first and rest and is_new:
            changes += self._bring_up(first)
            log.info("Synced the Services of API server and DNS", services=len(first), seconds=self._since(began))
        else:
            rest = first + rest
        self._pending.update(shadow.everything())
        self._foreign.found(shadow.servers)
        changes += self._bring_up(rest)
        self._started = True
        self._wanted.follow_addresses()
        garbage_collection.settle()
        self._next_verify = self._clock() + self._config.sync_period
        log.info(
            messages.SYNCED,
            services=len(self._wanted.store.services),
            frontends=len(self._wanted.ledger.frontends),
            changes=changes,
            seconds=self._since(began),
        )
        if not self._pending and not self._backoff:
            # Otherwise with the next verification: until then kube-proxy's rules may still serve what is missing.
            self._kernel.take_over()
        return changes

    def _bring_up(self, keys: list[str]) -> int:
        """Plan Services, load the rules of all that are planned, then the rest; return the number of changes."""
        self._pending.update(self._wanted.plan_all(keys, self._report.progressed))
        # What has been adopted and is to go must not answer without any rules until it is gone.
        leaving = self._wanted.guards_of_leaving(self._kernel.shadow.vips)
        refused = self._kernel.rules.load({**self._wanted.ledger.elements, **leaving})
        self._pending.slots = leaving.keys() | refused.slots
        return self._apply()

    def _since(self, began: float) -> float:
        return round(self._clock() - began, 3)

    def _look_at_node(self) -> None:
        kernel = self._kernel
        touched = self._wanted.look_at_node(kernel.other_addresses(), kernel.reserved(), kernel.senders())
        self._node_unseen = False
        self._pending.update(touched)

    def _plan(self) -> None:
        """Plan the next of the Services that have changed; what that touches is to be done at once."""
        if not self._wanted.backlog:
            return
        keys, touched = self._wanted.plan_next()
        if touched:
            log.debug("Planned changed Services", services=keys[:LOGGED_AT_ONCE], frontends=len(touched.servers))
            self._pending.update(touched)
            self._retry.now()

    def _apply(self) -> int:
        """Carry out what is pending and return the number of changes; what fails waits by itself."""
        self._pending.update(self._backoff.due(self._clock()))
        self._found_different(self._kernel.settle_doubts())
        pending, self._pending = self._pending, Dirty()
        pending.slots |= self._backoff.among(self._needs(pending.servers))
        ledger = self._wanted.ledger
        steps = diff(pending, ledger, self._kernel.shadow, self._protected)
        foreign = self._foreign.among(steps.removed, self._kernel.shadow.servers)
        began = self._clock()
        failed = self._kernel.apply(steps, self._related(pending, steps)) if steps else Dirty()
        self._foreign.removed(foreign, failed.servers)
        self._backoff.settle(pending, failed, self._clock(), self._clock() - began)
        self._note(pending, failed, steps)
        return steps.count()

    def _needs(self, keys: Iterable[FrontendKey]) -> Iterator[ElementKey]:
        """Yield what new frontends need beside what is theirs alone: it may wait since others needed it, too."""
        wanted, servers = self._wanted.ledger.frontends, self._kernel.shadow.servers
        for key in keys:
            frontend = wanted.get(key) if key not in servers else None
            if frontend is not None:
                yield from elements(frontend).shared

    def _note(self, pending: Dirty, failed: Dirty, steps: Steps) -> None:
        """Take over what has been carried out of what was pending, and tell what has not."""
        ledger = self._wanted.ledger
        self._drainer.note(pending.servers, ledger.frontends)
        new_vips = [vip for vip in steps.new_vips if vip not in failed.vips]
        self._sweeper.note(pending, ledger.frontends, self._backoff, new_vips)
        for service, reason in services_affected(failed, ledger).items():
            self._wanted.report_refused(service, reason)
        self._retry.reset()

    def _related(self, pending: Dirty, steps: Steps) -> Dirty | None:
        """Return what failed earlier, is not tried now, and matters to what is."""
        if not self._backoff:
            return None
        leading_to = (key for step in steps.switched for key in redirect_ends(step))
        return self._backoff.related(pending, self._wanted.ledger.elements, leading_to)

    def _protected(self, key: FrontendKey) -> bool:
        return any(key.address in cidr for cidr in self._excluded)

    def _end_drains(self) -> int:
        """Delete what has drained and return the number of changes; what fails is compared again."""
        changes, failed = self._drainer.end(self._wanted.ledger.frontends)
        if failed:
            self._backoff.settle(Dirty(), failed, self._clock())
        return changes

    def _is_due(self, moment: float | None) -> bool:
        return moment is not None and self._clock() >= moment

    def _repair(self) -> None:
        """Put right what others have changed; where they were at work, IPVS, which tells nothing, may be next."""
        touched = self._repairer.repair()
        if not self._repairer.is_contended:
            self._next_verify = min(self._next_verify, self._clock() + SUSPICION_SECONDS)
        if touched:
            self._found_different(touched)
            self._retry.now()

    def _found_different(self, touched: Dirty) -> None:
        """Take note of what the kernel has otherwise than we had left it, to be compared with what is wanted."""
        self._foreign.found(touched.servers)
        self._pending.update(touched)

    def _verify(self) -> None:
        """Compare the kernel with what we know of it; differences are repaired by the next apply."""
        self._next_verify = self._clock() + self._config.sync_period
        self._repairer.calm()
        self._wanted.report_withheld()
        changed = self._kernel.verify()
        if changed:
            log.warning(messages.VERIFICATION_REPAIRED, servers=len(changed.servers), vips=len(changed.vips))
            self._report.repaired(len(changed))
            self._found_different(changed)
            self._retry.now()
        if self._kernel.rival != self._rival:
            self._rival = self._kernel.rival
            self._report.rival(self._config.node_name, self._rival)

    def _timeout(self) -> float | None:
        if not self._may_work:
            return None
        if self._started and self._wanted.backlog:
            return 0.0
        times = [self._next_verify if self._started else self._retry.at]
        if self._pending:
            times.append(self._retry.at)
        if self._backoff:
            times.append(max(self._backoff.next, self._retry.at))
        times += [self._drainer.next_look, self._sweeper.next_try]
        if self._started:
            times.append(self._repairer.next_sample)
        if self._repairer.next is not None:
            times.append(self._repairer.next)
        return max(0.0, min(times) - self._clock())
