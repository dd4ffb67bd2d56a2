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
import yaml
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.errors import Fatal
from ipvsproxy.exchange.inbox import Inbox, Kind, SourceFailed, kinds
from ipvsproxy.kube.api import Response
from ipvsproxy.kube.events import EventLimits
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.source import ApiSource
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.process.observability import Observability
from tests.lab.apiservers import COLLECTIONS, PROXY_USER, Call, RealServer
from tests.lab.manifests import endpoint_slice, port, service
from tests.support.build import config, key
from tests.support.memory_kernel import MemoryNode
from tests.support.repository import REPO

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


class WatchingProxy:
    """A proxy of node1 with everything but the kernel; watches last a second, repeats are told at once."""

    def __init__(self, kubeconfig: pathlib.Path, **more: Any) -> None:
        settings = config(kubeconfig=kubeconfig, healthz_bind_address=None, metrics_bind_address=None, **more)
        self.node, self.inbox = MemoryNode(), Inbox()
        self._observability = Observability(settings, lambda _: None)
        self._observability._events._limits = EventLimits(counted_every=0)
        self._observability.listen()
        wanted = kinds(tenants=bool(settings.tenant_label))
        self.source = ApiSource(kubeconfig, "", "node1", pace=Pace(watch=(1, 1)), kinds=wanted)
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

    def elements(self, name: str) -> set[str]:
        """The keys in a set or map of the ruleset."""
        return set(self.node.nft.sets.get(name, ()))


@pytest.fixture
def process(server: RealServer) -> Iterator[WatchingProxy]:
    server.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}})
    server.put(service("web", PORTS, ["10.96.0.10"]))
    server.put(slice_for("web", "10.244.1.10"))
    started = WatchingProxy(server.kubeconfig)
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


def test_every_call_is_allowed(server: RealServer, process: WatchingProxy) -> None:
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


def test_labels_count_while_the_proxy_runs(server: RealServer, process: WatchingProxy) -> None:
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


def test_a_server_that_restarts(server: RealServer, process: WatchingProxy) -> None:
    until(lambda: process.destinations("10.96.0.10"))
    writes = process.node.writes
    server.go_away()
    server.come_back()
    assert process.node.writes == writes
    server.put(slice_for("web", "10.244.1.12"))
    until(lambda: process.destinations("10.96.0.10") == ["10.244.1.12:8080"])


def test_nothing_else_would_be_allowed(server: RealServer, process: WatchingProxy) -> None:
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


# Tenants: two more rights.

LABEL = "ipvsproxy.io/tenant"
RIGHTS = REPO / "deploy/kustomize/tenants/rbac.yaml"
WATCHED = {Call(verb, resource, 200) for verb in ("list", "watch") for resource in ("namespaces", "pods")}
REFUSED_AT_START = {Call("list", resource, 403) for resource in ("namespaces", "pods")}


def in_blue(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"metadata": made["metadata"] | {"namespace": "blue"}}


def put_tenants(server: RealServer) -> None:
    """A tenant with a Service, and a pod on each of two nodes."""
    server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "blue", "labels": {LABEL: "blue"}}})
    server.put(in_blue(service("web", PORTS, ["10.96.0.20"])))
    server.put(in_blue(slice_for("web", "10.244.1.7")))
    for number in (1, 2):
        metadata = {"name": f"on-{number}", "namespace": "blue"}
        spec = {"nodeName": f"node{number}", "containers": [{"name": "x", "image": "x"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        server.put(pod)
        ip = f"10.244.{number}.7"
        server.put_status(pod | {"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})


def grant(server: RealServer) -> None:
    """Apply the manifests to the user that the proxy is here."""
    for item in yaml.safe_load_all(RIGHTS.read_text()):
        if item["kind"] == "ClusterRoleBinding":
            item["subjects"] = [{"kind": "User", "name": PROXY_USER, "apiGroup": "rbac.authorization.k8s.io"}]
        server.put(item)


@pytest.fixture
def of_tenants(server: RealServer) -> Iterator[WatchingProxy]:
    server.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"}})
    server.put(service("web", PORTS, ["10.96.0.10"]))
    server.put(slice_for("web", "10.244.1.10"))
    put_tenants(server)
    started = WatchingProxy(server.kubeconfig, tenant_label=LABEL, cluster_cidrs=("10.244.0.0/16",))
    yield started
    started.stop()


def refused_rights(logs: list[Any]) -> list[str]:
    return sorted(line["right"] for line in list(logs) if line["event"] == messages.RIGHT_REFUSED)


OURS, BLUES = "10.96.0.10 . tcp . 80", "10.96.0.20 . tcp . 80"


def test_tenants_need_the_rights_of_their_manifests_and_no_others(
    server: RealServer, of_tenants: WatchingProxy
) -> None:
    until(lambda: of_tenants.elements("by_audience4") >= {OURS, BLUES})
    # Without the rights no pod reaches any Service of which it is not known for certain that it is shared.
    assert (of_tenants.elements("audiences4"), of_tenants.elements("admitted4")) == (set(), set())
    assert {call for call in server.calls() if call.status == 403} == REFUSED_AT_START
    grant(server)
    until(lambda: of_tenants.elements("audiences4") == {"10.244.1.7"})
    until(lambda: of_tenants.elements("by_audience4") == {BLUES})
    assert len(of_tenants.elements("admitted4")) == 1
    until(lambda: server.calls() >= WATCHED)
    assert {call for call in server.calls() if call.status == 403} == REFUSED_AT_START


def test_a_running_proxy_that_loses_the_rights_goes_on_with_one_line_for_each(
    server: RealServer, of_tenants: WatchingProxy
) -> None:
    grant(server)
    until(lambda: of_tenants.elements("audiences4") == {"10.244.1.7"})
    with capture_logs() as logs:
        server.delete("ClusterRoleBinding", "ipvsproxy-tenants")
        until(lambda: server.calls() >= {Call("watch", name, 403) for name in ("namespaces", "pods")})
        until(lambda: refused_rights(logs) == ["list and watch namespaces", "list and watch pods"])
        server.put(in_blue(slice_for("web", "10.244.1.8")))
        until(lambda: of_tenants.destinations("10.96.0.20") == ["10.244.1.8:8080"])
    assert of_tenants.elements("audiences4") == {"10.244.1.7"}
    assert len(refused_rights(logs)) == 2
