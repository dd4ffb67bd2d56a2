"""One manifest file: what it contains now, and what it contained when it was last understood.

In: a path. Out: `File.content`, the objects of the file after the last good reading of each. Refusals go to
the log, each once. Reading again must never lose an object because the file, or that object, makes no sense
at the moment.
"""

import os
import stat
import time
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.errors import plain
from ipvsproxy.exchange.inbox import ALWAYS, Kind, Object
from ipvsproxy.kube.decode import decode_json, decode_mapping, identify, key_of
from ipvsproxy.kube.decoded import Decoded, InvalidObject
from ipvsproxy.kube.documents import FileItem, read
from ipvsproxy.kube.hints import ENDPOINTS
from ipvsproxy.kube.text import Unreadable

GROUPS = {
    Kind.SERVICE: "",
    Kind.ENDPOINT_SLICE: "discovery.k8s.io",
    Kind.NODE: "",
    Kind.NAMESPACE: "",
    Kind.POD: "",
}
KINDS = {kind.value: kind for kind in Kind}
MAX_BYTES = 64 << 20
MOST_NAMELESS = 20
# A file this fresh may change again without its time stamp changing: the kernel's stamps are that coarse.
FRESH_NS = 1_000_000_000

log = structlog.get_logger()

Ident = tuple[Kind, str]
Signature = tuple[int, ...]


class ItemRefusal(NamedTuple):
    """An object that was not taken; `ident` is None when it does not even have a name."""

    document: int
    place: int
    ident: Ident | None
    field: str
    reason: str

    @property
    def complaint(self) -> tuple[Ident | None, str, str]:
        """What makes two refusals the same complaint, wherever in the file the object has moved."""
        return self.ident, self.field, self.reason


class FileContent(msgspec.Struct):
    """What one file contains. A value of None is an object that is right but not proxied; `skipped` states why.

    `unread` counts objects of kinds that are not read, `endpoints` are keys of those of kind Endpoints.
    """

    good: dict[Ident, Object | None] = msgspec.field(default_factory=dict)
    refused: list[ItemRefusal] = msgspec.field(default_factory=list)
    complaints: dict[Ident, tuple[str, ...]] = msgspec.field(default_factory=dict)
    skipped: dict[Ident, str] = msgspec.field(default_factory=dict)
    unread: dict[str, int] = msgspec.field(default_factory=dict)
    endpoints: set[str] = msgspec.field(default_factory=set)


def parse(name: str, data: bytes, kinds: Collection[Kind] = ALWAYS) -> FileContent:
    """Return what a file contains.

    Raises Unreadable when the file as a whole makes no sense.
    """
    if not data.strip():
        raise Unreadable("empty: it is being written, or was cut off")
    content = FileContent()
    found = read(name, data)
    for item in found.items:
        _take(item, content, kinds)
    content.refused = _bounded(content.refused)
    content.refused.extend(ItemRefusal(broken.document, 0, None, "", str(broken.error)) for broken in found.broken)
    return content


def _bounded(refused: list[ItemRefusal]) -> list[ItemRefusal]:
    """Return the refusals, of objects without a name only the first ones."""
    nameless = [refusal for refusal in refused if refusal.ident is None]
    if len(nameless) <= MOST_NAMELESS:
        return refused
    more = f"and {len(nameless) - MOST_NAMELESS} more objects without a kind or name"
    last = ItemRefusal(nameless[MOST_NAMELESS].document, 0, None, "", more)
    return [r for r in refused if r.ident is not None] + nameless[:MOST_NAMELESS] + [last]


def _take(item: FileItem, content: FileContent, kinds: Collection[Kind]) -> None:
    ident = None
    try:
        kind = kind_of(item, kinds)
        if kind is None:
            _note_unread(item, content)
            return
        ident = (kind, key_of(kind, identify(item.body)))
        decoded = _decode(kind, item, repeated=ident in content.good)
    except InvalidObject as refused:
        content.refused.append(ItemRefusal(item.document, item.place, ident, refused.field, refused.reason))
        return
    content.good[ident] = decoded.object
    if decoded.complaints:
        content.complaints[ident] = decoded.complaints
    if decoded.skipped:
        content.skipped[ident] = decoded.skipped


def _note_unread(item: FileItem, content: FileContent) -> None:
    name = kind_and_group(item)
    content.unread[name] = content.unread.get(name, 0) + 1
    if key := endpoints_key(item):
        content.endpoints.add(key)


def kind_and_group(item: FileItem) -> str:
    """Return the kind as kubectl names it among several: Service.serving.knative.dev, ConfigMap."""
    group = item.api_version.rpartition("/")[0]
    return f"{item.kind}.{group}" if group else item.kind


def endpoints_key(item: FileItem) -> str:
    """Return `namespace/name` of an object of kind Endpoints, empty for another kind or one without a name."""
    if item.kind != ENDPOINTS or item.api_version not in ("", "v1"):
        return ""
    try:
        return key_of(Kind.ENDPOINT_SLICE, identify(item.body))
    except InvalidObject:
        return ""


