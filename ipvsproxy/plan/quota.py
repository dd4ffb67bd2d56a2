"""What of all Services is served when a namespace, or the node, is asked for more than its limit.

In: the size of each Service by tiers (`plan.tally`). Out: how many tiers of each are served. It depends on the
Services that there are and on nothing else, so every history ends alike:

* the tiers of a namespace are served in their order, so ClusterIPs come before what is reached from outside; in
the first tier that is not served in full, the older Services are * where the node is asked for too much, all
namespaces share it: each gets what it asks for up to one level, so that the small ones do not notice

Deterministic: no I/O, no clock. What costs more than the change itself is done only above a limit: n log n in the
Services of a namespace.
"""

from collections.abc import Iterator, Sequence

import msgspec

from ipvsproxy.plan.tally import ALL_TIERS, NO_LIMIT
from ipvsproxy.plan.waiting import RankedService

NOTHING = (0,) * ALL_TIERS


class Space(msgspec.Struct):
    """A namespace: the size of its Services by tiers, and those that are not served in full."""

    services: dict[str, RankedService]
    sizes: list[int]
    limited: dict[str, int]

    @property
    def size(self) -> int:
        """The size of all."""
        return sum(self.sizes)


class Quota:
    """The sizes of all Services and what is served of them; limits of 0 are none."""

    def __init__(self, namespace_limit: int, node_limit: int) -> None:
        self._namespace_limit = namespace_limit or NO_LIMIT
        self._node_limit = node_limit or NO_LIMIT
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._spaces: dict[str, Space] = {}
        self._total = 0
        self._level = self._namespace_limit
        self._changed: set[str] = set()

    def tiers(self, service: str) -> int:
        """Return how many tiers of a Service (`namespace/name`) are served, as of the last `settle`."""
        space = self._spaces.get(_namespace(service))
        return space.limited.get(service, ALL_TIERS) if space is not None and space.limited else ALL_TIERS

    def size(self, service: str) -> int:
        """Return the size of a Service, 0 for one that is not known."""
        return sum(self._sizes.get(service, NOTHING))

    @property
    def is_node_full(self) -> bool:
        """Whether it is the node's limit that namespaces are cut by."""
        return self._level < self._namespace_limit

    def set(self, owner: RankedService, sizes: Sequence[int]) -> None:
        """Record the size of a Service."""
        service, name = owner.service, _namespace(owner.service)
        new, old = tuple(sizes), self._sizes.get(service, NOTHING)
        space = self._spaces.get(name)
        if space is None:
            space = self._spaces[name] = Space({}, [0] * ALL_TIERS, {})
        if new == old and space.services.get(service) == owner:
            return
        self._sizes[service] = new
        space.services[service] = owner
        self._count(space, old, new)
        self._note(name, space)

    def forget(self, service: str) -> None:
        """Record that a Service is gone."""
        old = self._sizes.pop(service, None)
        if old is None:
            return
        name = _namespace(service)
        space = self._spaces[name]
        del space.services[service]
        space.limited.pop(service, None)
        self._count(space, old, NOTHING)
        self._note(name, space)
        if not space.services:
            del self._spaces[name]

    def settle(self) -> list[str]:
        """Decide anew after changes; return the Services of which another number of tiers is served now."""
        level = self._namespace_limit if self._total <= self._node_limit else self._share()
        if level != self._level:
            lowest = min(level, self._level)
            self._changed.update(name for name, space in self._spaces.items() if space.size > lowest)
            self._level = level
        changed, self._changed = self._changed, set()
        return [service for name in sorted(changed) for service in self._settle(name)]

    def _count(self, space: Space, old: Sequence[int], new: Sequence[int]) -> None:
        grown = new[0] - old[0]
        space.sizes[0] += grown
        if new[1:] != old[1:]:  # most Services have ClusterIPs only
            for tier in range(1, ALL_TIERS):
                space.sizes[tier] += new[tier] - old[tier]
                grown += new[tier] - old[tier]
        self._total += grown

    def _note(self, name: str, space: Space) -> None:
        if space.limited or space.size > self._level:
            self._changed.add(name)

    def _share(self) -> int:
        """Return the level up to which each namespace gets what it asks for."""
        left = self._node_limit
        sizes = sorted(min(space.size, self._namespace_limit) for space in self._spaces.values())
        for index, size in enumerate(sizes):
            level = left // (len(sizes) - index)
            if size > level:
                return level
            left -= size
        return self._namespace_limit

    def _settle(self, name: str) -> Iterator[str]:
        space = self._spaces.get(name)
        if space is None:
            return
        before, space.limited = space.limited, dict(self._limited(space))
        for service in before | space.limited:
            if before.get(service) != space.limited.get(service) and service in space.services:
                yield service

    def _limited(self, space: Space) -> Iterator[tuple[str, int]]:
        """Yield the Services of a namespace that are not served in full, with how many of their tiers are."""
        left = self._level
        for tier, size in enumerate(space.sizes):
            if size <= left:
                left -= size
                continue
            for _, service in sorted(space.services.values()):
                sizes = self._sizes[service]
                left -= sizes[tier]
                served = tier + 1 if left >= 0 else tier
                if any(sizes[served:]):
                    yield service, served
            return


def _namespace(service: str) -> str:
    return service.partition("/")[0]
