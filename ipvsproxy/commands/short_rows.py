"""Frontends on the short path for `show`: endpoints from the ruleset, connections from connection tracking."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ipvsproxy.commands.endpoint import frontend
from ipvsproxy.commands.service_names import Names
from ipvsproxy.inspect.short_path import ShortPath, short_paths
from ipvsproxy.kernel.read.connections import Connection
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.records import Counters, DestinationRecord
from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey
from ipvsproxy.ruleset.schema import ENDPOINTS, INTERNAL_ENDPOINTS, SHORT_FRONTENDS

ESTABLISHED = "ESTABLISHED"


class ShortFrontend(NamedTuple):
    """A frontend on the short path, and each of its endpoints with its connections, counted as `ipvsadm -Ln` does.

    The weight of an endpoint is the number of its places, 0 where it gets no new connections.
    """

    key: FrontendKey
    reals: list[DestinationRecord]


def short_frontends(view: KernelReader, known: Names) -> list[ShortFrontend]:
    """Return the frontends on the short path, in order. Raises KernelError."""
    kinds = (*SHORT_FRONTENDS.values(), *ENDPOINTS.values(), *INTERNAL_ENDPOINTS.values())
    paths = short_paths({slot: value for kind in kinds for slot, value in view.elements(kind).items()})
    counts: dict[object, Counter[tuple[Destination, bool]]] = {path.key: Counter() for path in paths}
    for found in view.tracked([path.key for path in paths]):
        if found.is_translated:
            counts[found.frontend][found.endpoint, found.state == ESTABLISHED] += 1
    return [
        ShortFrontend(path.key, list(_reals(path, counts[path.key], known.in_maintenance(path.key))))
        for path in paths
    ]


def _reals(
    path: ShortPath, counts: Counter[tuple[Destination, bool]], resting: Iterable[str]
) -> Iterator[DestinationRecord]:
    """Yield what gets new connections, what has some and gets no new ones, and what is in maintenance."""
    weights, busy = {**path.internal, **path.endpoints}, {endpoint for endpoint, _ in counts}
    rests = {Destination(found.address, found.port) for found in map(frontend, resting)}
    for endpoint in sorted({*path.endpoints, *busy, *rests}):
        attributes = DestinationAttributes(weights.get(endpoint, 0))
        yield DestinationRecord(
            endpoint, attributes, counts[endpoint, True], counts[endpoint, False], 0, Counters()
        )


def short_connections(view: KernelReader) -> Iterator[Connection]:
    """Yield the connections of all frontends on the short path. Raises KernelError."""
    keys = {slot.frontend for kind in SHORT_FRONTENDS.values() for slot in view.elements(kind) if slot.frontend}
    return (found for found in view.tracked(keys) if found.is_translated)
