"""Two proxies on one node: the second waits ready and takes over at once; cleanup leaves a proxy at work alone."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import netns
import pytest
from lab import DEFAULT_PROXY_ARGS, Lab
from manifests import Folder, endpoint, endpoint_slice, port, service
from probe import Question, spread
from test_traffic import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS = (port(80, 8080),)
CLUSTER_IP = "10.96.5.1"
CLEANUP = (sys.executable, "-m", "ipvsproxy", "cleanup")
SECOND = (*DEFAULT_PROXY_ARGS, "--healthz-bind-address=127.0.0.1:11256", "--metrics-bind-address=")


def write(lab: Lab, manifests: Folder, *pods: str) -> None:
    endpoints = [endpoint(lab, lab.host(pod)) for pod in pods]
    manifests.write("web", service("web", PORTS, [CLUSTER_IP]), endpoint_slice("web", PORTS, endpoints))


def healthz(where: str) -> tuple[int, dict[str, object]]:
    """Ask the second proxy."""
    with netns.inside(where), urllib.request.urlopen("http://127.0.0.1:11256/healthz") as answer:
        return answer.status, json.loads(answer.read())


def test_the_second_waits_ready_and_takes_over_at_once(lab: Lab, manifests: Folder) -> None:
    node = lab.nodes[0]
    question = Question(lab.client.netns, CLUSTER_IP, 80)
    for pod in lab.pods[:2]:
        lab.responder.listen(pod, 8080)
    manifests.write_nodes(lab)
    write(lab, manifests, "p11")
    first = lab.proxy(node, manifests.path)
    second = lab.proxy(node, manifests.path, SECOND, wait=False)

    said = second.wait_for("another ipvsproxy has this node, waiting for its end")
    assert f"process {first.pid}, ipvsproxy v" in str(said["holder"])
    status, body = healthz(node.netns)
    assert (status, body["waitingFor"]) == (200, said["holder"])

    # Both follow the objects, one of them writes.
    write(lab, manifests, "p12")
    eventually(lambda: set(spread(question, 4)) == {"p12"})
    assert not second.events("synced")
    with netns.inside(node.netns):
        cleanup = subprocess.run(CLEANUP, capture_output=True, text=True, check=False)
    assert cleanup.returncode == 1
    assert f"an ipvsproxy is at work on this node (process {first.pid}" in cleanup.stderr
    assert set(spread(question, 4)) == {"p12"}

    first.kill()
    write(lab, manifests, "p11")
    second.wait_for("synced")
    eventually(lambda: set(spread(question, 4)) == {"p11"})
    assert "waitingFor" not in healthz(node.netns)[1]
