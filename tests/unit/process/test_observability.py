"""The servers of a process, put together from its settings and asked over real sockets."""

import http.client
import json
import socket
from contextlib import closing

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import Listen
from ipvsproxy.exchange.report import Subject, Sync
from ipvsproxy.process.observability import Observability
from tests.support.build import config

LOOPBACK = parse_ip("127.0.0.1")


class AcceptingClient:
    """Accepts every event."""

    def __init__(self):
        self.events = []

    def connect(self):
        assert not self.events

    def create_event(self, _, body):
        self.events.append(body)
        return Accepted()


class Accepted:
    status = 201
    headers = {}  # noqa: RUF012

    def read(self):
        return b"{}"

    def close(self):
        pass


class ObservedProcess:
    def __init__(self, health, metrics, **settings):
        self.health, self.metrics, self.levels = health, metrics, []
        settings.setdefault("healthz_bind_address", Listen(LOOPBACK, self.health))
        settings.setdefault("metrics_bind_address", Listen(LOOPBACK, self.metrics))
        self.outside = Observability(config(**settings), self.levels.append)

    def ask(self, path, method="GET", body=None, port=None):
        with closing(http.client.HTTPConnection("127.0.0.1", port or self.metrics, timeout=60)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@pytest.fixture
def start(free_port):
    started = []

    def make(**settings):
        process = ObservedProcess(free_port(), free_port(), **settings)
        process.outside.listen()
        started.append(process)
        return process

    yield make
    for process in started:
        process.outside._board.server.stop()


def test_the_pages_of_both_ports(start):
    process = start(
        document={"kind": "KubeProxyConfiguration"}, own_document={}, flags=(("v", "3"),), profiling=True
    )
    assert json.loads(process.ask("/configz")[1]) == {
        "kubeproxy.config.k8s.io": {"kind": "KubeProxyConfiguration"},
        "ipvsproxy.io": {},
    }
    assert "\nv=3\n" in process.ask("/flagz")[1]
    assert "\nBinary version: " in process.ask("/statusz")[1]
    assert process.ask("/proxyMode") == (200, "ipvs")
    assert process.ask("/debug/flags/v", "PUT", "5")[0] == 200
    assert process.levels == [5]
    assert process.ask("/livez", port=process.health)[0] == 200
    assert process.ask("/proxyMode", port=process.health)[0] == 404


def test_pages_that_are_switched_off(start):
    process = start(serve_flagz=False, serve_statusz=False)
    assert [process.ask(path)[0] for path in ("/flagz", "/statusz", "/debug/flags/v")] == [404] * 3


def test_a_report_turns_health_and_shows_in_metrics(start):
    process = start()
    assert process.ask("/healthz", port=process.health)[0] == 503
    process.outside.report.node(eligible=True, listen={})
    process.outside.report.synced(Sync(0.1, 3, 7, 9, 0, 0))
    assert process.ask("/healthz", port=process.health)[0] == 200
    process.outside.observe_request("GET", "api:6443", "200", 0.01)
    text = process.ask("/metrics")[1]
    assert "\nipvsproxy_services 7.0\n" in text
    assert '\nrest_client_requests_total{code="200",host="api:6443",method="GET"} 1.0\n' in text
    assert '\nkubeproxy_proxy_healthz_total{code="503"} 1.0\n' in text


def test_no_address_no_server(start):
    process = start(healthz_bind_address=None, metrics_bind_address=None)
    for port in (process.health, process.metrics):
        with pytest.raises(ConnectionRefusedError):
            process.ask("/livez", port=port)


def test_a_single_stack_host(start):
    process = start(families=frozenset((4,)))
    process.outside.report.node(eligible=True, listen={})
    process.outside.report.synced(Sync(0.1, 3, 7, 9, 0, 0))
    assert json.loads(process.ask("/healthz", port=process.health)[1])["status"].keys() == {"IPv4"}
    assert "IPv6" not in process.ask("/metrics")[1]


def test_events_of_a_start_and_of_a_service(start):
    process, door = start(), AcceptingClient()
    process.outside.report.refused(Subject("Service", "default", "web"), "no such protocol")
    process.outside.send_events(door)
    process.outside._events.stop(60)
    assert [event["reason"] for event in door.events] == ["FailedToProgramService", "Starting"]
    assert '\nipvsproxy_events_total{result="sent"} 2.0\n' in process.ask("/metrics")[1]


def test_the_last_words_of_a_hard_failure(free_port):
    process, door = ObservedProcess(free_port(), free_port(), bind_address_hard_fail=True), AcceptingClient()
    with socket.create_server(("127.0.0.1", process.metrics)), pytest.raises(OSError, match="metrics: ") as caught:
        process.outside.listen()
    process.outside.send_last_events(door, caught.value)
    (event,) = door.events
    assert event["reason"] == "FailedToStartMetricServer"
    assert event["note"] == f"127.0.0.1:{process.metrics}: Address already in use"
    process.outside._board.server.close()
