"""Follows the objects of one kind at the API server: lists them, then watches what changes.

In: a `Transport`. Out: events in the inbox: a `Listed` for each complete list, a `Changed` or `Removed` for each
change. Never acted on: a list that failed, ended early or is not of our kind. A malformed object affects only
itself; its last valid version is kept.

Lists are always consistent reads (no resourceVersion), never "any version will do" ("0"): a list from a server
that lags behind could bring back Services that are gone. So a list is never older than what we knew, unless
the API's storage itself was put back in time; then the list is the truth, and a log line reports it. A watch
resumes from the last version seen, and lists again only when the server no longer knows that version (410, as
status or inside of the stream) or sends malformed answers repeatedly. A server that is away changes nothing.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Object, Removed, RightRefused
from ipvsproxy.kube.api import (
    GONE,
    MALFORMED,
    NO_ANSWER,
    PAGE_SIZE,
    UNAUTHORIZED,
    RequestFailed,
    Response,
    TooLarge,
    Transport,
    failure_of,
    lines,
    read_event,
    read_page,
)
from ipvsproxy.kube.ceilings import ANSWER_BYTES, ERROR_BYTES, WHOLE_BYTES, ObjectRoom
from ipvsproxy.kube.decode import identify, key_of
from ipvsproxy.kube.decoded import Decoded, InvalidObject
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.reporting_decoder import ReportingDecoder
from ipvsproxy.kube.rights import SETTING, refused_right

# Failures that have nothing to do with the version we resume from: waiting is all there is to do.
RETRYABLE = frozenset({NO_ANSWER, UNAUTHORIZED, 403, 429, 502, 503})
RELIST_AFTER = 3
# A watch that ends sooner, without a reason, means a failing server and not the end of its time.
SHORT_WATCH_SECONDS = 1.0
# A list right after another one is due to the server, not to what has changed: after a watch of this length only.
SETTLED_SECONDS = 30.0
# A thread that waits for a server to answer cannot be interrupted; it is a daemon and may be left behind.
STOP_SECONDS = 5.0

log = structlog.get_logger()


class _Found:
    """What one list has.

    `kept` are keys of objects that cannot be used, `full` why there is no room for some of them.
    """

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.kept: set[str] = set()
        self.room = ObjectRoom()
        self.full: set[str] = set()


class Reflector:
    """Puts changes of one kind into the inbox, in a thread of its own."""

    def __init__(self, kind: Kind, transport: Transport, inbox: Inbox, pace: Pace | None = None) -> None:
        self._kind = kind
        self._transport = transport
        self._inbox = inbox
        self._pace = pace or Pace()
        self._version = ""  # empty: a list is due
        self._newest = ""
        self._limit = PAGE_SIZE
        self._attempts = 0
        self._lists = 0  # without a watch that lasted in between
        self._room = ObjectRoom()
        self._full: set[str] = set()
        self._away: tuple[float, int] | None = None
        self._decoder = ReportingDecoder(kind)
        self._stopping = threading.Event()
        self._response: Response | None = None
        self._thread: threading.Thread | None = None
        self._log = log.bind(kind=str(kind))

    def start(self) -> None:
        """Begin to follow; returns at once."""
        self._thread = threading.Thread(target=self.run, name=f"reflector {self._kind}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also while it waits for the server."""
        self._stopping.set()
        if (response := self._response) is not None:
            response.interrupt()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def run(self) -> None:
        """Follow until stopped."""
        while not self._stopping.is_set():
            self._stopping.wait(self.step())

    def step(self) -> float:
        """List or watch once; return how many seconds to wait before the next step."""
        try:
            if self._version:
                return self._watch()
            self._list()
        except RequestFailed as failure:
            return 0 if self._stopping.is_set() else max(self._recover(failure), self._rest())
        except Exception as error:  # noqa: BLE001 - the top of a thread: nothing may end it
            self._log.exception(messages.WATCH_CRASHED)
            self._version = ""
            return self._recover(RequestFailed(f"crash: {error!r}", MALFORMED))
        return 0

    # Listing

    def _list(self) -> None:
        """Fetch all pages, then tell; a page is decoded before the next one is asked for."""
        found = _Found()
        version, token = "", ""
        until = self._pace.clock() + self._pace.list
        while True:
            page = read_page(self._kind, self._fetch(token))
            version = version or page.metadata.resource_version
            for raw in page.items or ():
                self._sort(raw, found)
            if not page.metadata.continue_:
                break
            if page.metadata.continue_ == token:
                raise RequestFailed("the list does not move on", MALFORMED)
            if self._pace.clock() > until:
                raise RequestFailed(f"the list was not complete within {self._pace.list:g} s", MALFORMED)
            token = page.metadata.continue_
        self._record_list(found)
        self._note_version(version)
        self._version = version
        self._lists += 1
        self._limit = self._limit or PAGE_SIZE
        self._back()

    def _record_list(self, found: "_Found") -> None:
        objects, kept = found.objects, found.kept
        self._decoder.keep(objects.keys() | kept)
        self._room, self._full = found.room, self._full & found.full
        self._inbox.put(Listed(self._kind, objects, frozenset(kept)))
        self._log.debug("Listed objects", objects=len(objects), kept=len(kept))

    def _fetch(self, token: str) -> bytes:
        """Return a page; one that is too large is asked for again with half as many objects."""
        while True:
            try:
                with self._opened(self._transport.list(self._kind, self._limit, token, "")) as response:
                    return response.read(ANSWER_BYTES if self._limit else WHOLE_BYTES)
            except TooLarge as failure:
                if self._limit == 1:
                    raise
                self._limit = self._limit // 2 or PAGE_SIZE
                self._log.info("Reduced the page size of lists", objects=self._limit, err=failure.reason)

    def _note_version(self, version: str) -> None:
        newest, self._newest = self._newest, version
        if newest.isdecimal() and version.isdecimal() and int(version) < int(newest):
            # Consistent reads go back only with the storage itself, so this list is how things are now.
            self._log.warning(messages.VERSION_WENT_BACK, version=version, newestSeen=newest)

    def _sort(self, raw: msgspec.Raw, found: "_Found") -> None:
        try:
            key = key_of(self._kind, identify(raw))
        except InvalidObject as refused:
            self._log.warning(messages.NAMELESS_IGNORED, field=refused.field, err=refused.reason)
            return
        decoded = self._decoder.decode(key, raw)
        if decoded is None:
            found.kept.add(key)
        elif decoded.object is not None:
            if self._fits(found.room, found.full, key, decoded.object):
                found.objects[key] = decoded.object
            else:
                found.kept.add(key)

    def _fits(self, room: ObjectRoom, full: set[str], key: str, value: Object) -> bool:
        """Make room for an object; where there is none, report it once for as long as there is none."""
        reason = room.take(key, value)
        if reason:
            full.add(reason)
            if reason not in self._full:
                self._full.add(reason)
                self._log.error(
                    "Refused objects above a limit, keeping their last valid versions",
                    object=key, err=reason,
                )  # fmt: skip
        return not reason

    # Watching

    def _watch(self) -> float:
        """Follow the changes until the server ends the watch; return how many seconds to wait then."""
        seconds = self._pace.randint(*self._pace.watch)
        with self._opened(self._transport.watch(self._kind, self._version, seconds)) as response:
            self._back()
            before, started = self._version, self._pace.clock()
            try:
                self._listen(response)
            finally:
                lasted = self._pace.clock() - started
                has_progress = self._version != before
                if has_progress or lasted >= SHORT_WATCH_SECONDS:
                    self._attempts = 0
                if lasted >= SETTLED_SECONDS:
                    self._lists = 0
        if lasted >= SHORT_WATCH_SECONDS:
            return 0
        if not has_progress:
            raise RequestFailed("the watch ended at once")
        return self._pace.pause(1)

    def _listen(self, response: Response) -> None:
        """Pass events on until the stream ends."""
        for line in lines(response.chunks()):
            if self._stopping.is_set():
                break
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        """Pass one event on, then remember its version: after a failure, nothing is skipped."""
        event = read_event(line)
        if event.type == "ERROR":
            raise failure_of(MALFORMED, event.object, {})
        try:
            identity = identify(event.object)
            if event.type != "BOOKMARK":
                self._pass_on(event.type, key_of(self._kind, identity), event.object)
        except InvalidObject as refused:
            raise RequestFailed(f"watch event of no object: {refused}", MALFORMED) from None
        self._version = self._newest = identity.resource_version or self._version

    def _pass_on(self, type_: str, key: str, raw: msgspec.Raw) -> None:
        if type_ == "DELETED":
            self._decoder.forget(key)
            self._room.drop(key)
            self._inbox.put(Removed(self._kind, key))
        elif type_ in ("ADDED", "MODIFIED"):
            decoded = self._decoder.decode(key, raw)
            if decoded is not None and (change := self._change(key, decoded)) is not None:
                self._inbox.put(change)
        else:
            raise RequestFailed(f"unknown watch event {type_[:40]!r}", MALFORMED)

    def _change(self, key: str, decoded: Decoded) -> Changed | Removed | None:
        if decoded.object is None:
            self._room.drop(key)
            return Removed(self._kind, key)
        if not self._fits(self._room, set(), key, decoded.object):
            return None
        return Changed(self._kind, key, decoded.object, decoded.triggered)

    # Both

    @contextmanager
    def _opened(self, response: Response) -> Iterator[Response]:
        """Hold a response open and see to it that it is closed. Raises RequestFailed if it is an error."""
        self._response = response
        try:
            if self._stopping.is_set():
                raise RequestFailed("stopping")
            if response.status != 200:
                raise failure_of(response.status, response.read(ERROR_BYTES), response.headers)
            yield response
        finally:
            self._response = None
            response.close()

    # Failures

    def _recover(self, failure: RequestFailed) -> float:
        """Decide how to continue after a failure; return how many seconds to wait."""
        self._attempts += 1
        first = self._attempts == 1
        if failure.status == GONE:
            self._log.info("Watched resourceVersion expired, listing again", err=failure.reason)
            if not self._version:
                # A list takes longer than the server keeps what its pages are of: all at once, or it never ends.
                self._limit = 0
            self._version = ""
            return 0 if first else self._wait(failure)
        self._note_away(failure)
        if failure.status == UNAUTHORIZED:
            self._transport.refresh()
        elif failure.status not in RETRYABLE and self._attempts >= RELIST_AFTER:
            self._version = ""
        wait = 0 if first and failure.status == UNAUTHORIZED else self._wait(failure)
        self._log.debug(messages.RETRYING, err=failure.reason, attempt=self._attempts, wait=round(wait, 2))
        return wait

    def _wait(self, failure: RequestFailed) -> float:
        return self._pace.pause(self._attempts, failure.retry_after)

    def _rest(self) -> float:
        """Return how long to wait before a list when the one before it was not followed by a watch that lasted.

        Whatever else goes well: a list costs the server, and every node, more than anything else.
        """
        return 0 if self._version or self._lists <= 1 else self._pace.pause(self._lists - 1)

    def _note_away(self, failure: RequestFailed) -> None:
        """Log once that the API fails, and again if it fails in another way."""
        since, status = self._away or (self._pace.clock(), -1)
        self._away = since, failure.status
        if status == failure.status:
            return
        if right := refused_right(self._kind, failure):
            self._log.error(messages.RIGHT_REFUSED, right=right, setting=SETTING, err=failure.reason)
            self._inbox.put(RightRefused(self._kind))
        else:
            self._log.warning(messages.WATCH_FAILED, err=failure.reason)

    def _back(self) -> None:
        if self._away is not None:
            seconds = round(self._pace.clock() - self._away[0], 1)
            self._log.info(messages.WATCH_BACK, seconds=seconds)
        self._away = None
