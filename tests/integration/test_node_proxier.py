"""A real kube-apiserver accepts all calls of a proxy that has the rights of kube-proxy and nothing more.

`KUBE_APISERVER=PATH ETCD=PATH` say where its programs are. The kernel is the one in memory, so neither root nor
IPVS is needed; everything else of the process is real. What was asked is read from the server's own audit log.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipvsproxy.base.errors import Fatal
from ipvsproxy.exchange.inbox import Inbox, Kind, SourceFailed
from ipvsproxy.kube.api import Response
from ipvsproxy.kube.events import EventLimits
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.source import ApiSource
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.process.observability import Observability
from tests.lab.apiservers import COLLECTIONS, Call, RealServer
from tests.lab.manifests import endpoint_slice, port, service
from tests.support.build import config, key
from tests.support.memory_kernel import MemoryNode

pytestmark = [
    pytest.mark.skipif(not os.environ.get("KUBE_APISERVER"), reason="KUBE_APISERVER and ETCD name no programs"),
    pytest.mark.timeout(900),
]

PORTS = (port(80, 8080, "TCP", "http"),)
CHECK = 31999
SERVICES, SLICES, NODES = "services", "discovery.k8s.io/endpointslices", "nodes"
EVENTS = "events.k8s.io/events"
ALL_CALLS = {
    *(Call(verb, resource, 200) for verb in ("list", "watch") for resource in (SERVICES, SLICES, NODES)),
    Call("create", EVENTS, 201),
    Call("patch", EVENTS, 200),
}
REASONS = {"Starting", "FailedToStartServiceHealthcheck", "FailedToProgramService"}


@pytest.fixture
def server(tmp_path: pathlib.Path) -> Iterator[RealServer]:
    opened = RealServer(None, tmp_path, os.environ["KUBE_APISERVER"], os.environ["ETCD"])
    yield opened
    opened.close()


class Process:
    """A proxy of node1 with everything but the kernel; watches last a second, repeats are told at once."""

    def __init__(self, kubeconfig: pathlib.Path) -> None:
        settings = config(kubeconfig=kubeconfig, healthz_bind_address=None, metrics_bind_address=None)
        self.node, self.inbox = MemoryNode(), Inbox()
        self._observability = Observability(settings, lambda _: None)
        self._observability._events._limits = EventLimits(counted_every=0)
        self._observability.listen()
        self.source = ApiSource(kubeconfig, "", "node1", pace=Pace(watch=(1, 1)))
        self.source.start(self.inbox)
        self._observability.send_events(self.source.client)
        self._loop = make_loop(settings, self.inbox, self.node.kernel(), report=self._observability.report)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Fatal):
            self._loop.run()

    def stop(self) -> None:
        self.inbox.put(SourceFailed("the test is over"))
        self._thread.join()
        self._observability._board.server.stop()
        self._observability._events.stop(10)
        self.source.stop()

    def destinations(self, address: str) -> list[str]:
        """What the virtual servers of an address lead to; nothing if there are none."""
        found = [
            state for name, state in list(self.node.ipvs.table.items()) if str(name).startswith(f"{address}:")
        ]
        return sorted(str(destination) for state in found for destination in state.destinations)


@pytest.fixture
def process(server: RealServer) -> Iterator[Process]:
    server.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}})
    server.put(service("web", PORTS, ["10.96.0.10"]))
    server.put(slice_for("web", "10.244.1.10"))
    started = Process(server.kubeconfig)
    yield started
    started.stop()


def slice_for(name: str, *addresses: str) -> dict[str, Any]:
    return endpoint_slice(name, PORTS, [{"addresses": [address], "nodeName": "node1"} for address in addresses])


def until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def events(server: RealServer) -> list[dict[str, Any]]:
    """The events of the default namespace, as an administrator sees them."""
    found: list[dict[str, Any]] = server.get("/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    return found


def test_every_call_is_allowed(server: RealServer, process: Process) -> None:
    until(lambda: process.destinations("10.96.0.10") == ["10.244.1.10:8080"])
    server.put(slice_for("web", "10.244.1.10", "10.244.1.11"))
    until(lambda: process.destinations("10.96.0.10") == ["10.244.1.10:8080", "10.244.1.11:8080"])

    # What makes events: a port that somebody else has, and a Service that the kernel refuses, again and again.
    process.node.ipvs.refuse[key("10.96.0.20:80")] = errno.EPROTONOSUPPORT
    with socket.create_server(("0.0.0.0", CHECK)):
        server.put(service("refused", PORTS, ["10.96.0.20"]))
        server.put(service("front", PORTS, ["10.96.0.30"], type_="LoadBalancer", externalTrafficPolicy="Local",
            healthCheckNodePort=CHECK))  # fmt: skip
        until(lambda: {event["reason"] for event in events(server)} >= REASONS)
        until(lambda: any(event.get("series", {}).get("count", 0) >= 3 for event in events(server)))
    until(lambda: server.calls() >= ALL_CALLS)
    assert server.calls() == ALL_CALLS
    for event in (event for event in events(server) if event["reason"] in REASONS):  # the server makes some itself
        assert event["reportingController"] == "kube-proxy"
        assert event["regarding"]["kind"] == ("Node" if event["reason"] == "Starting" else "Service")


def test_labels_count_while_the_proxy_runs(server: RealServer, process: Process) -> None:
    """The server selects (contract 2): gaining the label looks like a deletion, losing it like a new object."""
    until(lambda: process.destinations("10.96.0.10"))
    for kind, label in (("Service", "service.kubernetes.io/service-proxy-name"),
                        ("EndpointSlice", "service.kubernetes.io/headless")):  # fmt: skip
        path = f"{COLLECTIONS[kind].format(namespace='default')}/{'web' if kind == 'Service' else 'web-ipv4'}"
        found = server.get(path)
        del found["metadata"]["resourceVersion"], found["metadata"]["uid"]
        labels = found["metadata"].get("labels", {})
        server.put(found | {"metadata": found["metadata"] | {"labels": labels | {label: "x"}}})
        until(lambda: not process.destinations("10.96.0.10"))
        server.put(found | {"metadata": found["metadata"] | {"labels": labels}})
        until(lambda: process.destinations("10.96.0.10") == ["10.244.1.10:8080"])


def test_a_server_that_restarts(server: RealServer, process: Process) -> None:
    until(lambda: process.destinations("10.96.0.10"))
    writes = process.node.writes
    server.go_away()
    server.come_back()
    assert process.node.writes == writes
    server.put(slice_for("web", "10.244.1.12"))
    until(lambda: process.destinations("10.96.0.10") == ["10.244.1.12:8080"])


def test_nothing_else_would_be_allowed(server: RealServer, process: Process) -> None:
    """Else the tests above would show nothing."""
    until(lambda: process.destinations("10.96.0.10"))

    def status(call: Callable[[], Response]) -> int:
        answer = call()
        answer.read()
        answer.close()
        return answer.status

    client = process.source.client
    assert status(lambda: client._send("GET", "/api/v1/pods", {}, {}, 60)) == 403
    assert status(lambda: client._send("DELETE", "/api/v1/nodes/node1", {}, {}, 60)) == 403
    assert status(lambda: client.list(Kind.NODE, 1, "", "")) == 200
    assert Call("list", "pods", 403) in server.calls()
