"""What a set of saved objects lacks, in sentences that describe how to get it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from ipvsproxy.kube.decoded import short

ENDPOINTS = "Endpoints"
NO_SLICES = "no EndpointSlice in it, so no Service has endpoints (kubectl get endpointslices -A -o yaml)"
NOTHING = "no Service, EndpointSlice or Node in it; what it holds"
MOST = 5
HOW = "add EndpointSlices to the dump (kubectl get endpointslices -o yaml)"


def unread_endpoints(endpoints: Collection[str], services_with_slices: Collection[str]) -> Iterator[str]:
    """Yield a sentence for the Endpoints whose Services have no EndpointSlices, by their namespace/name."""
    lonely = sorted(key for key in endpoints if key not in services_with_slices)
    yield from (f"Endpoints {key} are not read: {HOW}" for key in lonely[:MOST])
    if len(lonely) > MOST:
        yield f"{len(lonely) - MOST} more Endpoints are not read"


def what_is_there(kinds: Mapping[str, int], others: Sequence[str]) -> str:
    """Return what was found where nothing can be used: objects by kind, files with other endings."""
    found = [f"{count} {short(kind) or 'without a kind'}" for kind, count in _most(kinds.items())]
    if others:
        names = ", ".join([*others[:MOST], *(["..."] if len(others) > MOST else [])])
        plural = "s" if len(others) > 1 else ""
        found.append(f"{len(others)} file{plural} of another ending or content ({names})")
    return ", ".join(found) or "nothing"


def _most(kinds: Iterable[tuple[str, int]]) -> Iterable[tuple[str, int]]:
    return islice(sorted(kinds, key=lambda pair: (-pair[1], pair[0])), MOST)
