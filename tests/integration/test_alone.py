"""Two proxies on one node: the second waits ready and takes over at once; cleanup leaves a proxy at work alone."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, spread
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS = (port(80, 8080),)
CLUSTER_IP = "10.96.5.1"
CLEANUP = (sys.executable, "-m", "ipvsproxy", "cleanup")
HOLDER = """
import socket, sys
if "follows rules" in sys.argv:
    rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    rules.bind((0, 1 << 6))
name = socket.socket(socket.AF_UNIX)
name.bind("\\0ipvsproxy/lock")
name.listen()
print("bound", flush=True)
kept = []
while True:
    kept.append(name.accept()[0])
    kept[-1].send(b"ipvsproxy v0.1.0, started 2026-01-01T00:00:00Z")
"""
WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_PROXY = messages.LOCK_HELD_BY_STRANGER
SECOND = (*DEFAULT_PROXY_ARGS, "--healthz-bind-address=127.0.0.1:11256", "--metrics-bind-address=")


def write(lab: Lab, manifests: ManifestFolder, *pods: str) -> None:
    endpoints = [endpoint(lab, lab.host(pod)) for pod in pods]
    manifests.write("web", service("web", PORTS, [CLUSTER_IP]), endpoint_slice("web", PORTS, endpoints))


def healthz(where: str) -> tuple[int, dict[str, object]]:
    """Ask the second proxy."""
    with netns.inside(where), urllib.request.urlopen("http://127.0.0.1:11256/healthz") as answer:
        return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def holder(where: str, *argv: str, prefix: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Have a process of root's with the name of the lock, which says what version 0.1 says."""
    with netns.inside(where):
        process = subprocess.Popen([*prefix, sys.executable, "-c", HOLDER, *argv], stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"bound\n"
            yield process
        finally:
            process.kill()


def test_a_process_without_capabilities_that_has_the_name_keeps_no_process_from_work(
    lab: Lab, manifests: ManifestFolder
) -> None:
    node = lab.nodes[0]
    lab.responder.listen(lab.pods[0], 8080)
    manifests.write_nodes(lab)
    write(lab, manifests, "p11")
    with holder(node.netns, prefix=WITHOUT_CAPABILITIES):
        proxy = lab.proxy(node, manifests.path)
        eventually(lambda: set(spread(ProbeQuestion(lab.client.netns, CLUSTER_IP, 80), 4)) == {"p11"})
    (said,) = proxy.events(NO_PROXY)
    assert said["level"] == "error"
    assert "user 0" not in str(said["holder"])
    assert "ipvsproxy v0.1.0" in str(said["holder"])
    assert not proxy.events(messages.STANDBY)


def test_a_holder_of_version_0_1_that_works_is_waited_for(lab: Lab, manifests: ManifestFolder) -> None:
    node = lab.nodes[0]
    manifests.write_nodes(lab)
    with holder(node.netns, "follows rules") as older:
        proxy = lab.proxy(node, manifests.path, wait=False)
        proxy.wait_for(messages.STANDBY)
        assert not proxy.events(messages.SYNCED)
        older.kill()
        proxy.wait_for(messages.SYNCED)
    assert not proxy.events(NO_PROXY)


def test_the_second_waits_ready_and_takes_over_at_once(lab: Lab, manifests: ManifestFolder) -> None:
    node = lab.nodes[0]
    question = ProbeQuestion(lab.client.netns, CLUSTER_IP, 80)
    for pod in lab.pods[:2]:
        lab.responder.listen(pod, 8080)
    manifests.write_nodes(lab)
    write(lab, manifests, "p11")
    first = lab.proxy(node, manifests.path)
    second = lab.proxy(node, manifests.path, SECOND, wait=False)

    said = second.wait_for(messages.STANDBY)
    assert f"process {first.pid}, ipvsproxy v" in str(said["holder"])
    status, body = healthz(node.netns)
    assert (status, body["waitingFor"]) == (200, said["holder"])

    # Both follow the objects, one of them writes.
    write(lab, manifests, "p12")
    eventually(lambda: set(spread(question, 4)) == {"p12"})
    assert not second.events(messages.SYNCED)
    with netns.inside(node.netns):
        cleanup = subprocess.run(CLEANUP, capture_output=True, text=True, check=False)
    assert cleanup.returncode == 1
    assert f"an ipvsproxy is at work on this node (process {first.pid}" in cleanup.stderr
    assert set(spread(question, 4)) == {"p12"}

    first.kill()
    write(lab, manifests, "p11")
    second.wait_for(messages.SYNCED)
    eventually(lambda: set(spread(question, 4)) == {"p11"})
    assert "waitingFor" not in healthz(node.netns)[1]
