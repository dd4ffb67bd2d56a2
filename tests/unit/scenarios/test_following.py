"""The way from an API server to the kernel in memory, with misfortunes on it.

Whatever the server does, what is programmed stays, and the next true change arrives and costs what it always
costs: a fault is not worth a single write.
"""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from ipvsproxy.base.address import format_ip
from ipvsproxy.base.errors import Fatal
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.exchange.inbox import ALWAYS, Inbox, SourceFailed
from ipvsproxy.kube.client import ClientLimits
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.source import ApiSource
from ipvsproxy.process.assembly import make_loop
from tests.support.apiserver import ApiServer, endpoint_slice, node, service
from tests.support.build import config, key
from tests.support.memory_kernel import MemoryNode

WEB, DOOMED = key("10.96.0.10:80"), key("10.96.0.20:80")
# One endpoint more; one virtual server and its address less.
WRITES = 3
KINDS = ("Service", "EndpointSlice", "Node")
PATIENT, IMPATIENT = ClientLimits(connect=60, read=60, slack=60), ClientLimits(connect=60, read=0.5, slack=0.5)
"""How long a server is waited for; a short time only where it is to stall, for a busy machine stalls, too."""


@pytest.fixture
def server():
    with ApiServer() as server:
        server.put(node())
        server.put(service("web"))
        server.put(endpoint_slice())
        server.put(service("doomed", clusterIP="10.96.0.20"))
        yield server


@contextmanager
def following(server, path, master="", limits=PATIENT):
    """A proxy without a kernel; yields what would be its node."""
    here, inbox = MemoryNode(), Inbox()
    pace = Pace(watch=(1, 1), wait=ExponentialWait(0.01, 0.05))
    source = ApiSource(server.write_kubeconfig(path), master, "node1", limits, pace)
    source.start(inbox)
    loop = make_loop(config(), inbox, here.kernel(), ask=source.ask)

    def run():
        with suppress(Fatal):
            loop.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield here
    finally:
        inbox.put(SourceFailed("the test is over"))
        thread.join()
        source.stop()


def until(holds, seconds=120):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def bound(here):
    return {format_ip(vip.address) for vip in here.links.present}


def is_served(here):
    """Whether all is written that the first lists are worth: addresses are the last."""
    has_endpoint = WEB in here.ipvs.table and len(here.ipvs.destinations(WEB)) == 1
    return has_endpoint and DOOMED in here.ipvs.table and bound(here) == {"10.96.0.10", "10.96.0.20"}


def expire(server):
    """Make the versions that watches have seen too old."""
    server.put(node("node2"))
    server.compact()
    server.hang_up()


def nothing(_):
    pass


def cut_in_an_event(server):
    server.send("Service", b'{"type": "DELETED", "object": {"metadata": {"name": "web"')
    server.hang_up()


def gone_in_the_stream(server):
    expire(server)


def gone_as_a_status(server):
    server.gone_as_status = True
    expire(server)


def too_many_requests(server):
    server.fail(429, headers={"Retry-After": "1"}, times=4)
    server.hang_up()


def errors(server):
    server.fail(500, times=12)
    server.hang_up()


def refused_credentials(server):
    server.fail(401, times=6)
    server.hang_up()


def forbidden(server):
    server.fail(403, times=6)
    server.hang_up()


def watches_that_stall(server):
    server.stall(watch=True, times=3)
    server.hang_up()


def lists_that_stall(server):
    server.stall(watch=False, times=3)
    expire(server)


def bookmarks(server):
    for kind in KINDS:
        server.bookmark(kind)
    server.hang_up()


def garbage_in_the_stream(server):
    for kind in KINDS:
        server.send(kind, b"<html>please log in</html>\n")


def garbage_for_lists(server):
    server.garble(b"{}", watch=False, times=3)
    server.garble(b'{"kind": "Status", "status": "Success"}', watch=False, times=3)
    expire(server)


def lists_cut_short(server):
    empty = b'{"kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": []}'
    server.cut(empty, kind="Service", watch=False, times=2, length=500)
    expire(server)


def restart_with_older_versions(server):
    server.restart(version=5)


def restart_with_newer_versions(server):
    server.restart(version=5000)


def a_malformed_version_of_an_object(server):
    server.put(service("web", ports=[{"port": 0}]))
    server.put(endpoint_slice(addresses=("not an address",), addressType="IPv9"))


