"""The image: what it holds, and that the proxy starts in it as the DaemonSet starts it.

No container engine takes part: the files are made by the script that makes the image's, and the root is read-only,
capabilities are dropped and /proc/sys cannot be written, as in a container.
"""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import yaml

from tests.lab.container import NET_ADMIN, NOTHING, PRIVILEGED, REPO, ROOT, VOLUME, contained
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, node_object, port, service
from tests.lab.probe import ProbeQuestion, spread
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("root", "image_root")

SBOM = REPO / ".cache/image/sbom.cdx.json"
KUBE_PROXY = "/usr/local/bin/kube-proxy"
PORTS = (port(80, 8080, "TCP", "http"),)
CLUSTER_IP = "10.96.0.10"
OTHER_PROGRAMS = {"iptables", "iptables-nft", "ipset", "nft", "ipvsadm", "conntrack", "pip", "pip3", "gcc", "curl"}
# A kubeconfig whose server is a port where nobody listens.
NOBODY = """
clusters: [{name: a, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: a, user: {token: t}}]
contexts: [{name: a, context: {cluster: a, user: a}}]
current-context: a
"""
LIST_PACKAGES = """
from importlib.metadata import distributions
for found in distributions(path=[path for path in __import__("sys").path if path.startswith("/opt")]):
    print(f"{found.name}=={found.version}")
"""


def run(
    *argv: str, capabilities: str = NOTHING, folder: pathlib.Path | None = None
) -> subprocess.CompletedProcess[str]:
    command = contained(argv, capabilities, folder)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def pins(text: str) -> set[str]:
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {f"{re.sub('[-_.]+', '-', name).lower()}=={version}" for name, version in found}


def test_it_holds_what_is_pinned_and_nothing_else() -> None:
    inside = pins(run("/opt/ipvsproxy/bin/python", "-c", LIST_PACKAGES).stdout)
    ours = {pin for pin in inside if pin.startswith("ipvsproxy==")}
    assert ours
    assert inside - ours == pins((REPO / "deploy/requirements.lock").read_text())


def test_its_bill_of_materials_is_what_it_holds() -> None:
    bill = json.loads(run("cat", "/opt/ipvsproxy/sbom.cdx.json").stdout)
    assert bill == json.loads(SBOM.read_text())
    listed = {
        (part["purl"].partition("/")[0], f"{part['name']}=={part['version']}") for part in bill["components"]
    }
    own = bill["metadata"]["component"]
    python = pins(run("/opt/ipvsproxy/bin/python", "-c", LIST_PACKAGES).stdout)
    assert {name for kind, name in listed if kind == "pkg:pypi"} == python - {f"{own['name']}=={own['version']}"}
    debian = run("dpkg-query", "--show", "--showformat", "${Package}==${Version}\n").stdout.split()
    assert {name for kind, name in listed if kind == "pkg:deb"} == set(debian)
    # Each file that pip took, by its hash, is one of those that the lock names.
    lock = (REPO / "deploy/requirements.lock").read_text()
    hashes = [each["content"] for part in bill["components"] for each in part.get("hashes", ())]
    assert len(hashes) == len(python) - 1
    assert all(f"--hash=sha256:{each}" in lock for each in hashes)


@pytest.fixture(name="pki", scope="module")
def _pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("pki")
    files = folder / "tls.crt", folder / "tls.key"
    names_of = ("-subj", "/CN=a", "-addext", "subjectAltName=IP:127.0.0.1")
    options = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names_of)
    subprocess.run(["openssl", *options, "-keyout", files[1], "-out", files[0]], check=True, capture_output=True)
    certificate, key = (base64.b64encode(name.read_bytes()).decode() for name in files)
    return certificate, key