def kind_of(item: FileItem, kinds: Collection[Kind] = ALWAYS) -> Kind | None:
    """Return the kind, None for one we do not read (also a Service of another API group)."""
    if not item.kind:
        table = "; kubectl needs -o yaml or -o json" if isinstance(item.body, str) else ""
        raise InvalidObject("kind", f"missing: this is no Kubernetes object{table}")
    kind = KINDS.get(item.kind)
    group, _, version = item.api_version.rpartition("/")
    if kind is None or kind not in kinds:
        return None
    if not item.api_version:
        return kind
    if group != GROUPS[kind]:
        return None
    if version != "v1":
        raise InvalidObject("apiVersion", f"{item.api_version!r} is not read, only v1")
    return kind


def _decode(kind: Kind, item: FileItem, *, repeated: bool) -> Decoded:
    if repeated:
        raise InvalidObject("metadata.name", "the file has this object already")
    return (decode_json if isinstance(item.body, msgspec.Raw) else decode_mapping)(kind, item.body)


def read_file(path: Path) -> bytes:
    """Return what is in a manifest file. Raises OSError, Unreadable when it is none, or too large."""
    _status(path)
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise Unreadable(f"more than {MAX_BYTES} bytes")  # it has grown since
    return data


def _status(path: Path) -> os.stat_result:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("not a regular file")  # opening a pipe would hang
    if status.st_size > MAX_BYTES:
        raise Unreadable(f"{status.st_size} bytes are more than {MAX_BYTES}")
    return status


class File:
    """One file, remembered from one reading to the next. `problem` is why it cannot be read, empty if it can."""

    def __init__(self, name: str, path: Path, kinds: Collection[Kind] = ALWAYS) -> None:
        self._kinds = kinds
        self.name = name
        self.content = FileContent()
        self._path = path
        self._signature: Signature | None = None
        self._digest = b""
        self.problem = ""

    def refresh(self) -> None:
        """Read the file again if it may have changed; if it cannot be read, keep what it had."""
        # Taken first: however long the rest takes, what is written from now on has a stamp of now, or a later one.
        now = time.time_ns()
        try:
            before = _status(self._path)
            if self._signature == _signature(before):
                return
            self._signature = None
            data = read_file(self._path)
            if _signature(self._path.stat()) != _signature(before):
                log.debug("Manifest file changed while it was read", file=self.name)
                return
        except Unreadable as error:
            self._refuse(error)
            return
        except OSError as error:
            self._refuse(Unreadable(plain(error)))
            return
        self._update(data)
        if abs(now - before.st_mtime_ns) > FRESH_NS:
            self._signature = _signature(before)

    def _update(self, data: bytes) -> None:
        digest = blake2b(data).digest()
        if digest == self._digest:
            return
        try:
            content = parse(self.name, data, self._kinds)
        except Unreadable as error:
            self._refuse(error)
        else:
            self._accept(content)
        self._digest = digest

    def _accept(self, content: FileContent) -> None:
        if self.problem:
            log.info(messages.MANIFEST_FILE_ACCEPTED, file=self.name)
        self.problem = ""
        _log_content(self.name, self.content, content)
        carry_over(self.content, content)
        self.content = content
        log.debug("Read manifest file", file=self.name, objects=len(content.good))

    def _refuse(self, error: Unreadable) -> None:
        self._digest = b""
        problem = f"{error.line}:{error.column}: {error.reason}"
        if problem != self.problem:
            where = {"line": error.line, "column": error.column} if error.line else {}
            held = len(self.content.good)
            log.warning(
                messages.MANIFEST_FILE_REFUSED,
                file=self.name,
                **where,
                err=error.reason,
                held=held,
            )
        self.problem = problem


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def carry_over(old: FileContent, new: FileContent) -> None:
    """Keep the last valid versions of refused objects, and the identity of values that did not change."""
    refused = {refusal.ident for refusal in new.refused}
    # An object lost its name: any of the old objects that are missing now may be the one.
    doubtful = set(old.good) if None in refused else refused
    for ident, value in old.good.items():
        if ident in doubtful:
            new.good.setdefault(ident, value)
        if ident in new.good and new.good[ident] == value:
            new.good[ident] = value


def _log_content(name: str, old: FileContent, new: FileContent) -> None:
    """Log what is wrong in a file, without what was logged about it before."""
    known = {refusal.complaint for refusal in old.refused}
    for refusal in new.refused:
        if refusal.complaint not in known:
            _log_refusal(name, refusal)
    for ident, complaints in new.complaints.items():
        if old.complaints.get(ident) != complaints:
            _log_complaints(name, ident, complaints)
    for ident, reason in new.skipped.items():
        if old.skipped.get(ident) != reason and ident not in new.complaints:
            log.info(messages.MANIFEST_LEFT, file=name, kind=ident[0], object=ident[1], reason=reason)
    accepted = {r.ident for r in old.refused if r.ident in new.good} - {r.ident for r in new.refused}
    for ident in new.good:
        if ident in accepted:
            log.info(messages.MANIFEST_ACCEPTED, file=name, kind=ident[0], object=ident[1])


def _log_refusal(name: str, refusal: ItemRefusal) -> None:
    where: dict[str, Any] = {"document": refusal.document}
    if refusal.place:
        where["item"] = refusal.place
    if refusal.ident:
        where.update(kind=refusal.ident[0], object=refusal.ident[1])
    log.warning(messages.MANIFEST_REFUSED, file=name, **where, field=refusal.field, err=refusal.reason)


def _log_complaints(name: str, ident: Ident, complaints: tuple[str, ...]) -> None:
    reason = "; ".join(complaints)
    log.warning(messages.MANIFEST_PART_IGNORED, file=name, kind=ident[0], object=ident[1], err=reason)
