"""The only loop: it takes events, and runs those of its parts that are due.

One thread runs it and owns the wanted state and every kernel handle; no other thread writes to the kernel, but
for tests of schedulers (`reconciler.schedulers`). It decides nothing itself: what the node should have is in
`wanted_state`, which steps follow is decided in plan.diff, and how they are carried out in kernel.kernel. Nothing
is programmed before every kind of object has been listed once, and while another proxy has this node; objects are
followed meanwhile.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from ipvsproxy.base.errors import Fatal
from ipvsproxy.exchange.inbox import (
    ApiServers,
    Changed,
    Event,
    Inbox,
    Listed,
    LockAcquired,
    NodeAddressesChanged,
    Removed,
    RightRefused,
    SchedulersFound,
    SourceFailed,
)
from ipvsproxy.exchange.report import Report, Sync
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.notification import Notification
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.drain import Drainer
from ipvsproxy.reconciler.groups import Joining, Leaving
from ipvsproxy.reconciler.node_look import ListenerLook, NodeLook
from ipvsproxy.reconciler.part import Part, PartFailed
from ipvsproxy.reconciler.planner import Planner, Withheld
from ipvsproxy.reconciler.repair import Repairer
from ipvsproxy.reconciler.sample import Sampler
from ipvsproxy.reconciler.schedulers import SchedulerLook
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.start import Start
from ipvsproxy.reconciler.verify import Verifier
from ipvsproxy.reconciler.wanted_state import WantedState
from nft import NftError

log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """The parts of the loop, in the order in which a pass runs those that are due. `start` comes before all."""

    start: Start
    node: NodeLook
    listeners: ListenerLook
    schedulers: SchedulerLook
    leaving: Leaving
    planner: Planner
    withheld: Withheld
    sampler: Sampler
    repairer: Repairer
    verifier: Verifier
    applier: Applier
    joining: Joining
    drainer: Drainer
    sweeper: Sweeper

    def __iter__(self) -> Iterator[Part]:
        return iter((
            self.node, self.listeners, self.schedulers, self.leaving, self.planner, self.withheld, self.sampler,
            self.repairer, self.verifier, self.applier, self.joining, self.drainer, self.sweeper,
        ))  # fmt: skip


class Loop:
    """Everything between the inbox and the kernel. `min_sync_period` is the least pause between two passes."""

    def __init__(  # noqa: PLR0913 - what a process is put together of
        self,
        inbox: Inbox,
        wanted: WantedState,
        parts: Parts,
        clock: Callable[[], float],
        report: Report,
        *,
        min_sync_period: float = 0.0,
        alone: bool = True,
    ) -> None:
        self.parts = parts
        self._inbox = inbox
        self._wanted = wanted
        self._clock = clock
        self._report = report
        self._min_sync_period = min_sync_period
        self._alone = alone
        # Without tenants nothing joins or leaves a group: each part costs every pass a look.
        of_tenants = () if wanted.tenants else (parts.leaving, parts.joining)
        self._in_order = tuple(part for part in parts if part not in of_tenants)
        self._failing: set[Part] = set()

    def run(self) -> None:
        """Run for ever. Raises Fatal."""
        while True:
            if self.reconcile(self._inbox.take(self.timeout())) and not self._is_in_the_middle:
                # What arrives meanwhile is handled together.
                time.sleep(self._min_sync_period)

    @property
    def _is_in_the_middle(self) -> bool:
        """Whether the next slice of some work is due."""
        applier, drainer, verifier = self.parts.applier, self.parts.drainer, self.parts.verifier
        return bool(self._wanted.backlog or applier.unfinished or drainer.is_unfinished or verifier.is_unfinished)

    def timeout(self) -> float | None:
        """Return the seconds until something is due; None when nothing is before another event."""
        if not self._may_work:
            return None
        return max(0.0, min(map(_due, self._running)) - self._clock())

    @property
    def _running(self) -> tuple[Part, ...]:
        """Nothing but the start before it is done."""
        start = self.parts.start
        return self._in_order if start.is_done else (start,)

    def reconcile(self, events: list[Event]) -> bool:
        """Handle some events and whatever is due; return whether that was any work. Raises Fatal."""
        external: list[Event] = []
        for event in events:
            if isinstance(event, Changed) or not self._consume_own(event):  # most are of objects
                external.append(event)
                self._handle(event)
        self._wanted.ask_about_addresses()
        if not self._may_work or (events and not external):
            return False
        now, sampler = self._clock(), self.parts.sampler
        if self.parts.start.is_done and _due(sampler) <= now:
            # Also in a busy cluster, where events never end; where it finds nothing, it is no pass.
            self._run(sampler, now)
        if not external and min(map(_due, self._running)) > now:
            return False
        if external:
            self._report.queued()
        self._pass(now)
        return True

    def _pass(self, now: float) -> None:
        """Run what is due, and what becomes due by that, in order."""
        changes, failed = 0, False
        for part in self._due_parts(now):
            changes += self._run(part, now)
            failed = failed or part in self._failing
        if failed:
            self._report.failed()
        elif self.parts.start.is_done and not self._failing:
            self._report_sync(self._clock() - now, changes)

    def _due_parts(self, now: float) -> Iterator[Part]:
        start = self.parts.start
        if not start.is_done and _due(start) <= now:
            yield start
        if start.is_done:
            for part in self._in_order:
                if part.next_due <= now and part.retry.at <= now:
                    yield part

    def _run(self, part: Part, now: float) -> int:
        """Run one part and return the number of changes to the kernel."""
        try:
            changes = part.run(now)
        except (KernelError, NftError, PartFailed) as error:
            log.exception("Could not sync, will retry", part=type(part).__name__, err=str(error))
            part.retry.later()
            self._failing.add(part)
            return 0
        part.retry.reset()
        self._failing.discard(part)
        return changes

    def _handle(self, event: Event) -> None:
        """Take note of an event. Raises Fatal."""
        match event:
            case Changed() | Removed() | Listed():
                self._take(event)
            case NodeAddressesChanged():
                self.parts.node.addresses_changed()
            case OtherNodeAddresses():
                self._wanted.other_nodes(event)
            case ApiServers(servers):
                self._wanted.api_servers(servers)
            case SchedulersFound():
                self.parts.schedulers.found(event)
            case LockAcquired():
                self._alone = True
            case RightRefused(kind):
                self._wanted.right_refused(kind)
            case SourceFailed(reason):
                raise Fatal(reason)
            case _:
                self.parts.sampler.mark(event)
                self.parts.repairer.mark(event)

    def _consume_own(self, event: Event) -> bool:
        """Whether the kernel tells of what we have done, or of what we will read anyway."""
        if not isinstance(event, Notification):
            return False
        return not self.parts.start.is_done or self.parts.repairer.consume_own(event)

    @property
    def _may_work(self) -> bool:
        if not self._alone:
            return False
        start, wanted = self.parts.start, self._wanted
        return start.is_done or wanted.is_listed or (wanted.lacks_rights_only and start.may_begin_without_rights())

    def _take(self, event: Listed | Changed | Removed) -> None:
        different = self._wanted.apply(event)
        match event:
            case Changed(kind, versions=count, triggered=triggered):
                # Old annotations come with every version of a slice: only a change shows when it began.
                self._report.received(kind, count, triggered if different else 0.0)
            case Removed(kind, versions=count):
                self._report.received(kind, count, 0.0)
            case Listed(kind, objects):
                self._report.received(kind, len(objects), 0.0)

    def _report_sync(self, seconds: float, changes: int) -> None:
        wanted, applier, drainer = self._wanted, self.parts.applier, self.parts.drainer
        pending = applier.pending
        log.debug("Completed sync", seconds=round(seconds, 6), changes=changes, pending=pending)
        self._report.synced(
            Sync(
                seconds=seconds,
                changes=changes,
                services=len(wanted.services),
                frontends=len(wanted.frontends),
                draining=drainer.servers,
                draining_destinations=drainer.destinations,
                pending=pending,
                behind=applier.behind,
                limited=wanted.limited,
                backlog=wanted.backlog,
                unfinished=applier.unfinished,
            )
        )


def _due(part: Part) -> float:
    """When to run a part: when it has something to do, and not before its pause after a failure."""
    return max(part.next_due, part.retry.at)
