"""All objects as they are now, read once: what a command looks at that follows nothing.

In: the settings (a folder of manifests, or a way to the API). Out: the objects as they were written, by kind, and
the `Listed` events that a store takes. An object that cannot be used costs only itself and is named in `refused`.
"""

import http
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ipvsproxy.config import Config
from ipvsproxy.kube.api import Transport, Trouble, read_page, trouble_of
from ipvsproxy.kube.decode import decode_json, decode_mapping, identify, key_of
from ipvsproxy.kube.decoded import Refused
from ipvsproxy.kube.documents import Item, Unreadable, read_items
from ipvsproxy.kube.inbox import Kind, Listed, Object
from ipvsproxy.kube.kubeconfig import Unusable
from ipvsproxy.kube.locate import Servers, locate
from ipvsproxy.kube.manifest_file import kind_of
from ipvsproxy.kube.manifests import SUFFIXES
from ipvsproxy.kube.neighbours import Transport as NodeLists
from ipvsproxy.kube.neighbours import look
from ipvsproxy.plan.addresses import Neighbours

PAGE_SIZE = 500
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0
EXTERNAL_NAME = "ExternalName"


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

    `servers` are addresses and ports by which the API server was reached, `neighbours` what it told of nodes.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.items: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
        self._values: dict[Kind, dict[str, Object | None]] = {kind: {} for kind in Kind}
        self.refused: list[str] = []
        self.servers: Servers = ()
        self.neighbours = Neighbours(None)

    def add(self, kind: Kind, body: Any) -> None:
        """Take over one object; the first one of a name that can be used counts."""
        try:
            key = key_of(kind, identify(body))
        except Refused as error:
            self.refused.append(f"{kind} without a name: {error.field}: {error.reason}")
            return
        if key in self._values[kind]:
            return
        self.items[kind][key] = body
        try:
            decoded = decode_json(kind, body) if _is_text(body) else decode_mapping(kind, body)
        except Refused as error:
            self.refused.append(f"{kind} {key}: {error.field}: {error.reason}")
        else:
            self._values[kind][key] = decoded.object

    def listed(self) -> Iterator[Listed]:
        """Yield one list for each kind, of the objects that can be used and are proxied."""
        for kind, values in self._values.items():
            yield Listed(kind, {key: value for key, value in values.items() if value is not None})

    def external_names(self) -> Iterator[tuple[str, str]]:
        """Yield (namespace/name, declared name) of the Services of type ExternalName."""
        for key, service in self._services():
            if service.spec.type == EXTERNAL_NAME and service.spec.external_name:
                yield key, service.spec.external_name

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


def read_objects(config: Config) -> Objects:
    """Read all objects. Raises Unavailable."""
    return _from_folder(config.manifests) if config.manifests is not None else _from_api(config)


def _from_folder(folder: Path) -> Objects:
    found = Objects(f"the folder {folder}")
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.name[0] != ".")
    except OSError as error:
        raise Unavailable(error.strerror or str(error)) from None
    for path in paths:
        try:
            for item in read_items(path.name, path.read_bytes()) if path.is_file() else ():
                _add(found, path.name, item)
        except (OSError, Unreadable) as error:
            found.refused.append(f"{path.name}: {error}")
    return found


def _add(found: Objects, file: str, item: Item) -> None:
    try:
        kind = kind_of(item)
    except Refused as error:
        found.refused.append(f"{file}: document {item.document}: {error.field}: {error.reason}")
        return
    if kind is not None:
        found.add(kind, item.body)


def _from_api(config: Config) -> Objects:
    # Imported here: a folder needs none of it, and it takes a third of a second.
    from ipvsproxy.kube.client import Client, Limits

    client = Client(config.kubeconfig, config.master, config.node_name, Limits(CONNECT_SECONDS, READ_SECONDS))
    found = Objects("the API server")
    try:
        client.connect()
        # A host that cannot be found, in the words of the connection.
        with suppress(OSError, ValueError):
            found.servers = locate(client.url())
        for kind in Kind:
            for raw in _pages(client, kind):
                found.add(kind, raw)
        found.neighbours = _neighbours(client, config.node_name)
    except (Trouble, Unusable) as error:
        raise Unavailable(str(error)) from None
    finally:
        client.close()
    return found


def _neighbours(transport: NodeLists, node_name: str) -> Neighbours:
    """Return what can be read of other nodes: whoever may not list them is served without."""
    try:
        seen = look(transport, node_name)
    except Trouble:
        return Neighbours(None)
    return Neighbours(seen.nodes, seen.pod_cidrs)


def _pages(transport: Transport, kind: Kind) -> Iterator[msgspec.Raw]:
    token: str | None = ""
    while token is not None:
        answer = transport.list(kind, PAGE_SIZE, token, "")
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise trouble_of(answer.status, body, answer.headers)
        page = read_page(kind, body)
        yield from page.items or ()
        token = page.metadata.continue_ or None
