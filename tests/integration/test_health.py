"""What load balancers, probes and monitoring get from a proxy on a real kernel: health, metrics, events."""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.apiservers import OwnServer
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, node_object, port, service
from tests.lab.probe import probe
from tests.lab.proxy import LabProxy

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS = (port(80, 8080, "TCP", "http"),)
HEALTHZ, METRICS, CHECK = 10256, 10249, 31999
BALANCER = "203.0.113.77"
NAMES = (
    "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_network_programming_duration_seconds_bucket",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "kubeproxy_proxy_healthz_total",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket",
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "ipvsproxy_build_info",
)


def ask(asker: LabHost, address: str, number: int, path: str = "/") -> tuple[int, str, dict[str, str]]:
    """Ask over HTTP from a host's namespace; status 0 means that nobody listens."""
    connection = http.client.HTTPConnection(address, number, timeout=20)
    with contextlib.closing(connection):
        try:
            with netns.inside(asker.netns):
                connection.connect()
        except ConnectionRefusedError:
            return 0, "", {}
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.headers)


def follows(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the change did not arrive"
        time.sleep(0.1)


def balanced(lab: Lab, *pods: str) -> list[dict[str, Any]]:
    """A Service with externalTrafficPolicy Local, with IPv4 endpoints only."""
    made = service("front", PORTS, ["10.96.7.1", "fd00:10:96::7:1"], type_="LoadBalancer", ingress=[BALANCER],
        externalTrafficPolicy="Local", healthCheckNodePort=CHECK)  # fmt: skip
    return [made, endpoint_slice("front", PORTS, [endpoint(lab, lab.host(name)) for name in pods])]


@pytest.mark.parametrize("data_path", ["ipvs", "auto"])
def test_load_balancers_and_monitoring(lab: Lab, manifests: ManifestFolder, data_path: str) -> None:
    node, client = lab.nodes[0], lab.client
    manifests.write("nodes", node_object(node))
    manifests.write("front", *balanced(lab, "p11", "p12", "p21"))
    lab.proxy(node, manifests.path, [*DEFAULT_PROXY_ARGS, f"--data-path={data_path}"])

    def check(address: str = node.ipv4) -> tuple[int, str, dict[str, str]]:
        return ask(client, address, CHECK)

    # The listeners open right after the sync that the lab has waited for.
    follows(lambda: check()[0] == 200)
    status, body, headers = check()
    service_told = {"namespace": "default", "name": "front"}
    assert json.loads(body) == {"service": service_told, "localEndpoints": 2, "serviceProxyHealthy": True}
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert check(BALANCER)[0] == 200
    assert check(node.ipv6)[0] == 503

    for address in (node.ipv4, node.ipv6):
        status, body, _ = ask(client, address, HEALTHZ, "/healthz")
        assert (status, json.loads(body)["nodeEligible"]) == (200, True)
        assert json.loads(body)["status"].keys() == {"IPv4", "IPv6"}
    assert ask(client, node.ipv4, METRICS, "/metrics")[0] == 0
    metrics = ask(node, "127.0.0.1", METRICS, "/metrics")[1]
    assert [name for name in NAMES if f"\n{name}" not in metrics] == []
    assert ask(node, "127.0.0.1", METRICS, "/proxyMode")[:2] == (200, "ipvs")
    shown = json.loads(ask(node, "127.0.0.1", METRICS, "/configz")[1])["kubeproxy.config.k8s.io"]
    assert shown["kind"] == "KubeProxyConfiguration"

    manifests.write("front", *balanced(lab, "p21"))
    follows(lambda: check()[0] == 503)
    metrics = ask(node, "127.0.0.1", METRICS, "/metrics")[1]
    lacking = 'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1.0'
    assert lacking in metrics
    manifests.remove("front")
    follows(lambda: check()[0] == 0)

    doomed = node_object(node)
    doomed["spec"]["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
    manifests.write("nodes", doomed)
    follows(lambda: ask(client, node.ipv4, HEALTHZ, "/healthz")[0] == 503)
    assert ask(client, node.ipv4, HEALTHZ, "/livez")[0] == 200


@pytest.fixture
def server(lab: Lab, tmp_path: pathlib.Path) -> Iterator[OwnServer]:
    warnings.simplefilter("ignore", ResourceWarning)
    opened = OwnServer(lab.nodes[0].netns, tmp_path)
    yield opened
    opened.close()


def test_without_an_api_server_and_with_busy_ports(lab: Lab, server: OwnServer, tmp_path: pathlib.Path) -> None:
    """Health answers before the API server does; ports that others hold are events and cost nothing else."""
    node = lab.nodes[0]
    for item in (node_object(node), *balanced(lab, "p11")):
        server.put(item)
    server.go_away()
    flags = [f"--kubeconfig={server.kubeconfig}", "--hostname-override=node1", "--logging-format=json"]
    argv = [sys.executable, "-m", "ipvsproxy", "run", *flags, *DEFAULT_PROXY_ARGS]
    proxy = LabProxy(node.netns, argv, tmp_path / "proxy.log")
    lab.proxies.append(proxy)
    others = [netns.open_socket(node.netns, "0.0.0.0", "tcp"), netns.open_socket(node.netns, "127.0.0.1", "tcp")]
    for held, number in zip(others, (CHECK, METRICS), strict=True):
        held.bind(("0.0.0.0" if number == CHECK else "127.0.0.1", number))
        held.listen()
    proxy.start()
    proxy.wait_for(messages.WATCH_FAILED)
    assert ask(lab.client, node.ipv4, HEALTHZ, "/livez")[0] == 200
    assert ask(lab.client, node.ipv4, HEALTHZ, "/healthz")[0] == 503

    server.come_back()
    proxy.wait_for(messages.SYNCED)
    follows(lambda: ask(lab.client, node.ipv4, HEALTHZ, "/healthz")[0] == 200)
    written = server._server.written
    follows(lambda: {e["reason"] for e in written.values()} >= {"Starting", "FailedToStartServiceHealthcheck"})
    (refused,) = [e for e in written.values() if e["reason"] == "FailedToStartServiceHealthcheck"]
    assert refused["regarding"]["uid"] == "uid-front"

    for held in others:
        held.close()
    follows(lambda: ask(lab.client, node.ipv4, CHECK)[0] == 200)
    follows(lambda: ask(node, "127.0.0.1", METRICS, "/proxyMode")[0] == 200)
    metrics = ask(node, "127.0.0.1", METRICS, "/metrics")[1]
    assert 'rest_client_requests_total{code="200"' in metrics
    assert 'rest_client_requests_total{code="<error>"' in metrics
    assert 'ipvsproxy_events_total{result="sent"}' in metrics


def test_hard_failure(lab: Lab, manifests: ManifestFolder) -> None:
    """With bindAddressHardFail a busy port ends the process (the event: tests/unit/process/test_process.py)."""
    node = lab.nodes[0]
    with contextlib.closing(netns.open_socket(node.netns, "0.0.0.0", "tcp")) as held:
        held.bind(("0.0.0.0", HEALTHZ))
        held.listen()
        proxy = lab.proxy(node, manifests.path, ["--bind-address-hard-fail"], wait=False)
        assert proxy.process is not None
        assert proxy.process.wait(120) == 1
    assert f"cannot listen: healthz: 0.0.0.0:{HEALTHZ}: Address already in use" in proxy.text()


def test_no_service_takes_ports_of_the_proxy_nor_of_health_checks(lab: Lab, manifests: ManifestFolder) -> None:
    """A load balancer's status names this node, and the Service asks for ports on which the proxy listens."""
    node, client = lab.nodes[0], lab.client
    ports = [port(number, 8080, name=f"p{number}") for number in (81, HEALTHZ, CHECK)]
    greedy = service("greedy", ports, ["10.96.7.9"], type_="LoadBalancer", ingress=[node.ipv4])
    lab.responder.listen(lab.host("p11"), 8080)
    manifests.write("nodes", node_object(node))
    manifests.write("greedy", greedy, endpoint_slice("greedy", ports, [endpoint(lab, lab.host("p11"))]))
    lab.proxy(node, manifests.path)
    follows(lambda: probe(client.netns, node.ipv4, 81).name == "p11")
    for asking in (client, node):
        assert ask(asking, node.ipv4, HEALTHZ, "/livez")[0] == 200
    # The port of a health check is free until somebody needs it.
    assert probe(client.netns, node.ipv4, CHECK).name == "p11"
    manifests.write("front", *balanced(lab, "p11"))

    def is_answered_by_the_proxy(asking: LabHost) -> bool:
        try:
            status, body, _ = ask(asking, node.ipv4, CHECK)
        except http.client.HTTPException:  # the pod does not speak HTTP
            return False
        return status == 200 and bool(json.loads(body)["service"]["name"] == "front")

    for asking in (client, node):
        follows(partial(is_answered_by_the_proxy, asking))
    assert probe(client.netns, node.ipv4, 81).name == "p11"
