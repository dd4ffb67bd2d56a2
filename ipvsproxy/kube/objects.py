"""Objects of one moment, as a command looks at them that follows nothing.

In: bodies, JSON text or trees, from the API server or from files. Out: the values that can be used, the bodies as
they were, and everything that cannot be used or is left to others, with the reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from ipvsproxy.exchange.inbox import ALWAYS, Kind, Listed, Object
from ipvsproxy.kube.decode import decode_json, decode_mapping, identify, key_of
from ipvsproxy.kube.decoded import InvalidObject
from ipvsproxy.kube.defaults import EXTERNAL_NAME, HEADLESS_SERVICE
from ipvsproxy.kube.hints import NO_SLICES, unread_endpoints
from ipvsproxy.kube.locate import Servers
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.model import EndpointSlice


class Unavailable(Exception):
    """Objects that cannot be read at all; the text is one line."""


class _Spec(msgspec.Struct, rename="camel"):
    type: str = "ClusterIP"
    external_name: str = ""


class _Metadata(msgspec.Struct):
    labels: dict[str, str] | None = None


class _Service(msgspec.Struct):
    """What commands want to know of any Service, also of one that is not proxied."""

    metadata: _Metadata
    spec: _Spec = msgspec.field(default_factory=_Spec)


class Objects:
    """The objects of one moment: `items` by kind and key as the source had them, JSON text or trees.

    `refused` are objects that cannot be used, `left_out` parts of others, `skipped` reasons why an object is left
    to others, `unread` and `endpoints` what there is of other kinds. `servers` are addresses and ports by which
    the API server was reached. `neighbours` is what it reported of nodes. `seen` counts what was added,
    whatever came of it. `notes` state what may be missing.
    """

    def __init__(self, source: str, kinds: Iterable[Kind] = ALWAYS) -> None:
        self.source = source
        self.kinds = tuple(kinds)
        self.items: dict[Kind, dict[str, Any]] = {kind: {} for kind in self.kinds}
        self._values: dict[Kind, dict[str, Object | None]] = {kind: {} for kind in self.kinds}
        self.refused: list[str] = []
        self.left_out: list[str] = []
        self.skipped: dict[tuple[Kind, str], str] = {}
        self.unread: Counter[str] = Counter()
        self.endpoints: set[str] = set()
        self.servers: Servers = ()
        self.neighbours = OtherNodeAddresses(None)
        self.seen = 0
        self.notes: list[str] = []

    def add(self, kind: Kind, body: Any, where: str = "") -> None:
        """Record one object; the first one of a name that can be used counts. `where` is the file, if any."""
        self.seen += 1
        prefix = where and f"{where}: "
        try:
            key = key_of(kind, identify(body))
        except InvalidObject as error:
            self.refused.append(f"{prefix}{kind} without a name: {error.field}: {error.reason}")
            return
        name = f"{prefix}{kind} {key}"
        try:
            decoded = decode_json(kind, body) if _is_text(body) else decode_mapping(kind, body)
        except InvalidObject as error:
            self.items[kind].setdefault(key, body)
            self.refused.append(f"{name}: {error.field}: {error.reason}")
            return
        if key in self._values[kind]:
            if decoded.object != self._values[kind][key]:
                self.refused.append(f"{name}: another one of this name came first, with other values")
            return
        self.items[kind][key] = body
        self._values[kind][key] = decoded.object
        self.left_out += [f"{name}: {complaint}" for complaint in decoded.complaints]
        if decoded.skipped:
            self.skipped[kind, key] = decoded.skipped

    def of(self, kind: Kind) -> dict[str, Object]:
        """Return the objects of a kind that can be used and are proxied, by their keys."""
        return {key: value for key, value in self._values[kind].items() if value is not None}

    def note_lacks(self) -> None:
        """Say what is missing as a whole: in `refused` where something could be read instead, else in `notes`."""
        slices = self.of(Kind.ENDPOINT_SLICE).values()
        services = {found.service for found in slices if isinstance(found, EndpointSlice)}
        self.refused += unread_endpoints(self.endpoints, services)
        if self.of(Kind.SERVICE) and not (slices or self.endpoints):
            self.notes.append(NO_SLICES)

    def about(self, service: str) -> list[str]:
        """Return the complaints about a Service and the slices that are named after it, and the notes."""
        named = re.compile(rf"\b{re.escape(service)}(?![A-Za-z0-9.])")
        return [text for text in (*self.refused, *self.left_out) if named.search(text)] + self.notes

    def listed(self) -> Iterator[Listed]:
        """Yield one list for each kind, of the objects that can be used and are proxied."""
        for kind in self._values:
            yield Listed(kind, self.of(kind))

    def external_names(self) -> Iterator[tuple[str, str]]:
        """Yield (namespace/name, declared name) of the Services of type ExternalName."""
        for key, service in self._services():
            if service.spec.type == EXTERNAL_NAME and service.spec.external_name:
                yield key, service.spec.external_name

    def is_headless(self, service: str) -> bool:
        """Whether a Service needs no proxy, since its name leads to its endpoints."""
        return self.skipped.get((Kind.SERVICE, service)) == HEADLESS_SERVICE

    def labels(self) -> dict[str, dict[str, str]]:
        """Return the labels of all Services by `namespace/name`."""
        return {key: service.metadata.labels or {} for key, service in self._services()}

    def _services(self) -> Iterator[tuple[str, _Service]]:
        for key, body in sorted(self.items[Kind.SERVICE].items()):
            try:
                yield key, (msgspec.json.decode if _is_text(body) else _converted)(body, type=_Service)
            except (msgspec.ValidationError, msgspec.DecodeError):
                continue  # `refused` has it

    def trees(self, kind: Kind) -> Iterator[Any]:
        """Yield the objects of a kind as trees."""
        for _, body in sorted(self.items[kind].items()):
            yield msgspec.json.decode(body) if _is_text(body) else body


def _is_text(body: Any) -> bool:
    return isinstance(body, bytes | msgspec.Raw)


def _converted(body: Any, type: type[_Service]) -> _Service:  # noqa: A002 - as msgspec's decoder calls it
    return msgspec.convert(body, type)
