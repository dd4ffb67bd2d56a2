"""Notices become Events of an API server, over real HTTP."""

import re
import threading

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base.budget import Rate
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.exchange.report import EventNote, Severity, Subject, service_subject
from ipvsproxy.kube import events as room
from ipvsproxy.kube.client import KubeClient
from ipvsproxy.kube.events import EventLimits, Events, cannot_listen, starting
from ipvsproxy.kube.pace import Pace
from tests.support.apiserver import ApiServer
from tests.support.clock import Clock

MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
QUICK = Pace(wait=ExponentialWait(0.001, 0.002))


def refused(note="10.96.0.1:80/SCTP: no such protocol", name="default/web"):
    subject = service_subject(name, "1234")
    return EventNote(subject, Severity.WARNING, "FailedToProgramService", "ProgramService", note)


class FinishedSender:
    """Sends to a server; `finish` waits until everything is out."""

    def __init__(self, client, **limits):
        self.clock = Clock(0.0)
        self.results = []
        self._client = client
        self.events = Events(
            "host1", self.results.append, EventLimits(pace=replace(QUICK, clock=self.clock), **limits)
        )
        self.begun = False

    def send(self, *notices):
        """Handle notices now, in this thread."""
        self.events._client = self._client
        for notice in notices:
            self.events.put(notice)
            while not self.events._queue.empty():
                self.events._handle(self.events._queue.get())


@pytest.fixture
def server():
    with ApiServer() as running:
        yield running


@pytest.fixture
def client(server, tmp_path):
    made = KubeClient(server.write_kubeconfig(tmp_path / "kubeconfig"), "", "node1")
    made.connect()
    yield made
    made.close()


@pytest.fixture
def sender(client):
    return FinishedSender(client)


def test_an_event_of_a_service(server, sender):
    sender.send(refused())
    ((namespace, name), event) = server.written.popitem()
    assert namespace == "default"
    assert name.startswith("web.")
    assert MICRO_TIME.fullmatch(event.pop("eventTime"))
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": "default"},
        "reportingController": "kube-proxy",
        "reportingInstance": "kube-proxy-host1",
        "action": "ProgramService",
        "reason": "FailedToProgramService",
        "type": "Warning",
        "note": "10.96.0.1:80/SCTP: no such protocol",
        "regarding": {
            "kind": "Service", "apiVersion": "v1", "namespace": "default", "name": "web", "uid": "1234"},
    }  # fmt: skip


def test_events_of_the_node_live_in_default(server, sender):
    sender.send(
        starting("node1"), cannot_listen("node1", "healthz", "busy"), cannot_listen("node1", "metrics", "busy")
    )
    assert {namespace for namespace, _ in server.written} == {"default"}
    found = {event["reason"]: event for event in server.written.values()}
    assert found.keys() == {"Starting", "FailedToStartProxierHealthcheck", "FailedToStartMetricServer"}
    assert found["Starting"]["regarding"] == {"kind": "Node", "apiVersion": "v1", "name": "node1", "uid": "node1"}
    assert (found["Starting"]["type"], found["Starting"]["action"]) == ("Normal", "StartKubeProxy")


def test_repeats_are_counted_in_one_event(server, sender):
    for _ in range(5):
        sender.send(refused())
        sender.clock.now += 10
    (event,) = server.written.values()
    assert event["series"]["count"] == 4  # told after 30 s, the fifth is counted with the next
    assert MICRO_TIME.fullmatch(event["series"]["lastObservedTime"])


def test_after_a_while_it_is_a_new_event(server, sender):
    sender.send(refused())
    sender.clock.now += room.SERIES_SECONDS + 1
    sender.send(refused())
    assert len(server.written) == 2
    assert all("series" not in event for event in server.written.values())


def test_a_flood_is_dropped_and_passes(server, client):
    sender = FinishedSender(client, each=Rate(3, 10.0))
    sender.send(*(refused(name=f"default/s{n}") for n in range(10)))
    assert sender.results == ["sent"] * 3 + ["dropped"] * 7
    sender.clock.now += 10
    sender.send(refused(name="default/late"))
    assert len(server.written) == 4


