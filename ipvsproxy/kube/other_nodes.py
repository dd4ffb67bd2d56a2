"""The addresses of all other nodes, from the Kubernetes API at a bounded cost for its servers.

Out: `OtherNodeAddresses` in the inbox: at the start, when there are new addresses to ask about, and now and
then. Nodes are not watched: each one's status is written anew every five minutes, and a cluster of n nodes would
be sent n * n of these. Instead the server is asked for the table that `kubectl get nodes -o wide` prints, without
objects and from its cache (resourceVersion 0): 0.35 KB for a node. It has the first internal and the first
external address of each one; where there are few nodes, their objects are asked for as well, which have all
addresses and the ranges of pods.

All nodes of a cluster do this, often because of one and the same Service. So the pauses grow with what all of them
together would have the servers send: nodes times bytes of an answer.
"""

import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, NamedTuple
from typing import Protocol as Interface

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import Cidr, is_node_address, parse_ip
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.exchange.inbox import Inbox, Kind
from ipvsproxy.kube.api import MALFORMED, RequestFailed, Response, failure_of, read_page
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.kube.decoded import InvalidObject
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.reflector import STOP_SECONDS
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.model import Node

COLUMNS = ("Name", "Internal-IP", "External-IP")
"""Of the table of Nodes (pkg/printers/internalversion/printers.go of Kubernetes)."""
WHOLE_UP_TO = 100
"""Nodes up to which their objects are read as well."""
FAILED = ExponentialWait(1.0, 300.0)
"""Pauses after looks that have failed; when an address is asked about, the first one is enough."""
NEVER = float("inf")

log = structlog.get_logger()


class NodeClient(Interface):
    """The connection for lists of all Nodes. Requests raise RequestFailed if there is no answer."""

    def node_table(self) -> Response:
        """Ask for the table of all Nodes."""

    def nodes(self) -> Response:
        """Ask for the objects of all Nodes."""


class QueryLimits(msgspec.Struct, frozen=True):
    """What all nodes of a cluster together may have the API servers send: bytes a second, and pauses in seconds.

    `peak` is for one look of all nodes that the same Service has made them take, `steady` for looks on and on.
    `hold` is how long a question waits for its answer. Of the pace, the clock and the pauses after failures count.
    """

    peak: float = 50e6
    steady: float = 2.5e6
    rarely: float = 300.0
    hold: float = 10.0
    pace: Pace = Pace(wait=FAILED)


class Answers(NamedTuple):
    """What one look has found, and how much all nodes of the cluster together would be sent for the same."""

    nodes: frozenset[bytes]
    pod_cidrs: tuple[Cidr, ...]
    load: int


class _Column(msgspec.Struct):
    name: str


class _Row(msgspec.Struct):
    cells: list[Any]


class _Table(msgspec.Struct, rename="camel"):
    kind: str
    column_definitions: list[_Column]
    rows: list[_Row] | None = None


_TABLE = msgspec.json.Decoder(_Table)


def look(transport: NodeClient, node_name: str, hold: Callable[[Response], None] = lambda _: None) -> Answers:
    """Read the addresses of all nodes but this one, and all known ranges of pods. Raises RequestFailed.

    `hold` is given each answer before it is read, so that another thread can interrupt that.
    """
    body = _body(transport.node_table(), hold)
    rows = _rows(body)
    found = {address for name, *texts in rows if name != node_name for address in _addresses(texts)}
    if len(rows) > WHOLE_UP_TO:
        return Answers(frozenset(found), (), len(rows) * len(body))
    whole = _body(transport.nodes(), hold)
    objects = list(_objects(whole))
    found.update(address for node in objects if node.name != node_name for address in node.addresses)
    ranges = {cidr for node in objects for cidr in node.pod_cidrs}
    return Answers(frozenset(found), tuple(sorted(ranges)), len(rows) * (len(body) + len(whole)))


def _body(response: Response, hold: Callable[[Response], None]) -> bytes:
    try:
        hold(response)
        body = response.read()
        if response.status != HTTPStatus.OK:
            raise failure_of(response.status, body, response.headers)
        return body
    finally:
        response.close()


def _rows(body: bytes) -> list[tuple[Any, ...]]:
    """Return the cells of COLUMNS, row by row."""
    try:
        table = _TABLE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestFailed(f"malformed table of nodes: {error}", MALFORMED) from None
    names = [column.name for column in table.column_definitions]
    if table.kind != "Table" or any(name not in names for name in COLUMNS):
        raise RequestFailed("no table of nodes with their addresses", MALFORMED)
    places = [names.index(name) for name in COLUMNS]
    return [tuple(row.cells[p] for p in places) for row in table.rows or () if len(row.cells) > max(places)]


