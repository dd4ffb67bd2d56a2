"""How much of what others send is taken: bytes of an answer and of one object, and how many objects are kept.

The ceilings are far above what the API server lets honest objects be (its own limits: 3 MiB for a request, 1.5 MiB
for what etcd stores, 1,000 endpoints and 100 ports for an EndpointSlice), and together they stay below the memory
limit of our manifests. So no object, and no number of them, can keep a proxy from starting (docs/performance.md).
"""

from ipvsproxy.exchange.inbox import Object
from ipvsproxy.plan.model import EndpointSlice, Service

ANSWER_BYTES = 64 << 20
"""Of a page, or any other answer. A page that has more is asked for again with fewer objects."""
WHOLE_BYTES = 256 << 20
"""Of a list that is asked for in one piece, since its pages have expired before the last one was read."""
ERROR_BYTES = 1 << 20
"""Of an answer that states what is wrong."""
OBJECT_BYTES = 8 << 20
"""Of the JSON of one object: an object stored as protobuf can be several times as long in JSON."""
MOST_UNITS = 1_000_000
"""Of all objects of a kind. A unit is about half a KiB of what this process then holds (`units`)."""

SERVICE_UNITS, SLICE_UNITS, NODE_UNITS = 4, 2, 1
"""Of an object, beside one for each of its parts."""


class ObjectRoom:
    """Counts what is kept of one kind, in units. One namespace can have half of all there is."""

    def __init__(self, most: int = MOST_UNITS) -> None:
        self._most = most
        self._share = most // 2
        self._total = 0
        self._kept: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}

    def take(self, key: str, value: Object) -> str:
        """Make room for a new version of an object; return why there is none, empty if there is."""
        namespace = key.partition("/")[0]
        before, wanted = self._kept.get(key, 0), units(value)
        of_namespace = self._namespaces.get(namespace, 0) - before + wanted
        if self._total - before + wanted > self._most:
            return f"the objects of this kind are larger than {self._most} units in all"
        if of_namespace > self._share:
            return f"the objects of this kind in namespace {namespace} are larger than {self._share} units in all"
        self._total += wanted - before
        self._kept[key] = wanted
        self._namespaces[namespace] = of_namespace
        return ""

    def drop(self, key: str) -> None:
        """Give back the room of an object that is gone."""
        size = self._kept.pop(key, 0)
        namespace = key.partition("/")[0]
        self._total -= size
        left = self._namespaces.pop(namespace, 0) - size
        if left > 0:
            self._namespaces[namespace] = left


def units(value: Object) -> int:
    """Return about how much memory an object takes with all that is made of it, in pieces of half a KiB."""
    if isinstance(value, EndpointSlice):
        return SLICE_UNITS + len(value.endpoints) + len(value.ports)
    if isinstance(value, Service):
        lists = (value.ports, value.cluster_ips, value.external_ips, value.load_balancer_ips, value.source_ranges)
        return SERVICE_UNITS + sum(map(len, lists))
    return NODE_UNITS