def test_an_event_that_expired_is_made_anew(server, sender):
    sender.send(refused())
    server.written.clear()
    sender.clock.now += 40
    sender.send(refused(), refused())
    assert len(server.written) == 1


def test_a_server_that_answers_with_an_error_is_asked_again(server, sender):
    server.fail(500, kind="Event", times=2)
    server.fail(429, kind="Event", times=1)
    sender.send(refused())
    assert sender.results == ["sent"]


def test_a_refusal_is_final_and_costs_only_its_event(server, sender):
    server.fail(403, kind="Event")
    sender.send(refused(), refused(name="default/other"))
    assert sender.results == ["failed", "sent"]


def test_long_words_are_cut(server, sender):
    sender.send(refused(note="ü" * 2000))
    (event,) = server.written.values()
    assert event["note"] == "ü" * 512


def test_putting_never_waits(client):
    plenty = Rate(10 * room.QUEUE, 1.0)
    full = Events("host1", (results := []).append, EventLimits(plenty, plenty, plenty))
    for n in range(room.QUEUE + 5):
        full.put(refused(name=f"default/s{n}"))
    assert results == ["dropped"] * (room.KEPT_FOR_NODE + 5)
    results.clear()
    for n in range(room.KEPT_FOR_NODE + 3):
        full.put(starting(f"node{n}"))
    assert results == ["dropped"] * 3


def test_one_namespace_leaves_room_for_others_and_all_of_them_for_the_node(server, client):
    sender = FinishedSender(client)
    flood = [refused(name=f"tenant/s{n}") for n in range(1000)]
    sender.send(*flood, refused(name="default/web"), starting("node1"))
    about = [event["regarding"]["name"] for event in server.written.values()]
    assert len(about) == room.EACH.burst + 2
    assert about[-2:] == ["web", "node1"]
    sender.send(*(refused(name=f"n{n}/s") for n in range(1000)))
    assert len(server.written) <= room.TOGETHER.burst + 1
    sender.send(cannot_listen("node1", "healthz", "busy"))
    assert len(server.written) <= room.TOGETHER.burst + 2
    assert list(server.written.values())[-1]["regarding"]["kind"] == "Node"


def test_repeats_of_one_event_take_no_room_from_others(client, server):
    events = Events("host1", (results := []).append)
    for _ in range(10 * room.QUEUE):
        events.put(refused())
    assert results == []
    assert events._queue.qsize() == 1


def test_what_was_dropped_of_a_namespace_is_one_line(server, client):
    sender = FinishedSender(client)
    sender.send(*(refused(name=f"tenant/s{n}") for n in range(100)))
    sender.clock.now += 3600
    with capture_logs() as logs:
        sender.send(*(refused(name=f"tenant/t{n}") for n in range(3)))
    assert [(line["namespace"], line["count"]) for line in logs if "count" in line] == [("tenant", 90)]


def test_before_there_is_a_connection_events_wait(server, tmp_path):
    client = KubeClient(server.write_kubeconfig(tmp_path / "kubeconfig"), "", "node1")
    events = Events("host1", lambda _: None, EventLimits(pace=QUICK))
    events.put(starting("node1"))
    tried = threading.Event()

    class OneClient:
        def create_event(self, namespace, body):
            tried.set()
            return client.create_event(namespace, body)

    events.begin(OneClient())
    assert tried.wait(60)
    client.connect()
    server.wait_for(lambda: server.written)
    events.stop(60)
    client.close()


def test_without_an_api_nothing_is_sent():
    events = Events("host1", (results := []).append)
    events.put(EventNote(Subject("Node", "", "n"), Severity.NORMAL, "Starting", "StartKubeProxy"))
    events.begin(None)
    events.stop(60)
    assert results == []
    assert not events._thread.is_alive()


def test_requests_are_observed(server, tmp_path):
    seen = []
    client = KubeClient(
        server.write_kubeconfig(tmp_path / "kubeconfig"),
        "",
        "node1",
        observe=lambda *facts: seen.append(facts[:3]),
    )
    client.connect()
    server.fail(403, kind="Event")
    sender = FinishedSender(client)
    sender.send(refused(), refused())
    host = server.url.removeprefix("http://")
    assert seen == [("POST", host, "403"), ("POST", host, "201")]
    client.close()
