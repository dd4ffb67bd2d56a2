"""Notices into Events of the API (events.k8s.io/v1), in a thread of their own.

In: `EventNote`s, from any thread; `put` returns at once. Out: requests through an `EventClient`. Events are for
people who look, so everything about them gives way: repeats of one event within SERIES_SECONDS become a count in
the first one, each namespace has a budget, all of them have one together, and the node has its own. An API server
that is away is waited for a while. Nothing is done that the role system:node-proxier does not allow (contract 2,
6.1).
"""

import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from typing import Protocol as Interface

import structlog
import tenacity

from ipvsproxy.base.budget import Budget, Rate
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.exchange.report import EventNote, Severity, Subject
from ipvsproxy.kube.api import NO_ANSWER, RequestFailed, Response, failure_of
from ipvsproxy.kube.pace import Pace

CONTROLLER = "kube-proxy"
QUEUE = 500
KEPT_FOR_NODE = 50
EACH, TOGETHER, NODE = Rate(10, 30.0), Rate(25, 10.0), Rate(10, 60.0)
"""Events about the objects of one namespace, of all namespaces, and about the node."""
SERIES_SECONDS = 360.0
COUNTED_EVERY_SECONDS = 30.0
ATTEMPTS, RETRY = 12, ExponentialWait(0.25, 10.0)
MAX_NOTE = 1024
NOT_FOUND = 404

log = structlog.get_logger()


class EventClient(Interface):
    """The way to the API's events. Raises RequestFailed when there is no answer."""

    def connect(self) -> None:
        """Read the configuration; no server is asked yet. Raises Unusable."""

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> Response:
        """Make an event."""

    def patch_event(self, namespace: str, name: str, body: Mapping[str, Any]) -> Response:
        """Change an event by a JSON merge patch."""


class EventLimits(NamedTuple):
    """Events of a namespace, of all of them, and of the node; of the pace, the clock and the pauses count."""

    each: Rate = EACH
    together: Rate = TOGETHER
    node: Rate = NODE
    counted_every: float = COUNTED_EVERY_SECONDS
    pace: Pace = Pace(wait=RETRY)


class EventSeries:
    """One event, made or to be made, and how often it has happened since it was first heard of."""

    def __init__(self, notice: EventNote, now: float) -> None:
        self.notice = notice
        self.name = ""
        self.moment = datetime.now(UTC)
        self.count = 1
        self.last = self.reported = now
        self.is_queued = False

    def again(self, now: float) -> None:
        """Count it once more."""
        self.count += 1
        self.last, self.moment = now, datetime.now(UTC)


