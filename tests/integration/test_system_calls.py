"""The proxy needs no system call that the default seccomp profiles of container runtimes refuse to CAP_NET_ADMIN.

Everything but the calls of `system_calls.ALLOWED` is refused here. That each of them is allowed to a container
with CAP_NET_ADMIN alone was looked up in containerd's default profile.
"""

from __future__ import annotations

import contextlib
import http.client
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import probe
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually
from tests.lab.wipe import flush_ipvs
from tests.support.apiserver import ApiServer, endpoint_slice, node, service
from tests.support.repository import REPO

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "seccomp", "tool:nft")

CONFINED = (
    sys.executable,
    str(REPO / "tests/lab/system_calls.py"),
    sys.executable,
    "-m",
    "ipvsproxy",
)
VIP = "10.96.0.10"
CERTIFICATE = (
    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3", "-subj", "/CN=127.0.0.1",
    "-addext", "subjectAltName=IP:127.0.0.1",
)  # fmt: skip
ANSWERING = {10249: ("/metrics", "/configz", "/frontends", "/proxyMode"), 10256: ("/healthz", "/livez")}


class ServedObjects:
    """The same objects for both sources."""

    def serve(self, address: str) -> None:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError


class InFolder(ServedObjects):
    def __init__(self, path: pathlib.Path) -> None:
        self._folder = ManifestFolder(path)
        self._folder.write("node", node())
        self._folder.write("service", service(clusterIPs=[VIP]))

    def serve(self, address: str) -> None:
        self._folder.write("slice", endpoint_slice(addresses=(address,)))

    def arguments(self) -> list[str]:
        return [f"--manifests={self._folder.path}"]


class AtServer(ServedObjects):
    def __init__(self, server: ApiServer, kubeconfig: pathlib.Path) -> None:
        self._server, self._kubeconfig = server, kubeconfig
        server.put(node())
        server.put(service())

    def serve(self, address: str) -> None:
        self._server.put(endpoint_slice(addresses=(address,)))

    def arguments(self) -> list[str]:
        return [f"--kubeconfig={self._kubeconfig}"]


@pytest.fixture(params=["manifests", "API server"])
def objects(request: pytest.FixtureRequest, lab: Lab, tmp_path: pathlib.Path) -> Iterator[ServedObjects]:
    if request.param == "manifests":
        yield InFolder(tmp_path)
        return
    tls, cluster = None, {}
    if openssl := shutil.which("openssl"):
        tls = tmp_path / "tls.crt", tmp_path / "tls.key"
        subprocess.run([openssl, *CERTIFICATE, "-keyout", tls[1], "-out", tls[0]], check=True, capture_output=True)
        cluster = {"certificate-authority": str(tls[0])}
    with contextlib.ExitStack() as stack:
        with netns.inside(lab.nodes[0].netns):
            server = stack.enter_context(ApiServer(tls=tls))
        yield AtServer(server, server.write_kubeconfig(tmp_path / "kubeconfig", cluster))


def ask(where: LabNode, port: int, path: str) -> int:
    with netns.inside(where.netns):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        connection.close()
    return answer.status


def test_no_other_system_call_is_needed(lab: Lab, objects: ServedObjects, tmp_path: pathlib.Path) -> None:
    here = lab.nodes[0]
    first, second = here.pods
    for pod in here.pods:
        lab.responder.listen(pod, 8080)
    objects.serve(first.ipv4)
    fixed = [f"--hostname-override={here.name}", "--logging-format=json", "--ipvs-min-sync-period=0s"]
    argv = [*CONFINED, "run", *fixed, "--ipvs-sync-period=2s", "--service-metrics=all", *DEFAULT_PROXY_ARGS]
    proxy = LabProxy(here.netns, [*argv, *objects.arguments()], tmp_path / "log")
    lab.proxies.append(proxy)
    proxy.start()
    proxy.wait_for(messages.SYNCED)
    assert "Seccomp:\t2\n" in pathlib.Path(f"/proc/{proxy.pid}/status").read_text()
    eventually(lambda: probe(here.netns, VIP, 80).name == first.name)
    objects.serve(second.ipv4)
    eventually(lambda: probe(here.netns, VIP, 80).name == second.name)
    with netns.inside(here.netns):
        flush_ipvs()
    lab.run(here, ["nft", "flush", "ruleset"])
    lab.run(here, ["ip", "link", "delete", "kube-ipvs0"])
    eventually(lambda: probe(here.netns, VIP, 80).name == second.name)
    assert {ask(here, port, path) for port, paths in ANSWERING.items() for path in paths} == {200}
    assert proxy.stop() == 128 + signal.SIGTERM
    with netns.inside(here.netns):
        done = subprocess.run([*CONFINED, "cleanup"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "kube-ipvs0" not in lab.run(here, ["ip", "link"])
    assert "ipvsproxy" not in lab.run(here, ["nft", "list", "tables"])
