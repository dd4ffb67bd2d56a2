"""Connections of pods that were refused since a Service is another tenant's, by the tenant of the pod.

Bounded by the number of tenants, of which each has one counter in the kernel.
"""

from collections.abc import Callable, Mapping

import structlog

from ipvsproxy.ruleset.schema import UNKNOWN_GROUP

log = structlog.get_logger()


class Refusals:
    """Asked by any thread. `read` returns the kernel's counts by group, `names` the tenants by groups."""

    def __init__(self, read: Callable[[], Mapping[int, int]]) -> None:
        self.names: Callable[[], Mapping[int, str]] = dict
        self._read = read
        self._counts: Mapping[int, int] = {}

    def by_tenant(self) -> dict[str, int]:
        """Return the counts of all tenants."""
        try:
            self._counts = self._read()
        except Exception as error:  # noqa: BLE001 - a scrape is answered, whatever the kernel refuses
            log.warning("Could not read how many connections were refused, showing older counts", err=str(error))
        return {name: self._counts.get(group, 0) for group, name in self.names().items()}

    @property
    def of_unknown(self) -> int:
        """The count of pods that were not known yet, as of the last `by_tenant`."""
        return self._counts.get(UNKNOWN_GROUP, 0)
