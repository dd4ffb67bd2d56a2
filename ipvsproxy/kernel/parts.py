"""Which parts of the ruleset are there, and which are needed: by elements, by virtual servers, by rules of others.

What is needed once stays as long as the process runs: no change of a Service, and no program, makes rules go.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.notrack import Notrack
from ipvsproxy.kernel.scripts import FOR_UNTRACKED, REPLIES
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.state import FrontendKey, KernelState
from ipvsproxy.ruleset.elements import ElementKey, Value, needed_parts, ranged
from ipvsproxy.ruleset.schema import RANGES_BY_IPVS, SHORT_PATH, SOURCE_RANGES

NONE: frozenset[str] = frozenset()


class RulesetParts:
    """The parts that are `there`. Rules of others are looked at when one is missing."""

    def __init__(self, forwarding: Forwarding, notrack: Notrack) -> None:
        self.there = NONE
        self._forwarding = forwarding
        self._notrack = notrack

    def whole(
        self, elements: Mapping[ElementKey, Value], shadow: KernelState, more: frozenset[str] = NONE
    ) -> frozenset[str]:
        """Return all parts that rules need which are loaded with some elements."""
        parts = self.there | more | needed_parts(elements, servers=shadow.servers)
        return parts.union(self._because_of_forward(parts), self._because_of_notrack(parts))

    def missing_for(self, steps: Sequence[ElementStep], shadow: KernelState) -> frozenset[str]:
        """Return the parts that changes need, and that are not there."""
        coming = {step.slot: step.value for step in steps if step.value is not None}
        needed = needed_parts(coming, shadow.elements, shadow.servers)
        return self.missing(needed) if needed - self.there else NONE

    def lacking(self, servers: Iterable[FrontendKey], shadow: KernelState) -> list[ElementKey]:
        """Return the marks of those of some servers that need the part RANGES_BY_IPVS while that is not there."""
        if RANGES_BY_IPVS in self.there or SOURCE_RANGES not in self.there:
            return []
        return list(ranged(servers, shadow.elements))

    def missing(self, parts: frozenset[str] = NONE, *, anew: bool = False) -> frozenset[str]:
        """Return what is not there of some parts, and of those that rules of other programs make necessary.

        `anew`: also because of the parts that are there, which were judged when they came.
        """
        both = parts | self.there
        others = {*self._because_of_forward(both), *self._because_of_notrack(both if anew else parts - self.there)}
        return parts.union(others) - self.there

    def tidy(self) -> None:
        """Take away what is ours in chains of others and not needed any more."""
        self._forwarding.tidy()

    def _because_of_forward(self, parts: frozenset[str]) -> Iterator[str]:
        if self._forwarding.ensure(new=SHORT_PATH in parts):
            yield REPLIES

    def _because_of_notrack(self, parts: frozenset[str]) -> Iterator[str]:
        """All rules of the node are read, only where a part would be needed."""
        more = [name for part, name in FOR_UNTRACKED.items() if part in parts]
        if more and self._notrack.is_there():
            yield from more