FAULTS = [
    nothing, cut_in_an_event, gone_in_the_stream, gone_as_a_status, too_many_requests, errors,
    refused_credentials, forbidden, watches_that_stall, lists_that_stall, bookmarks, garbage_in_the_stream,
    garbage_for_lists, lists_cut_short, restart_with_older_versions, restart_with_newer_versions,
    a_malformed_version_of_an_object,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_cost_nothing_and_the_next_change_arrives(server, tmp_path, fault):
    with following(server, tmp_path / "kubeconfig", limits=IMPATIENT) as here:
        until(lambda: is_served(here))
        server.wait_for_watches(3)
        before = here.writes
        fault(server)
        server.put(endpoint_slice(addresses=("10.244.1.5", "10.244.1.6")))
        server.delete("Service", "doomed")
        until(lambda: DOOMED not in here.ipvs.table and len(here.ipvs.destinations(WEB)) == 2)
        until(lambda: here.writes - before >= WRITES)
    assert here.writes - before == WRITES


@pytest.mark.parametrize("first", ["Service", "EndpointSlice"])
def test_services_and_their_slices_come_in_any_order(server, tmp_path, first):
    late = [service("late", clusterIP="10.96.0.30"), endpoint_slice("late-abc", "late")]
    late.sort(key=lambda item: item["kind"] != first)
    where = key("10.96.0.30:80")
    with following(server, tmp_path / "kubeconfig") as here:
        until(lambda: WEB in here.ipvs.table)
        server.put(late[0])
        until(lambda: first == "EndpointSlice" or where in here.ipvs.table)
        server.put(late[1])
        until(lambda: len(here.ipvs.destinations(where)) == 1)


@pytest.mark.parametrize(
    ("make", "label"),
    [
        (service, "service.kubernetes.io/service-proxy-name"),
        (endpoint_slice, "service.kubernetes.io/headless"),
    ],
)
def test_labels_count_while_the_proxy_runs(server, tmp_path, make, label):
    with following(server, tmp_path / "kubeconfig") as here:
        until(lambda: len(here.ipvs.destinations(WEB)) == 1)
        server.put(make(labels={label: "x"}))
        until(lambda: not here.ipvs.destinations(WEB))
        server.put(make())
        until(lambda: len(here.ipvs.destinations(WEB)) == 1)


def test_what_was_deleted_during_an_absence_is_gone_afterwards(server, tmp_path):
    with following(server, tmp_path / "kubeconfig") as here:
        until(lambda: is_served(here))
        server.wait_for_watches(3)
        server.stop()
        server.delete("Service", "doomed")
        server.compact()
        before = here.writes
        server.start()
        until(lambda: DOOMED not in here.ipvs.table)
        assert WEB in here.ipvs.table
        until(lambda: here.writes == before + 2)
    assert {request.kind for request in server.requests} == set(ALWAYS)


def test_no_service_gets_the_address_of_an_api_server_that_is_known_by_name(server, tmp_path, monkeypatch):
    """The name has two addresses, as that of a cluster with two control planes."""
    real = socket.getaddrinfo

    def resolve(host, port, *rest, **named):
        if host != "api.example":
            return real(host, port, *rest, **named)
        found = "127.0.0.1", "203.0.113.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    server.put(service("greedy", clusterIP="10.96.0.30", externalIPs=["203.0.113.9", "203.0.113.10"]))
    with following(server, tmp_path / "kubeconfig", server.url.replace("127.0.0.1", "api.example")) as here:
        until(lambda: {key("203.0.113.10:80"), key("10.96.0.30:80")} <= here.ipvs.table.keys())
        assert key("203.0.113.9:80") not in here.ipvs.table


def lists_of_nodes(server):
    return [request for request in server.requests if "includeObject" in request.query]


def test_of_the_nodes_that_a_load_balancer_lists_only_this_one_is_served(server, tmp_path):
    """As ServiceLB of k3s does it, also when a node is new."""
    server.put(node("node2", "192.0.2.2"))
    ingress = [{"ip": "192.0.2.2"}, {"ip": "203.0.113.9"}]
    listing = service("listing", clusterIP="10.96.0.30", type="LoadBalancer") | {
        "status": {"loadBalancer": {"ingress": ingress[:1]}}
    }
    server.put(listing)
    with following(server, tmp_path / "kubeconfig") as here:
        until(lambda: bound(here) == {"10.96.0.10", "10.96.0.20", "10.96.0.30"})
        # Nodes are looked at before anything is programmed, and once more, for what came meanwhile.
        until(lambda: len(lists_of_nodes(server)) >= 2)
        server.put(node("node3", "203.0.113.9"))
        server.put(service("greedy", clusterIP="10.96.0.40", externalIPs=["203.0.113.9", "203.0.113.10"]))
        until(lambda: bound(here) >= {"10.96.0.40", "203.0.113.10"})
        asked = len(lists_of_nodes(server))
        assert 3 <= asked <= 4  # one more where lists came one by one at the start
        assert bound(here) == {"10.96.0.10", "10.96.0.20", "10.96.0.30", "10.96.0.40", "203.0.113.10"}
        assert key("203.0.113.9:80") not in here.ipvs.table
        # What was asked about once costs no more questions.
        server.put(service("greedy", clusterIP="10.96.0.40", externalIPs=["203.0.113.10"]))
        server.put(service("web", clusterIP="10.96.0.50"))
        until(lambda: key("10.96.0.50:80") in here.ipvs.table)
        assert len(lists_of_nodes(server)) == asked


def test_services_are_served_where_the_nodes_may_not_be_listed(server, tmp_path):
    server.put(service("outside", clusterIP="10.96.0.30", externalIPs=["203.0.113.9"]))
    server.refuse_tables = True
    with following(server, tmp_path / "kubeconfig") as here:
        until(lambda: key("203.0.113.9:80") in here.ipvs.table)
        server.put(service("later", clusterIP="10.96.0.40", externalIPs=["203.0.113.10"]))
        until(lambda: key("203.0.113.10:80") in here.ipvs.table)
