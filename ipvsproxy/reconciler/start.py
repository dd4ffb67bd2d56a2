"""The first part of all: adopt what is there, load the rules, and bring everything to the wanted state.

Where something is adopted, the guard must know every frontend of it before it takes effect, so all rules come in
one transaction. On an empty node the Services that everybody else waits for come first. A start that fails is
tried again as a whole: nothing else runs before it is done, and what it has done by then is adopted.
"""

from collections.abc import Callable

import structlog

from ipvsproxy.base import garbage_collection, messages
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.node_look import ListenerLook, NodeLook
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.schedulers import SchedulerLook
from ipvsproxy.reconciler.verify import Verifier
from ipvsproxy.reconciler.wanted_state import WantedState

log = structlog.get_logger()


class Start(Part):
    """Runs once, when every kind of object has been listed."""

    def __init__(  # noqa: PLR0913 - a start has to do with everything
        self,
        kernel: Kernel,
        wanted: WantedState,
        node: NodeLook,
        listeners: ListenerLook,
        schedulers: SchedulerLook,
        applier: Applier,
        verifier: Verifier,
        *,
        clock: Callable[[], float],
        report: Report,
    ) -> None:
        super().__init__(clock)
        self._kernel = kernel
        self._wanted = wanted
        self._node = node
        self._listeners = listeners
        self._schedulers = schedulers
        self._applier = applier
        self._verifier = verifier
        self._clock = clock
        self._report = report
        self.is_done = False
        self._may_begin: bool | None = None

    @property
    def next_due(self) -> float:
        """At once, or after the pause since it has failed."""
        return self.retry.at

    def may_begin_without_rights(self) -> bool:
        """Whether to begin though the API server refuses what tenants follow from: with shared Services only.

        Not where something is served that pods would lose by that: it stays as it is.
        """
        if self._may_begin is None:
            try:
                self._may_begin = self._kernel.may_begin_with_shared()
            except KernelError as error:
                log.warning("Could not read what the kernel has, keeping it", err=str(error))
                self._may_begin = False
            if self._may_begin:
                log.warning(messages.SHARED_ONLY)
        return self._may_begin

    def run(self, now: float) -> int:
        """Start; return the number of changes to the kernel. Raises KernelError, NftError."""
        wanted = self._wanted
        wanted.join_groups(settled=True)
        wanted.tenants.take_delayed()  # each frontend is swept in any case
        self._kernel.adopt()
        self._listeners.run(now)
        self._schedulers.start(now)
        self._node.run(now)
        wanted.remember_weights(self._kernel.shadow.servers)
        changes = self._bring_up_all()
        wanted.remember_weights(None)
        self.is_done = True
        wanted.follow_addresses()
        garbage_collection.settle()
        self._verifier.begin(self._clock())
        log.info(
            messages.SYNCED,
            services=len(wanted.services),
            frontends=len(wanted.frontends),
            changes=changes,
            seconds=self._since(now),
        )
        if not (self._applier.pending or self._applier.unfinished):
            # Otherwise with the next verification: until then kube-proxy's rules may still serve what is missing.
            self._kernel.take_over()
        return changes

    def _bring_up_all(self) -> int:
        began, shadow, applier = self._clock(), self._kernel.shadow, self._applier
        # A start that is tried again has planned everything already, perhaps with other facts.
        is_new = not (shadow.servers or shadow.vips or self._wanted.frontends)
        first, rest = self._wanted.take_stages()
        changes = 0
        if first and rest and is_new:
            changes += self._bring_up(first, is_new=True)
            log.info("Synced the Services of API server and DNS", services=len(first), seconds=self._since(began))
        else:
            rest = first + rest
        applier.add(self._wanted.everything())
        applier.found_different(shadow.everything())
        return changes + self._bring_up(rest, is_new=is_new)

    def _bring_up(self, keys: list[str], *, is_new: bool) -> int:
        """Plan Services, load the rules of all that are planned, then the rest; return the number of changes."""
        self._applier.add(self._wanted.plan_all(keys, self._report.progressed))
        # What has been adopted and is to go must not answer without any rules until it is gone.
        leaving = self._wanted.guards_of_leaving(self._kernel.shadow.vips)
        waiting = self._wanted.without_server(self._kernel.shadow, is_new=is_new)
        load = self._kernel.rules.begin if is_new else self._kernel.rules.load
        refused = load({**self._wanted.elements, **leaving, **waiting})
        self._applier.rules_loaded(leaving.keys() | waiting.keys() | refused.slots)
        return self._applier.run_start(self._clock())

    def _since(self, began: float) -> float:
        return round(self._clock() - began, 3)
