"""A proxy that follows an API server with 1,000 Services: changes arrive, absences change nothing."""

from __future__ import annotations

import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from ipvsproxy.base import messages
from ipvsproxy.kernel.ipvs import Ipvs
from tests.lab import netns
from tests.lab.apiservers import LabApiServer, open_server
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import endpoint, endpoint_slice, node_object, port, service
from tests.lab.probe import ProbeQuestion, probe, spread
from tests.lab.proxy import LabProxy

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

COUNT = 1000
HOST_PORT = 2222
EXTERNAL = "198.51.100.9"
PORTS = (port(80, 8080, "TCP", "http"),)


def cluster_ip(number: int) -> str:
    return f"10.96.{16 + number // 250}.{number % 250 + 1}"


def put(server: LabApiServer, lab: Lab, number: int, *pods: str) -> None:
    endpoints = [endpoint(lab, lab.host(name)) for name in pods]
    server.put(endpoint_slice(f"s{number}", PORTS, endpoints))
    server.put(service(f"s{number}", PORTS, [cluster_ip(number)]))


@pytest.fixture
def server(lab: Lab, tmp_path: pathlib.Path) -> Iterator[LabApiServer]:
    # What these servers do with connections of a proxy that is killed is none of this test's business.
    warnings.simplefilter("ignore", ResourceWarning)
    opened = open_server(lab.nodes[0].netns, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def proxy(lab: Lab, server: LabApiServer, tmp_path: pathlib.Path) -> LabProxy:
    server.put(node_object(lab.nodes[0]))
    for number in range(COUNT):
        put(server, lab, number, "p11", "p21")
    lab.responder.listen(lab.host("p11"), 8080)
    lab.responder.listen(lab.host("p12"), 8080)
    lab.responder.listen(lab.host("p21"), 8080)
    flags = [f"--kubeconfig={server.kubeconfig}", "--hostname-override=node1", "--logging-format=json",
             "--ipvs-min-sync-period=0s"]  # fmt: skip
    argv = [sys.executable, "-m", "ipvsproxy", "run", *flags, *DEFAULT_PROXY_ARGS]
    started = LabProxy(lab.nodes[0].netns, argv, tmp_path / "proxy.log")
    lab.proxies.append(started)
    started.start()
    return started


def answering(lab: Lab, number: int, timeout: float = 2) -> set[str]:
    return set(spread(ProbeQuestion(lab.host("p12").netns, cluster_ip(number), 80), 4, timeout=timeout))


def follows(holds: Callable[[], bool], seconds: float = 120.0) -> float:
    """Wait until a change has arrived; return how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, "the change did not arrive"
        time.sleep(0.05)
    return time.monotonic() - began


def servers_of(lab: Lab) -> int:
    with netns.inside(lab.nodes[0].netns):
        ipvs = Ipvs()
    found = len(ipvs.servers())
    ipvs.close()
    return found


def greedy_for_a_node(lab: Lab, server: LabApiServer, proxy: LabProxy) -> None:
    """No Service takes the address of node2 when no route of node1 names it, and only its Node object tells."""
    node, neighbour = lab.nodes
    lab.responder.listen(neighbour, HOST_PORT)
    server.put(node_object(neighbour))
    server.put(endpoint_slice("greedy", PORTS, [endpoint(lab, lab.host("p11"))]))
    lab.run(node, ["ip", "route", "replace", "10.244.2.0/24", "dev", "eth0"])
    try:
        server.put(service("greedy", PORTS, [cluster_ip(COUNT + 1)], externalIPs=[neighbour.ipv4, EXTERNAL]))
        # A route counts from the next verification on: until then node2 is taken for a gateway as well.
        told = [f"{neighbour.ipv4}: an address of another node"]
        refused = messages.ADDRESSES_REFUSED
        follows(lambda: any(line["addresses"] == told for line in proxy.events(refused)), seconds=90)
        follows(lambda: probe(node.netns, EXTERNAL, 80).name == "p11")
        assert probe(node.netns, neighbour.ipv4, HOST_PORT).name == "node2"
        server.delete("Service", "greedy")
        follows(lambda: probe(node.netns, EXTERNAL, 80, timeout=1).outcome != "answered")
    finally:
        lab.run(node, ["ip", "route", "replace", "10.244.2.0/24", "via", neighbour.ipv4])


@pytest.mark.timeout(1800)
def test_following_an_api_server(lab: Lab, server: LabApiServer, proxy: LabProxy) -> None:
    synced = proxy.wait_for(messages.SYNCED, timeout=300)
    assert synced["services"] >= COUNT
    before = servers_of(lab)
    assert before >= COUNT
    assert answering(lab, 0) == answering(lab, COUNT - 1) == {"p11", "p21"}

    put(server, lab, COUNT, "p21")
    # Asked again soon: a client whose first packet comes too early repeats it after a second only.
    took = [follows(lambda: answering(lab, COUNT, timeout=0.3) == {"p21"})]
    put(server, lab, COUNT, "p11")
    took.append(follows(lambda: answering(lab, COUNT, timeout=0.3) == {"p11"}))
    server.delete("Service", f"s{COUNT}")
    took.append(follows(lambda: servers_of(lab) == before))
    print("created, changed, deleted after", [round(seconds, 2) for seconds in took], "s")

    greedy_for_a_node(lab, server, proxy)
    assert [call for call in server.calls() if call.status >= 300] == []

    # A kube-apiserver that is coming up refuses everybody for a moment, which the proxy must outlast.
    server.go_away()
    proxy.wait_for(messages.WATCH_FAILED)
    assert servers_of(lab) == before
    assert answering(lab, 7) == {"p11", "p21"}

    server.come_back()
    put(server, lab, 7, "p12")
    follows(lambda: answering(lab, 7) == {"p12"}, seconds=90)
    assert servers_of(lab) == before
