"""The part that brings the kernel to the wanted state: what is pending is compared, carried out, and recorded.

What takes longer than a moment is done in slices (`plan.slices`). An object that the kernel refused waits in
`plan.backoff`, longer each time. When a change fails as a whole, what was tried stays pending. Belongs to the
loop's thread.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain

from ipvsproxy.base.address import Ranges, parse_cidr
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.affected import families_behind
from ipvsproxy.plan.backoff import Backoff
from ipvsproxy.plan.dependencies import redirect_ends
from ipvsproxy.plan.diff import Steps, Verb
from ipvsproxy.plan.groups_behind import UP_TO_DATE, Behind, groups_behind
from ipvsproxy.plan.rules import elements
from ipvsproxy.plan.slices import Room, cut
from ipvsproxy.plan.state import Destination, Dirty, FrontendKey
from ipvsproxy.reconciler.drain import Drainer
from ipvsproxy.reconciler.foreign_servers import ForeignServers
from ipvsproxy.reconciler.part import Part
from ipvsproxy.reconciler.stale_connections import Sweeper
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.elements import ElementKey
from ipvsproxy.ruleset.schema import BY_SOURCE
from nft import NftError


class Applier(Part):
    """What is pending, and what waits after a refusal. `excluded` are ranges whose servers belong to others."""

    def __init__(  # noqa: PLR0913 - all that follows from a change
        self,
        kernel: Kernel,
        wanted: WantedState,
        drainer: Drainer,
        sweeper: Sweeper,
        foreign: ForeignServers,
        backoff: Backoff,
        room: Room,
        *,
        clock: Callable[[], float],
        excluded: Iterable[str] = (),
    ) -> None:
        super().__init__(clock)
        self.backoff = backoff
        self._kernel = kernel
        self._wanted = wanted
        self._drainer = drainer
        self._sweeper = sweeper
        self._foreign = foreign
        self._clock = clock
        self._excluded = Ranges(map(parse_cidr, excluded))
        self._pending = Dirty()
        self._room = room
        # What there was no room for, and the servers among it in the order of their turns.
        self._left = Dirty()
        self._turns: list[FrontendKey] = []
        # Destinations of such servers that the kernel has refused.
        self._refused: dict[FrontendKey, set[Destination]] = {}

    @property
    def next_due(self) -> float:
        """At once while anything is pending."""
        return -math.inf if self._pending or self._left else self.backoff.next

    @property
    def unfinished(self) -> int:
        """The number of kernel objects of whose changes there was no room for all."""
        return len(self._left)

    @property
    def has_untried(self) -> bool:
        """Whether there are changes that have not been tried, or not all of them."""
        return bool(self._pending or self._left)

    @property
    def pending(self) -> int:
        """The number of kernel objects that are to be tried, at once or later."""
        return len(self._pending) + len(self.backoff)

    @property
    def behind(self) -> frozenset[int]:
        """The families with rules that were not accepted."""
        return families_behind(self._pending, self.backoff.families)

    @property
    def groups_waiting(self) -> set[ElementKey]:
        """The elements of groups of sources that the kernel may not have as they are wanted."""
        tried = chain(self._pending.slots, self._left.slots)
        return {slot for slot in tried if slot.set.part == BY_SOURCE} | self.backoff.of_part(BY_SOURCE)

    def groups_behind(self) -> Behind:
        """Return which groups of sources no address may join yet."""
        waiting = self.groups_waiting
        if not waiting:
            return UP_TO_DATE
        return groups_behind(waiting, self._wanted.elements, self._kernel.shadow.elements)

    def add(self, touched: Dirty) -> None:
        """Have some names compared with the kernel, at once."""
        if touched:
            self._pending.update(touched)
            self.retry.now()

    def found_different(self, touched: Dirty) -> None:
        """Have names compared of which the kernel has something else than we had left."""
        self._foreign.found(touched.servers)
        self.add(touched)

    def rules_loaded(self, differing: Iterable[ElementKey]) -> None:
        """All rules have just been loaded: of elements, only these are still to be compared."""
        self._pending.slots = set(differing)

    def run(self, now: float) -> int:
        """Carry out as much of what is pending as there is room for; what fails waits by itself.

        Raises KernelError, NftError.
        """
        return self._run(now, is_start=False)

    def run_start(self, now: float) -> int:
        """Carry out all that is pending, but for the largest changes of single servers: nothing waits for those.

        Raises KernelError, NftError.
        """
        return self._run(now, is_start=True)

    def _run(self, now: float, *, is_start: bool) -> int:
        for different in self._kernel.settle_doubts():
            self.found_different(different)
        started, pending = self._clock(), self._take_pending(now)
        steps = self._wanted.steps(pending, self._kernel.shadow, self._is_protected)
        left = cut(steps, self._kernel.shadow, self._room, self._turns, self._refused, is_start=is_start)
        began = self._clock()
        failed = self._carry_out(pending, steps) if steps else Dirty()
        ended = self._clock()
        tried = pending
        if left:
            if not is_start:
                self._room.took(ended - began, began - started)
            failed.servers -= self._going_on(left.servers & failed.servers, steps)
            # Where all was refused before, the server waits with all of it.
            self._leave(left.without(failed))
            tried = pending.without(left)
        if self._refused:
            self._refused = {key: found for key, found in self._refused.items() if key in left.servers}
        self.backoff.settle(tried, failed, ended, ended - began)
        self._record(tried, failed)
        return steps.count()

    def _take_pending(self, now: float) -> Dirty:
        pending, self._pending = self._pending, Dirty()
        if self._left:
            pending.update(self._left)
            self._left = Dirty()
        if self.backoff.next <= now:
            pending.update(self.backoff.due(now))
        if self.backoff:
            needed = chain(self._needs(pending.servers), self._wanted.left_groups)
            pending.slots |= self.backoff.among(needed)
        return pending

    def _leave(self, left: Dirty) -> None:
        """Have what there was no room for take its turn: each of its servers is once the first."""
        self._left = left
        waiting = dict.fromkeys(key for key in self._turns[1:] if key in left.servers)
        self._turns = list(waiting | dict.fromkeys(left.servers))

    def _going_on(self, keys: AbstractSet[FrontendKey], steps: Steps) -> set[FrontendKey]:
        """Return those of some servers of which something was new; what was refused comes last from now on."""
        found, servers = set[FrontendKey](), self._kernel.shadow.servers
        for step in steps.added:
            if step.key in keys and step.key in servers and step.verb in (Verb.NEW_SERVICE, Verb.NEW_DEST):
                known = self._refused.setdefault(step.key, set())
                if not known.issuperset(step.destinations):
                    found.add(step.key)
                    known.update(set(step.destinations) - servers[step.key].destinations.keys())
        return found

    def _carry_out(self, pending: Dirty, steps: Steps) -> Dirty:
        """Carry out steps and return the names of what failed. Raises KernelError, NftError."""
        shadow = self._kernel.shadow
        unasked = [step for step in steps.removed if step.key not in self._wanted.frontends]
        foreign = self._foreign.among(unasked, shadow.servers)
        try:
            failed = self._kernel.apply(steps, self._related(pending, steps))
        except (KernelError, NftError):
            # What has been carried out is in the shadow, and is then found to be as wanted.
            self._pending.update(pending)
            self._foreign.found(server.key for server in foreign)
            raise
        finally:
            if steps.bound:
                bound = {vip.address for vip in steps.bound if vip in shadow.vips}
                self._sweeper.note_new_vips(steps.new_vips & bound)
        self._foreign.removed(foreign, failed.servers)
        return failed

    def _record(self, pending: Dirty, failed: Dirty) -> None:
        """Pass on what has been carried out of what was pending, and report what has not."""
        frontends = self._wanted.frontends
        self._drainer.note(pending.servers, frontends)
        self._sweeper.note(pending, frontends)
        if failed:
            self._wanted.report_failures(failed)

    def _needs(self, keys: Iterable[FrontendKey]) -> Iterator[ElementKey]:
        """Yield what new frontends need: their own may wait longer since it has changed, the rest for others."""
        wanted, servers = self._wanted.frontends, self._kernel.shadow.servers
        for key in keys:
            frontend = wanted.get(key) if key not in servers else None
            if frontend is not None:
                own, shared = elements(frontend)
                yield from own
                yield from shared

    def _related(self, pending: Dirty, steps: Steps) -> Dirty | None:
        """Return what failed earlier, is not tried now, and matters to what is."""
        if not self.backoff:
            return None
        leading_to = (key for step in steps.redirects for key in redirect_ends(step))
        return self.backoff.related(pending, self._wanted.elements, leading_to)

    def _is_protected(self, key: FrontendKey) -> bool:
        return key.address in self._excluded