class Events:
    """Sends notices once it has begun. `sent` is called with the result of each: sent, failed or dropped."""

    def __init__(
        self, host: str, sent: Callable[[str], None] = lambda _: None, limits: EventLimits | None = None
    ) -> None:
        # Held and not inherited from: a new Python may use any name in its Thread, as 3.13 does with `_handle`.
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._instance = f"{CONTROLLER}-{host}"[:128]
        self._client: EventClient | None = None
        self._sent = sent
        self._limits = limits or EventLimits()
        self._queue: queue.Queue[EventSeries | None] = queue.Queue(QUEUE)
        self._lock = threading.Lock()
        # In the order in which they last happened.
        self._series: dict[EventNote, EventSeries] = {}
        self._budget = Budget(self._limits.pace.clock, self._limits.each, self._limits.node, self._limits.together)
        self._stopping = threading.Event()
        self._numbers = itertools.count(1)

    def begin(self, client: EventClient | None) -> None:
        """Start to send; without a client (manifests) notices are only logged."""
        self._client = client
        self._thread.start()

    def put(self, notice: EventNote) -> None:
        """Take a notice; never blocks and never fails. What is above a budget is dropped, not queued."""
        now = self._limits.pace.clock()
        with self._lock:
            self._forget(now)
            series = self._series.pop(notice, None)
            if series is not None:
                self._series[notice] = series
                series.again(now)
                if not series.is_queued and now - series.reported >= self._limits.counted_every:
                    series.reported = now
                    self._enqueue(series)
            elif self._budget.take(notice.subject.namespace):
                self._series[notice] = series = EventSeries(notice, now)
                if not self._enqueue(series):
                    del self._series[notice]
                self._log_dropped(notice.subject.namespace)
            else:
                self._sent("dropped")

    def _forget(self, now: float) -> None:
        """Forget events that have not happened for a while: the next one is a new event."""
        while self._series:
            notice, series = next(iter(self._series.items()))
            if now - series.last <= SERIES_SECONDS:
                return
            del self._series[notice]

    def _enqueue(self, series: EventSeries) -> bool:
        """Have an event made or counted; a part of the queue is kept for the node."""
        namespace = series.notice.subject.namespace
        if self._queue.qsize() < (QUEUE - KEPT_FOR_NODE if namespace else QUEUE):
            with suppress(queue.Full):
                self._queue.put_nowait(series)
                series.is_queued = True
                return True
        self._sent("dropped")
        return False

    def _log_dropped(self, namespace: str) -> None:
        count = self._budget.take_withheld(namespace)
        if count:
            log.warning("Dropped more Events about objects of a namespace", namespace=namespace, count=count)

    def _run(self) -> None:
        while (series := self._queue.get()) is not None:
            try:
                self._handle(series)
            except Exception:  # the top of a thread: nothing may end it
                log.exception("Could not send Event")

    def stop(self, seconds: float) -> None:
        """Send what is at hand, wait at most so many seconds for it, and end."""
        with suppress(queue.Full):
            self._queue.put(None, timeout=seconds)
        self._thread.join(seconds)
        self._stopping.set()

    def _handle(self, series: EventSeries) -> None:
        with self._lock:
            series.is_queued = False
            notice, moment, count = series.notice, series.moment, series.count
        if self._client is None:
            log.debug("Recorded Event", reason=notice.reason, about=notice.subject.name, note=notice.note)
        elif not (self._repeat(series, moment, count) if series.name else self._create(series, moment)):
            with self._lock:
                if self._series.get(notice) is series:
                    del self._series[notice]

    def _create(self, series: EventSeries, moment: datetime) -> bool:
        notice = series.notice
        name = f"{notice.subject.name[:200]}.{int(moment.timestamp() * 1e6):x}{next(self._numbers):x}"
        body = event(notice, name, self._instance, moment)
        made = self._try(lambda client: client.create_event(event_namespace(notice.subject), body))
        if made:
            series.name = name
        return made

    def _repeat(self, series: EventSeries, moment: datetime, count: int) -> bool:
        """Tell the API how often it has happened."""
        body = {"series": {"count": count, "lastObservedTime": micro_time(moment)}}
        return self._try(
            lambda client: client.patch_event(event_namespace(series.notice.subject), series.name, body)
        )

    def _try(self, call: Callable[[EventClient], Response]) -> bool:
        """Make a request, again while the server is away; tell whether it was accepted."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_temporary),
            wait=self._limits.pace.after,
            stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_when_event_set(self._stopping),
            sleep=tenacity.sleep_using_event(self._stopping),
            reraise=True,
        )
        try:
            retrying(self._request, call)
        except RequestFailed as problem:
            log.debug("API server did not accept Event", err=problem.reason)
            self._sent("failed")
            return False
        self._sent("sent")
        return True

    def _request(self, call: Callable[[EventClient], Response]) -> None:
        if self._client is None:
            return
        response = call(self._client)
        try:
            body = response.read()
            if response.status >= 300:
                raise failure_of(response.status, body, response.headers)
        finally:
            response.close()


def _is_temporary(failure: BaseException) -> bool:
    """Whether the same request may be accepted later."""
    return isinstance(failure, RequestFailed) and (failure.status in (NO_ANSWER, 429) or failure.status >= 500)


def event(notice: EventNote, name: str, instance: str, moment: datetime) -> dict[str, Any]:
    """Return the Event object of a notice."""
    subject = notice.subject
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": event_namespace(subject)},
        "eventTime": micro_time(moment),
        "reportingController": CONTROLLER,
        "reportingInstance": instance,
        "action": notice.action,
        "reason": notice.reason,
        "type": str(notice.severity),
        "note": notice.note.encode()[:MAX_NOTE].decode(errors="ignore"),
        "regarding": _reference(subject),
    }


def starting(node: str) -> EventNote:
    """Return the notice of a start, as kube-proxy has it."""
    # The kubelet's convention: a Node is referred to by its name in place of its uid.
    return EventNote(Subject("Node", "", node, node), Severity.NORMAL, "Starting", "StartKubeProxy")


def replacing(node: str, note: str) -> EventNote:
    """Return the notice that Services are served in another mode than the settings name."""
    return EventNote(
        Subject("Node", "", node, node), Severity.WARNING, "ProxyModeReplaced", "StartKubeProxy", note
    )


def waiting(node: str, holder: str) -> EventNote:
    """Return the notice that another proxy has this node."""
    note = f"another ipvsproxy has this node ({holder}); this one takes over when it ends"
    return EventNote(
        Subject("Node", "", node, node), Severity.NORMAL, "WaitingForOtherProxy", "StartKubeProxy", note
    )


def cannot_listen(node: str, server: str, note: str) -> EventNote:
    """Return the notice that the server `healthz` or `metrics` cannot listen and the process ends."""
    reason = "FailedToStartProxierHealthcheck" if server == "healthz" else "FailedToStartMetricServer"
    return EventNote(Subject("Node", "", node, node), Severity.WARNING, reason, "StartKubeProxy", note)


def event_namespace(subject: Subject) -> str:
    """Return where an event lives: with its object, or in `default`."""
    return subject.namespace or "default"


def micro_time(moment: datetime) -> str:
    """Return a time in the API's form with microseconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _reference(subject: Subject) -> dict[str, str]:
    reference = {"kind": subject.kind, "name": subject.name, "apiVersion": "v1"}
    if subject.namespace:
        reference["namespace"] = subject.namespace
    if subject.uid:
        reference["uid"] = subject.uid
    return reference
