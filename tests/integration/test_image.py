"""The image: what it holds, and that the proxy starts in it as the DaemonSet starts it.

No container engine takes part: the files are made by the script that makes the image's, and the root is read-only,
capabilities are dropped and /proc/sys cannot be written, as in a container.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import pytest
import yaml
from container import NET_ADMIN, NOTHING, PRIVILEGED, REPO, ROOT, VOLUME, contained
from lab import Lab
from manifests import Folder, endpoint, endpoint_slice, node_object, port, service
from probe import Question, spread
from test_traffic import eventually

pytestmark = pytest.mark.needs("root", "image_root")

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


def test_no_program_of_others_is_there_to_be_called() -> None:
    folders = ("usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/ipvsproxy/bin")
    there = {path.name for folder in folders for path in (ROOT / folder).iterdir()}
    assert not there & OTHER_PROGRAMS
    assert {"ipvsproxy", "kube-proxy", "modprobe"} <= there


@pytest.mark.parametrize("name", ["ipvsproxy", KUBE_PROXY])
def test_says_what_it_is_and_how_to_use_it(name: str) -> None:
    version, usage = run(name, "--version"), run(name, "--help")
    assert (version.returncode, usage.returncode) == (0, 0)
    assert re.search(r"\bv\d+\.\d+", version.stdout)
    assert "usage" in usage.stdout.lower()


def test_nothing_can_be_written_whoever_tries(tmp_path: pathlib.Path) -> None:
    tries = "for at in /opt/ipvsproxy /tmp /run /var/lib; do touch $at/x && echo $at; done"
    assert run("sh", "-c", tries, capabilities=PRIVILEGED, folder=tmp_path).stdout == ""


def test_the_command_of_kubeadms_daemon_set_works_unchanged(tmp_path: pathlib.Path) -> None:
    shutil.copy(REPO / "tests/unit/config/kubeadm-config.conf", tmp_path / "config.conf")
    command = [KUBE_PROXY, f"--config={VOLUME}/config.conf", "--hostname-override=node1"]
    effective = run(*command, "--write-config-to=/dev/stdout", folder=tmp_path)
    assert effective.returncode == 0, effective.stderr
    assert yaml.safe_load(effective.stdout)["hostnameOverride"] == "node1"
    # Without a capability no kernel lets it go further, so the end is the same everywhere.
    done = run(*command, folder=tmp_path)
    assert done.returncode == 1
    assert "NET_ADMIN" in done.stderr or "IPVS" in done.stderr, done.stderr


def test_without_what_it_needs_it_says_so_in_its_last_line(tmp_path: pathlib.Path) -> None:
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
def test_runs_with_a_read_only_root_and_net_admin_alone(lab: Lab, manifests: Folder) -> None:
    node = lab.nodes[0]
    manifests.write("node", node_object(node))
    manifests.write("service", service("s", PORTS, [CLUSTER_IP]))
    manifests.write("slice", endpoint_slice("s", PORTS, [endpoint(lab, lab.host("p21"))]))
    lab.responder.listen(lab.host("p21"), 8080)
    lab.proxy(node, pathlib.Path(VOLUME), command=contained(["ipvsproxy", "run"], PRIVILEGED, manifests.path))
    assert set(spread(Question(lab.host("p12").netns, CLUSTER_IP, 80), 2)) == {"p21"}
    lab.proxies[-1].stop()
    # What the first one has set may only be read by the second, as after an init container.
    lab.proxy(node, pathlib.Path(VOLUME), command=contained(["ipvsproxy", "run"], NET_ADMIN, manifests.path))
    manifests.write("slice", endpoint_slice("s", PORTS, [endpoint(lab, lab.host("p11"))]))
    lab.responder.listen(lab.host("p11"), 8080)
    eventually(lambda: set(spread(Question(lab.host("p12").netns, CLUSTER_IP, 80), 2)) == {"p11"})


@pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")
def test_image_and_host_read_each_others_sets_whichever_library_is_newer(lab: Lab, manifests: Folder) -> None:
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
