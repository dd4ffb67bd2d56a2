"""The parts that have pods leave and join the groups of sources of their tenants.

Leaving comes before Services are planned, joining when all that have changed are in the kernel (`plan.tenants`).
No address joins a group while the kernel lets that group in where it may not connect, for as long as that is
refused: its pod reaches shared Services meanwhile. Pods of other groups do not wait.

What an address had open under its old group, and what its new one may not have, is cut.
"""

import math
from collections.abc import Callable

import structlog

from ipvsproxy.base import messages
from ipvsproxy.plan.groups_behind import Behind
from ipvsproxy.plan.rules import audience_element
from ipvsproxy.reconciler.apply import Applier
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.wanted_state import WantedState

log = structlog.get_logger()


class Leaving(Part):
    """Takes addresses out of the groups that are not theirs any more; `gone` are those that have left."""

    def __init__(self, wanted: WantedState, applier: Applier, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.gone: set[bytes] = set()
        self._wanted = wanted
        self._applier = applier

    @property
    def next_due(self) -> float:
        """At once while an address is in a wrong group."""
        return -math.inf if self._wanted.tenants.has_leaving else math.inf

    def run(self, now: float) -> int:  # noqa: ARG002 - at any time
        """Take them out."""
        addresses, touched = self._wanted.leave_groups()
        self.gone.update(addresses)
        self._applier.add(touched)
        return 0


class Joining(Part):
    """Puts addresses into their groups, and has connections cut of those that have left one."""

    def __init__(
        self,
        wanted: WantedState,
        applier: Applier,
        sweeper: Sweeper,
        leaving: Leaving,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(clock)
        self._wanted = wanted
        self._applier = applier
        self._sweeper = sweeper
        self._leaving = leaving
        self._were_lacking = False

    @property
    def next_due(self) -> float:
        """At once while an address may join a group, or has left one for good, or a group has come free."""
        tenants = self._wanted.tenants
        can_join = not tenants.are_settled and self._can_join()
        return -math.inf if can_join or self._left() or self._can_release else math.inf

    def run(self, now: float) -> int:  # noqa: ARG002 - at any time
        """Have connections cut, and put addresses into groups."""
        behind = self._behind()
        self._applier.add(self._wanted.join_groups(settled=not behind.all, behind=behind.groups))
        if self._can_release:
            self._wanted.release_groups()
        self._wanted.left_groups &= self._applier.backoff.among(self._wanted.left_groups)
        self._leaving.gone |= self._wanted.tenants.take_delayed()
        left = self._left()
        self._leaving.gone -= left
        self._sweeper.note_sources(left)
        self._log_lacking(are_lacking=self._wanted.tenants.lacks_groups)
        return 0

    def _log_lacking(self, *, are_lacking: bool) -> None:
        if are_lacking and not self._were_lacking:
            log.error(messages.TENANTS_ABOVE_LIMIT)
        self._were_lacking = are_lacking

    def _can_join(self) -> bool:
        behind = self._behind()
        return self._wanted.tenants.can_join(settled=not behind.all, behind=behind.groups)

    def _behind(self) -> Behind:
        """Return which groups no address may join yet.

        Until every Service that has changed is planned these are all, for addresses that change their group.
        """
        behind = self._applier.groups_behind()
        return behind._replace(all=True) if self._wanted.backlog else behind

    @property
    def _can_release(self) -> bool:
        """Whether the kernel has nothing of tenants that are gone."""
        if not self._wanted.tenants.has_ended_groups or self._wanted.tenants.has_leaving:
            return False
        return not (self._wanted.backlog or self._applier.groups_waiting)

    def _left(self) -> set[bytes]:
        """Return the addresses that have left a group, in the kernel as well, and whose new one is known."""
        if not self._leaving.gone:
            return set()
        tenants, backoff = self._wanted.tenants, self._applier.backoff
        planned = not (self._wanted.backlog or self._applier.has_untried)
        found = (a for a in self._leaving.gone if tenants.is_decided(a, planned=planned))
        return {a for a in found if not backoff.among([audience_element(a)])}