class Answering(BaseHTTPRequestHandler):
    """Answers with what a server is told: by whom it was asked, and of a proxy, for what."""

    def do_GET(self) -> None:
        host = urlsplit(self.path).netloc
        words = " ".join(filter(None, [self.headers.get("Authorization", "nobody"), host and f"for {host}"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(words)))
        self.end_headers()
        self.wfile.write(words.encode())

    def log_message(self, *_: object) -> None:
        pass


PLUGIN = """#!/bin/sh
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "plugins"}}'
"""
EXEC = {
    "apiVersion": "client.authentication.k8s.io/v1",
    "command": f"{VOLUME}/plugin",
    "interactiveMode": "Never",
}
AUTHENTICATED = {
    "nobody": ({}, "200 nobody"),
    "token": ({"token": "t"}, "200 Bearer t"),
    "file": ({"tokenFile": f"{VOLUME}/token"}, "200 Bearer filed"),
    "login": ({"username": "u", "password": "p"}, "200 Basic dTpw"),
    "exec": ({"exec": EXEC}, "200 Bearer plugins"),
}


def kubeconfig(folder: pathlib.Path, name: str, cluster: dict[str, object], user: dict[str, object]) -> None:
    content = {
        "clusters": [{"name": "a", "cluster": cluster}],
        "users": [{"name": "a", "user": user}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "current-context": "a",
    }
    (folder / f"kubeconfig-{name}.conf").write_text(yaml.safe_dump(content))


@contextlib.contextmanager
def answering(files: tuple[pathlib.Path, pathlib.Path] | None = None) -> Iterator[str]:
    """A server on the loopback, with TLS where there are files for it; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        context.load_verify_locations(files[0])
        context.verify_mode = ssl.CERT_REQUIRED
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def speaking_no_socks() -> Iterator[str]:
    """A server that answers a SOCKS client with another version, which the library that speaks SOCKS says."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(3)
                        connection.sendall(b"\x04\x00")

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_it_holds_all_that_a_kubeconfig_of_any_kind_needs_and_nothing_that_is_never_imported(
    tmp_path: pathlib.Path, pki: tuple[str, str]
) -> None:
    shutil.copy(REPO / "tests/lab/in_image.py", tmp_path)
    (tmp_path / "token").write_text("filed\n")
    (tmp_path / "plugin").write_text(PLUGIN)
    (tmp_path / "plugin").chmod(0o755)
    files = tmp_path / "tls.crt", tmp_path / "tls.key"
    for file, content in zip(files, pki, strict=True):
        file.write_bytes(base64.b64decode(content))
    trusted = {"certificate-authority-data": pki[0]}
    known = {"client-certificate-data": pki[0], "client-key-data": pki[1]}
    with answering() as plain, answering(files) as secure, speaking_no_socks() as no_socks:
        for name, (user, _) in AUTHENTICATED.items():
            kubeconfig(tmp_path, name, {"server": f"http://{plain}"}, user)
        kubeconfig(tmp_path, "certificate", {"server": f"https://{secure}", **trusted}, known)
        kubeconfig(tmp_path, "insecure", {"server": f"https://{secure}", "insecure-skip-tls-verify": True}, known)
        kubeconfig(tmp_path, "proxy", {"server": "http://api.test", "proxy-url": f"http://{plain}"}, {})
        kubeconfig(tmp_path, "socks", {"server": "http://api.test", "proxy-url": f"socks5://{no_socks}"}, {})
        done = run("/opt/ipvsproxy/bin/python", f"{VOLUME}/in_image.py", VOLUME, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    came = json.loads(done.stdout.splitlines()[-1])
    assert came["idle"] == []
    assert "SOCKS" in came["answers"].pop("socks")
    assert came["answers"] == {
        **{name: answer for name, (_, answer) in AUTHENTICATED.items()},
        "certificate": "200 nobody",
        "insecure": "200 nobody",
        "proxy": "200 nobody for api.test",
    }


def test_no_program_of_others_is_there_to_be_called() -> None:
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/ipvsproxy/bin")
    there = {path.name for folder in folders for path in (ROOT / folder).iterdir()}
    assert not there & OTHER_PROGRAMS
    assert {"ipvsproxy", "kube-proxy", "modprobe"} <= there


@pytest.mark.parametrize("name", ["ipvsproxy", KUBE_PROXY])
def test_reports_what_it_is_and_how_to_use_it(name: str) -> None:
    version, usage = run(name, "--version"), run(name, "--help")
    assert (version.returncode, usage.returncode) == (0, 0)
    assert re.search(r"\bv\d+\.\d+", version.stdout)
    assert "usage" in usage.stdout.lower()


def test_nothing_can_be_written_by_any_user(tmp_path: pathlib.Path) -> None:
    tries = "for at in /opt/ipvsproxy /tmp /run /var/lib; do touch $at/x && echo $at; done"
    assert run("sh", "-c", tries, capabilities=PRIVILEGED, folder=tmp_path).stdout == ""


def test_the_command_of_kubeadms_daemon_set_works_unchanged(tmp_path: pathlib.Path) -> None:
    shutil.copy(REPO / "tests/unit/config/kubeadm-config.conf", tmp_path / "config.conf")
    command = [KUBE_PROXY, f"--config={VOLUME}/config.conf", "--hostname-override=node1"]
    effective = run(*command, "--write-config-to=/dev/stdout", folder=tmp_path)
    assert effective.returncode == 0, effective.stderr
    assert yaml.safe_load(effective.stdout)["hostnameOverride"] == "node1"
    # It goes on to the kubeconfig that the ConfigMap names: sources are tried before anything is changed.
    done = run(*command, folder=tmp_path)
    assert done.returncode == 1
    assert f"kubeconfig {VOLUME}/kubeconfig.conf: No such file or directory" in done.stderr


def test_without_what_it_needs_it_reports_it_in_its_last_line(tmp_path: pathlib.Path) -> None:
    done = run("ipvsproxy", "run", f"--manifests={VOLUME}", folder=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    # Which of the two is missing depends on the kernel.
    assert "NET_ADMIN" in last or "IPVS" in last
    assert "Traceback" not in done.stderr


def test_the_programs_of_the_chart_find_what_they_need_in_it(tmp_path: pathlib.Path) -> None:
    for name in ("cleaned.py", "answers.py"):
        shutil.copy(REPO / "deploy/helm/ipvsproxy/files" / name, tmp_path)
    (tmp_path / "kubeconfig.conf").write_text(NOBODY)
    python = "/opt/ipvsproxy/bin/python"
    waiting = run(python, f"{VOLUME}/cleaned.py", f"{VOLUME}/kubeconfig.conf", "kube-system", "0", folder=tmp_path)
    assert waiting.returncode == 1
    assert "The API server did not answer" in waiting.stdout, waiting.stderr
    # All it lacks here is what the kubelet puts into the environment of every pod.
    assert "KUBERNETES_SERVICE_HOST" in run(python, f"{VOLUME}/answers.py", "a", "b", "1", folder=tmp_path).stderr
    assert run("timeout", "0.1", "sleep", "infinity").returncode == 124


@pytest.mark.needs("ip_vs", "nf_tables")
def test_runs_with_a_read_only_root_and_net_admin_alone(lab: Lab, manifests: ManifestFolder) -> None:
    node = lab.nodes[0]
    manifests.write("node", node_object(node))
    manifests.write("service", service("s", PORTS, [CLUSTER_IP]))
    manifests.write("slice", endpoint_slice("s", PORTS, [endpoint(lab, lab.host("p21"))]))
    lab.responder.listen(lab.host("p21"), 8080)
    lab.proxy(node, pathlib.Path(VOLUME), command=contained(["ipvsproxy", "run"], PRIVILEGED, manifests.path))
    assert set(spread(ProbeQuestion(lab.host("p12").netns, CLUSTER_IP, 80), 2)) == {"p21"}
    lab.proxies[-1].stop()
    # What the first one has set may only be read by the second, as after an init container.
    lab.proxy(node, pathlib.Path(VOLUME), command=contained(["ipvsproxy", "run"], NET_ADMIN, manifests.path))
    manifests.write("slice", endpoint_slice("s", PORTS, [endpoint(lab, lab.host("p11"))]))
    lab.responder.listen(lab.host("p11"), 8080)
    eventually(lambda: set(spread(ProbeQuestion(lab.host("p12").netns, CLUSTER_IP, 80), 2)) == {"p11"})


@pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")
def test_image_and_host_read_each_others_sets_whichever_library_is_newer(
    lab: Lab, manifests: ManifestFolder
) -> None:
    """The host is this machine; one firewall was made by its own nft, one by the image's library."""
    node = lab.nodes[0]
    manifests.write("node", node_object(node))
    manifests.write("service", service("s", PORTS, [CLUSTER_IP]))
    manifests.write("slice", endpoint_slice("s", PORTS, [endpoint(lab, lab.host("p21"))]))
    firewall = (
        "table inet NAME { set a { type ipv4_addr; flags interval; }; map m { type inet_service : verdict; }; }"
    )
    lab.run(node, ["nft", firewall.replace("NAME", "by-host")])
    command = contained(["ipvsproxy", "run"], PRIVILEGED, manifests.path)
    lab.proxy(node, pathlib.Path(VOLUME), command=command)
    assert "table inet ipvsproxy" in lab.run(node, ["nft", "list", "ruleset"])
    lab.proxies[-1].stop()
    make = "import nftables, sys; sys.exit(nftables.Nftables().cmd(sys.argv[1])[0])"
    lab.run(node, contained(["python3", "-c", make, firewall.replace("NAME", "by_image")], NET_ADMIN, None))
    lab.proxy(node, pathlib.Path(VOLUME), command=command)
