"""The one door through which everything that may change the data plane comes in.

Sources (a manifests folder, the API's reflectors) and watchers of the kernel run in threads of their own and
`put` events here. The loop takes them, many at a time, and is the only reader. Events are plain frozen
values; nothing in here knows what they mean.
"""

import queue
from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol as Interface

import msgspec

from ipvsproxy.plan.model import EndpointSlice, Node, Service
from ipvsproxy.plan.notice import Notice

Object = Service | EndpointSlice | Node


class Kind(StrEnum):
    """The kinds of objects we read, by their API kind."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"


class Listed(msgspec.Struct, frozen=True):
    """A complete list of one kind: whatever is not in it is gone.

    `kept` are keys of objects that exist but could not be understood: their last good version stays.
    """

    kind: Kind
    objects: Mapping[str, Object]
    kept: frozenset[str] = frozenset()


class Changed(msgspec.Struct, frozen=True):
    """One object was added or changed; `triggered` is when a pod's change began, as in `decoded.Decoded`."""

    kind: Kind
    key: str
    object: Object
    triggered: float = 0.0


class Removed(msgspec.Struct, frozen=True):
    """One object was deleted, or is no longer of a kind that is proxied."""

    kind: Kind
    key: str


class NodeAddressesChanged(msgspec.Struct, frozen=True):
    """An address came to or left a link of the node other than ours."""


class ApiServers(msgspec.Struct, frozen=True):
    """The addresses (and ports) by which we reach the API server."""

    servers: tuple[tuple[bytes, int], ...]


class Alone(msgspec.Struct, frozen=True):
    """No other proxy is at work in this network namespace any more: the kernel is ours."""


class Failed(msgspec.Struct, frozen=True):
    """A source can never deliver (say, an unusable kubeconfig): the process cannot go on."""

    reason: str


Event = Listed | Changed | Removed | NodeAddressesChanged | Notice | ApiServers | Alone | Failed


class Source(Interface):
    """Where objects come from. `start` returns at once; the source then feeds the inbox for ever."""

    def start(self, inbox: "Inbox") -> None:
        """Begin to deliver: first one `Listed` of each kind, then what changes."""


class Inbox:
    """A thread-safe queue of events, taken in bursts."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Add an event; never blocks."""
        self._queue.put(event)

    def take(self, timeout: float | None) -> list[Event]:
        """Return all events at hand, waiting at most `timeout` seconds for the first one."""
        try:
            events = [self._queue.get(timeout=timeout)]
        except queue.Empty:
            return []
        try:
            while True:
                events.append(self._queue.get_nowait())
        except queue.Empty:
            return events
