"""The queue of events for the reconcile loop: everything that may change the data plane.

Sources (a manifests folder, the API's reflectors) and watchers of the kernel run in threads of their own and
`put` events here. The loop takes them, many at a time, and is the only reader. Events are plain frozen
values. What waits is the last version of each object: a loop that is busy never has a past to work off.
"""

import itertools
import threading
from collections.abc import Hashable, Mapping
from enum import StrEnum
from typing import Protocol as Interface

import msgspec

from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.model import EndpointSlice, Namespace, Node, Pod, Service
from ipvsproxy.plan.notification import Notification, RulesChanged, VipsChanged

MOST_NOTICES = 4096
"""Notices of one kind that wait; each is about a transaction, and those of our own are known by their numbers."""

Object = Service | EndpointSlice | Node | Namespace | Pod


class Kind(StrEnum):
    """The kinds of objects we read, by their API kind."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    NAMESPACE = "Namespace"
    POD = "Pod"


ALWAYS = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
"""The kinds that every proxy reads."""


def kinds(*, tenants: bool) -> tuple[Kind, ...]:
    """Return the kinds to read: Namespaces and Pods only to know the tenants."""
    return tuple(Kind) if tenants else ALWAYS


class Listed(msgspec.Struct, frozen=True):
    """A complete list of one kind: whatever is not in it is gone.

    `kept` are keys of objects that exist but could not be understood: their last valid version is kept.
    """

    kind: Kind
    objects: Mapping[str, Object]
    kept: frozenset[str] = frozenset()


class Changed(msgspec.Struct, frozen=True):
    """One object was added or changed; `triggered` is when a pod's change began, as in `decoded.Decoded`.

    `versions` counts those that this one has replaced while they waited, and itself.
    """

    kind: Kind
    key: str
    object: Object
    triggered: float = 0.0
    versions: int = 1


class Removed(msgspec.Struct, frozen=True):
    """One object was deleted, or is no longer of a kind that is proxied; `versions` as in `Changed`."""

    kind: Kind
    key: str
    versions: int = 1


class NodeAddressesChanged(msgspec.Struct, frozen=True):
    """An address came to or left a link of the node other than ours."""


class ApiServers(msgspec.Struct, frozen=True):
    """The addresses (and ports) by which we reach the API server."""

    servers: tuple[tuple[bytes, int], ...]


class LockAcquired(msgspec.Struct, frozen=True):
    """No other proxy is at work in this network namespace any more: the kernel is ours."""


class SchedulersFound(msgspec.Struct, frozen=True):
    """Whether the kernel has some IPVS schedulers, by their names."""

    states: Mapping[str, bool]


class RightRefused(msgspec.Struct, frozen=True):
    """The API server does not let us list and watch a kind that only tenants need; it is tried again."""

    kind: Kind


class SourceFailed(msgspec.Struct, frozen=True):
    """A source can never deliver (an unusable kubeconfig, for example): the process cannot go on."""

    reason: str


Event = (
    Listed
    | Changed
    | Removed
    | NodeAddressesChanged
    | Notification
    | OtherNodeAddresses
    | ApiServers
    | LockAcquired
    | SchedulersFound
    | RightRefused
    | SourceFailed
)


class Source(Interface):
    """Where objects come from. `start` returns at once; the source then feeds the inbox for ever."""

    def check(self) -> str:
        """Return why it can never deliver, as far as files tell, or an empty text. Before anything is changed."""

    def start(self, inbox: "Inbox") -> None:
        """Begin to deliver: first one `Listed` of each kind, then what changes."""


class Inbox:
    """Events by what they are about, in the order of their last versions, for any number of threads.

    While the loop is busy, a new version of an object replaces the one that waits, and a list replaces all that
    waits of its kind. So memory is bounded by the number of objects, and not by that of events.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, Event] = {}
        self._keys: dict[Kind, dict[str, None]] = {kind: {} for kind in Kind}
        self._numbers = itertools.count()
        self._notices: dict[type[Notification], list[Hashable]] = {}

    def put(self, event: Event) -> None:
        """Add an event; never blocks."""
        with self._changed:
            match event:
                case Changed() | Removed():
                    self._put_object(event)
                case Listed():
                    self._put_list(event)
                case RightRefused(kind):
                    self._waiting[RightRefused, kind] = event
                case VipsChanged() | RulesChanged():
                    self._put_notice(event)
                case _:
                    self._waiting.pop(type(event), None)
                    self._waiting[type(event)] = event
            self._changed.notify()

    def take(self, timeout: float | None) -> list[Event]:
        """Return all events at hand, waiting at most `timeout` seconds for the first one."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting), timeout)
            events = list(self._waiting.values())
            self._waiting = {}
            self._keys = {kind: {} for kind in Kind}
            self._notices = {}
        return events

    def _put_object(self, event: Changed | Removed) -> None:
        """Take the place of an older version, at the end: it comes after a list that has come between them."""
        name = (event.kind, event.key)
        old = self._waiting.pop(name, None)
        if isinstance(old, Changed | Removed):
            event = msgspec.structs.replace(event, versions=event.versions + old.versions)
        self._waiting[name] = event
        self._keys[event.kind][event.key] = None

    def _put_list(self, event: Listed) -> None:
        """Take the place of everything of one kind, but for what the list keeps of it."""
        older = self._waiting.pop(event.kind, None)
        keys, self._keys[event.kind] = self._keys[event.kind], {}
        changes = {key: self._waiting.pop((event.kind, key)) for key in keys}
        if event.kept:
            event = _with_kept(event, older if isinstance(older, Listed) else None, changes)
        self._waiting[event.kind] = event

    def _put_notice(self, event: Notification) -> None:
        """Many notices come to one: whatever may have changed."""
        kind = type(event)
        keys = self._notices.setdefault(kind, [])
        if len(keys) >= MOST_NOTICES:
            for key in keys:
                del self._waiting[key]
            keys.clear()
            event = VipsChanged(unsure=True) if isinstance(event, VipsChanged) else RulesChanged(0, unsure=True)
        keys.append(next(self._numbers))
        self._waiting[keys[-1]] = event


def _with_kept(new: Listed, older: Listed | None, changes: Mapping[str, Event]) -> Listed:
    """Return a list with the versions, of objects it could not read, that have not been taken yet."""
    objects, kept = dict(new.objects), set(new.kept)
    for key in new.kept:
        change = changes.get(key)
        if isinstance(change, Changed):
            objects[key] = change.object
        elif change is None and older is not None and key in older.objects:
            objects[key] = older.objects[key]
        elif change is None and (older is None or key in older.kept):
            continue
        # Otherwise it was gone in between, and nothing is left to keep.
        kept.remove(key)
    return Listed(new.kind, objects, frozenset(kept))
