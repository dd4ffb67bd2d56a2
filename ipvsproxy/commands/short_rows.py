"""Frontends on the short path for `show`: endpoints from the ruleset, connections from connection tracking."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from ipvsproxy.inspect.short_path import ShortPath, short_paths
from ipvsproxy.kernel.read.connections import Connection
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.state import Destination
from ipvsproxy.ruleset.elements import is_short
from ipvsproxy.ruleset.schema import ENDPOINTS, FRONTENDS, INTERNAL_ENDPOINTS, SHORT_VIEWS

ESTABLISHED = "ESTABLISHED"


class EndpointLoad(NamedTuple):
    """The connections of an endpoint, counted as `ipvsadm -Ln` does; `drains`: it gets no new ones."""

    active: int
    inactive: int
    drains: bool


class ShortFrontend(NamedTuple):
    """A frontend on the short path, with the load of each of its endpoints."""

    path: ShortPath
    loads: dict[Destination, EndpointLoad]


def short_frontends(view: KernelReader) -> list[ShortFrontend]:
    """Return the frontends on the short path, in order. Raises KernelError."""
    kinds = (*FRONTENDS.values(), *ENDPOINTS.values(), *INTERNAL_ENDPOINTS.values())
    paths = short_paths({slot: value for kind in kinds for slot, value in view.elements(kind).items()})
    counts: dict[object, Counter[tuple[Destination, bool]]] = {path.key: Counter() for path in paths}
    for found in view.tracked([path.key for path in paths]):
        if found.is_translated:
            counts[found.frontend][found.endpoint, found.state == ESTABLISHED] += 1
    return [ShortFrontend(path, _loads(path, counts[path.key])) for path in paths]


def _loads(path: ShortPath, counts: Counter[tuple[Destination, bool]]) -> dict[Destination, EndpointLoad]:
    """Count by endpoint; one that has connections and is in no list any more drains."""
    known = {*path.endpoints, *path.internal}
    busy = {endpoint for endpoint, _ in counts}
    return {
        endpoint: EndpointLoad(counts[endpoint, True], counts[endpoint, False], endpoint not in known)
        for endpoint in sorted({*path.endpoints, *busy})
    }


def short_connections(view: KernelReader) -> Iterator[Connection]:
    """Yield the connections of all frontends that are on the short path for some clients. Raises KernelError."""
    elements = ((slot, value) for kind in FRONTENDS.values() for slot, value in view.elements(kind).items())
    keys = {slot.frontend for slot, value in elements if slot.frontend and is_short(value)}
    keys |= {slot.frontend for kind in SHORT_VIEWS.values() for slot in view.elements(kind) if slot.frontend}
    return (found for found in view.tracked(keys) if found.is_translated)
