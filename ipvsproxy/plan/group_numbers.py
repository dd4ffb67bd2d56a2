"""The numbers of the groups of sources that tenants are, each of one tenant at a time.

There are `LARGEST_GROUP` of them at most. The number of a tenant that is gone is given to another one only when
the kernel has nothing of the old one any more (`release`). Deterministic: no I/O, no clock.
"""

from collections.abc import Container, Iterator

from ipvsproxy.ruleset.schema import LARGEST_GROUP, SHARED_GROUP, UNKNOWN_GROUP


class GroupNumbers:
    """Which tenant has which number, and which tenants there was none left for."""

    def __init__(self, *, has_tenants: bool) -> None:
        self._groups: dict[str, int] = {}
        self._ended: set[int] = set()
        self._free: list[int] = []
        self._next = SHARED_GROUP + 1
        self._lacking: dict[str, None] = {}
        self._changed = {UNKNOWN_GROUP: True} if has_tenants else {}

    @property
    def are_lacking(self) -> bool:
        """Whether there are more tenants than numbers."""
        return bool(self._lacking)

    @property
    def has_ended(self) -> bool:
        """Whether numbers of tenants that are gone wait for the kernel."""
        return bool(self._ended)

    def get(self, tenant: str) -> int | None:
        """Return the number of a tenant, None where it has none."""
        return self._groups.get(tenant)

    def names(self) -> dict[int, str]:
        """Return the tenants by their numbers; for any thread, since copying a dictionary is one operation."""
        return {group: name for name, group in self._groups.copy().items()}

    def begin(self, tenant: str) -> bool:
        """Give a tenant a number, as soon as there is one; return whether it has got one by that."""
        if tenant in self._groups:
            return False
        if not self._free and self._next > LARGEST_GROUP:
            self._lacking[tenant] = None
            return False
        group = self._groups[tenant] = self._free.pop() if self._free else self._new()
        self._changed[group] = True
        return True

    def end(self, tenant: str) -> bool:
        """Take a number away from a tenant that is gone; return whether it had one."""
        self._lacking.pop(tenant, None)
        group = self._groups.pop(tenant, None)
        if group is not None:
            self._ended.add(group)
            self._changed[group] = False
        return group is not None

    def release(self, used: Container[int]) -> list[str]:
        """Give the numbers of tenants that are gone to others, but those in use; return who has got one.

        To be called when the kernel has nothing of tenants that are gone, beside members of the groups in `used`.
        """
        found = {group for group in self._ended if group not in used}
        self._ended -= found
        self._free += sorted(found, reverse=True)
        return list(self._begin_lacking())

    def take_changed(self) -> dict[int, bool]:
        """Return the numbers that have been given out (True) or taken back since the last call."""
        changed, self._changed = self._changed, {}
        return changed

    def _begin_lacking(self) -> Iterator[str]:
        while self._lacking and self._free:
            tenant = next(iter(self._lacking))
            del self._lacking[tenant]
            self.begin(tenant)
            yield tenant

    def _new(self) -> int:
        self._next += 1
        return self._next - 1
