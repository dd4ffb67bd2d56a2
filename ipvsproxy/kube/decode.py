"""Objects of the Kubernetes API into the values of `plan.model`.

In: JSON bytes (the API) or already parsed mappings (manifests). Out: a `Decoded`: the value, or None for an
object that is right but not ours to proxy (headless, ExternalName, another proxy's), together with complaints
about parts that had to be left out. An object that cannot be understood raises `InvalidObject`, which names the
field; it costs that object only.

The raw fields are named in `kube.raw`; what they mean is decided in `kube.service`, `kube.endpoint_slice` and
`kube.node`.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.ceilings import OBJECT_BYTES
from ipvsproxy.kube.decoded import Decoded, InvalidObject, short
from ipvsproxy.kube.defaults import NAMESPACE
from ipvsproxy.kube.endpoint_slice import build_slice
from ipvsproxy.kube.node import build_node
from ipvsproxy.kube.pod import build_namespace, build_pod
from ipvsproxy.kube.raw import (
    Identity,
    Meta,
    Metadata,
    RawEndpointSlice,
    RawNamespace,
    RawNode,
    RawPod,
    RawService,
)
from ipvsproxy.kube.service import build_service

NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?")
"""Of objects and namespaces, a little wider than the API server has it: they go into logs and events."""
LONGEST_NAME = 253
CLUSTER_WIDE = (Kind.NODE, Kind.NAMESPACE)
"""Kinds of objects that are in no namespace."""
MISSING = re.compile(r"Object missing required field `(.+)`")
"""In the words of msgspec."""
UNREADABLE = (msgspec.ValidationError, msgspec.DecodeError, UnicodeError, RecursionError)


def decode_json(kind: Kind, data: bytes | msgspec.Raw) -> Decoded:
    """Decode one object from JSON.

    Raises InvalidObject when it cannot be used.
    """
    if memoryview(data).nbytes > OBJECT_BYTES:
        raise InvalidObject("", f"more than {OBJECT_BYTES} bytes of JSON")
    decode, build = _JSON_READERS[kind]
    try:
        return build(decode(data))
    except UNREADABLE as error:
        raise _refused(error) from None


def decode_mapping(kind: Kind, tree: Any) -> Decoded:
    """Decode one object from parsed YAML or JSON.

    Raises InvalidObject when it cannot be used.
    """
    try:
        return _BUILDERS[kind](msgspec.convert(tree, _RAW_TYPES[kind]))
    except UNREADABLE as error:
        raise _refused(error) from None


def identify(data: Any) -> Identity:
    """Return name, namespace and version of an object that may be wrong elsewhere (JSON or a mapping).

    A bookmark has no name. Raises InvalidObject when not even this much can be read.
    """
    try:
        if isinstance(data, bytes | msgspec.Raw):
            return _META_DECODER.decode(data).metadata
        return msgspec.convert(data, Meta).metadata
    except UNREADABLE as error:
        raise _refused(error) from None


def key_of(kind: Kind, metadata: Identity | Metadata) -> str:
    """Return `namespace/name`, or the name for kinds without a namespace.

    Raises InvalidObject when there is no name, or one that the API server would not take.
    """
    if not metadata.name:
        raise InvalidObject("metadata.name", "missing")
    for field, text in (("metadata.name", metadata.name), ("metadata.namespace", metadata.namespace)):
        if text and (len(text) > LONGEST_NAME or not NAME.fullmatch(text)):
            raise InvalidObject(field, f"{short(text)!r} is not a name")
    return metadata.name if kind in CLUSTER_WIDE else f"{metadata.namespace or NAMESPACE}/{metadata.name}"


def _refused(error: Exception) -> InvalidObject:
    """Express an error of msgspec in terms of a field."""
    if isinstance(error, msgspec.ValidationError):
        return InvalidObject(*_field_and_reason(str(error)))
    return InvalidObject("", "nested too deeply" if isinstance(error, RecursionError) else str(error))


def _field_and_reason(message: str) -> tuple[str, str]:
    """Take msgspec's message apart: "Expected `int` - at `$.spec.ports[0].port`".

    A wrong mapping key is shown as "- at `key` in `$.metadata.labels`".
    """
    reason, _, path = message.partition(" - at `")
    if path.startswith("key` in `"):
        reason, path = f"{reason} as a key", path.removeprefix("key` in `")
    field = path.rstrip("`").removeprefix("$").removeprefix(".")
    if missing := MISSING.fullmatch(reason):
        return f"{field}.{missing[1]}".removeprefix("."), "missing"
    return field, reason


_RAW_TYPES: dict[Kind, Any] = {
    Kind.SERVICE: RawService,
    Kind.ENDPOINT_SLICE: RawEndpointSlice,
    Kind.NODE: RawNode,
    Kind.NAMESPACE: RawNamespace,
    Kind.POD: RawPod,
}
_META_DECODER = msgspec.json.Decoder(Meta)
_BUILDERS: dict[Kind, Callable[[Any], Decoded]] = {
    Kind.SERVICE: build_service,
    Kind.ENDPOINT_SLICE: build_slice,
    Kind.NODE: build_node,
    Kind.NAMESPACE: build_namespace,
    Kind.POD: build_pod,
}
_JSON_READERS = {kind: (msgspec.json.Decoder(type_).decode, _BUILDERS[kind]) for kind, type_ in _RAW_TYPES.items()}
