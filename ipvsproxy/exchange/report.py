"""What the loop reports about its work, as plain facts, in one direction.

`Report` is what the loop knows of health checks, metrics and events: calls that return at once. This one ignores
them; `serve.board` passes the facts on, tests write them down. A method is called once a turn or once for a
changed Service, never for all Services.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import NamedTuple

import msgspec

from ipvsproxy.plan.local import LocalView
from ipvsproxy.plan.localhost import SocketAddress
from ipvsproxy.plan.state import Destination, FrontendKey


class Subject(NamedTuple):
    """The API object a notice is about; `namespace` is empty for a Node."""

    kind: str
    namespace: str
    name: str
    uid: str = ""


def service_subject(key: str, uid: str) -> Subject:
    """Return the Service `namespace/name` as a subject."""
    namespace, _, name = key.partition("/")
    return Subject("Service", namespace, name, uid)


class Severity(StrEnum):
    """The type of an Event."""

    NORMAL = "Normal"
    WARNING = "Warning"


class EventNote(msgspec.Struct, frozen=True):
    """Something that is worth an Event: what happened (`reason`), doing what (`action`), in words (`note`)."""

    subject: Subject
    severity: Severity
    reason: str
    action: str
    note: str = ""


class Sync(msgspec.Struct, frozen=True):
    """How a turn of the loop went.

    `changes` counts changes to the kernel, `pending` the kernel objects that are to be tried again, `draining` the
    frontends with destinations that still have connections, `draining_destinations` these destinations. `behind`
    are families whose rules were not accepted, `limited` counts Services that are served in part,
    `backlog` those that have changed and are planned in the next turns, `unfinished` the kernel objects of whose
    changes only a part is done.
    """

    seconds: float
    changes: int
    services: int
    frontends: int
    draining: int
    pending: int
    draining_destinations: int = 0
    behind: frozenset[int] = frozenset()
    limited: int = 0
    backlog: int = 0
    unfinished: int = 0


class LookUps(NamedTuple):
    """What any thread can find out at any time, and the kernel does not know.

    Which Service holds which frontend, which destinations are wanted with weight 0, which group of sources is
    which tenant, which namespaces have which tenants (empty for none), and why frontends are not on the short
    path.
    """

    holders: Callable[[], Mapping[FrontendKey, str]] = dict
    maintenance: Callable[[], Mapping[FrontendKey, AbstractSet[Destination]]] = dict
    tenants: Callable[[], Mapping[int, str]] = dict
    tenants_of_namespaces: Callable[[], Mapping[str, str]] = dict
    path_reasons: Callable[[], Mapping[FrontendKey, str]] = dict


class Report:
    """Ignores everything."""

    def look_ups(self, found: LookUps) -> None:
        """Say how any thread can look things up; once, at the start."""

    def received(self, kind: str, objects: int, triggered: float) -> None:
        """An event brought objects of a kind; `triggered` is when a pod's change began, 0 if unknown."""

    def node(self, *, eligible: bool, listen: Mapping[int, tuple[bytes, ...]], reason: str = "") -> None:
        """Say whether the node should get traffic from outside, and where health-check ports listen.

        `reason` is what is unusual about it: its Node was not found, or is about to be deleted.
        """

    def lacking_rights(self, kinds: Sequence[str]) -> None:
        """Say which kinds of objects could not be read yet since the API server refuses it; none: all could."""

    def local(self, service: str, view: LocalView | None) -> None:
        """A Service was planned, or is gone (None); also None when it has no Local policy."""

    def localhost_ports(self, service: str, ports: Mapping[SocketAddress, SocketAddress]) -> None:
        """Say on which loopback addresses a Service answers, each with where it leads; none: it does not."""

    def queued(self) -> None:
        """Work has come in."""

    def synced(self, sync: Sync) -> None:
        """The work at hand is done, but for what `sync` names."""

    def progressed(self) -> None:
        """A part of the work at hand is done."""

    def failed(self) -> None:
        """The work at hand could not be done at all and is tried again."""

    def refused(self, service: Subject, reason: str) -> None:
        """One Service could not be programmed, in whole or in part."""

    def drains_forced(self, destinations: int) -> None:
        """So many destinations were deleted with their connections, since the drain timeout had passed."""

    def swept(self, family: int, seconds: float, deleted: int) -> None:
        """Tracked connections of a family were looked through, and so many were stale and are gone."""

    def rival(self, node: str, reason: str) -> None:
        """Another program does our work on this node as well; '' when it does no more."""

    def contested(self, node: str, reason: str) -> None:
        """Another program keeps changing what is ours on this node; '' when it does no more."""

    def foreign_server(self, node: str, note: str) -> None:
        """A virtual server of another program was removed from this node, and not for the first time."""

    def repaired(self, objects: int) -> None:
        """So many objects in the kernel had been changed by other programs."""