def _addresses(cells: list[Any]) -> Iterator[bytes]:
    """An address that a node does not have is `<none>`."""
    for text in cells:
        try:
            address = parse_ip(text) if isinstance(text, str) else b""
        except ValueError:
            continue
        if address and is_node_address(address):
            yield address


def _objects(body: bytes) -> Iterator[Node]:
    for raw in read_page(Kind.NODE, body).items or ():
        try:
            found = decode_json(Kind.NODE, raw).object
        except InvalidObject as refused:
            log.debug("Ignored Node without usable addresses", field=refused.field, err=refused.reason)
        else:
            if isinstance(found, Node):
                yield found


class OtherNodes:
    """Looks at the Nodes, in a thread of its own, and puts what it has found into the inbox."""

    def __init__(
        self, transport: NodeClient, node_name: str, inbox: Inbox, limits: QueryLimits | None = None
    ) -> None:
        self._transport, self._node_name, self._inbox = transport, node_name, inbox
        self._limits = limits or QueryLimits()
        self._lock = threading.Lock()
        self._asked = self._noted = 0
        self._news = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._response: Response | None = None
        self._seen = OtherNodeAddresses(None)
        self._load = 0
        self._looked_at = -NEVER
        self._due, self._release = 0.0, NEVER
        self._failures, self._pause = 0, 0.0
        self._complaint = ""

    def start(self) -> None:
        """Begin to look; returns at once."""
        self._thread = threading.Thread(target=self.run, name="neighbours", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also while it waits for the server."""
        self._ended = True
        self._news.set()
        if (response := self._response) is not None:
            response.interrupt()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def ask(self) -> int:
        """Ask for a look that begins later than now, and return the ticket that it will answer."""
        with self._lock:
            self._asked += 1
            self._news.set()
            return self._asked

    def run(self) -> None:
        """Look when it is due, until stopped."""
        while not self._ended:
            seconds = self.step()
            self._news.wait(None if seconds == NEVER else seconds)
            self._news.clear()

    def step(self) -> float:
        """Do what is due, and return in how many seconds something is due again."""
        limits, pace = self._limits, self._limits.pace
        now = pace.clock()
        with self._lock:
            asked = self._asked
        if asked > self._noted:
            self._noted = asked
            spread = pace.uniform(0, self._load / limits.peak)
            self._due = min(self._due, max(now + spread, self._looked_at + self._gap()))
            self._release = min(self._release, now + limits.hold)
        if now >= self._due:
            self._look(asked)
        elif now >= self._release:
            # Better to serve by what is known than to keep Services waiting.
            self._release = NEVER
            self._publish(asked)
        return max(0.0, min(self._due, self._release) - pace.clock())

    def _gap(self) -> float:
        """Return the shortest time between two looks."""
        return max(self._limits.pace.wait.first if self._failures else 0.0, self._load / self._limits.steady)

    def _look(self, asked: int) -> None:
        try:
            found = look(self._transport, self._node_name, self._hold)
        except RequestFailed as failure:
            self._failed(failure, asked)
        except Exception as error:  # the top of a thread: nothing may end it
            log.exception(messages.NODES_CRASHED)
            self._failed(RequestFailed(f"crash: {error!r}", MALFORMED), asked)
        else:
            self._failures, self._load = 0, found.load
            self._complain("")
            self._seen = OtherNodeAddresses(found.nodes, found.pod_cidrs)
            self._publish(asked)
        self._plan_next()

    def _publish(self, asked: int) -> None:
        """Tell all that is known: an event may take the place of one that has not been read yet."""
        self._inbox.put(msgspec.structs.replace(self._seen, answers=asked))

    def _hold(self, response: Response) -> None:
        self._response = response
        if self._ended:
            raise RequestFailed("stopping")

    def _plan_next(self) -> None:
        pace = self._limits.pace
        self._looked_at, self._release = pace.clock(), NEVER
        if self._failures:
            seconds = self._pause
        elif self._noted:
            seconds = pace.uniform(0.8, 1.2) * max(self._limits.rarely, self._gap())
        else:
            seconds = NEVER  # no Service has an address that anybody would have to know about
        self._due = self._looked_at + seconds

    def _failed(self, failure: RequestFailed, asked: int) -> None:
        if self._ended:
            return
        self._publish(asked)
        self._failures += 1
        self._pause = self._limits.pace.pause(self._failures, failure.retry_after)
        self._complain(failure.reason)

    def _complain(self, reason: str) -> None:
        if reason and reason != self._complaint:
            log.warning(messages.NODES_UNAVAILABLE, err=reason)
        elif self._complaint and not reason:
            log.info(messages.NODES_LISTED_AGAIN)
        self._complaint = reason
