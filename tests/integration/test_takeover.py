"""From a kube-proxy of any mode to ipvsproxy, with open connections, and back to a clean node."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from ipvsproxy import cli
from ipvsproxy.base import messages
from ipvsproxy.kernel.scripts import ruleset
from ipvsproxy.kernel.tables import TABLE
from tests.lab import netns
from tests.lab.kube_proxy_state import LEAVE, TOOLS, Served, finish_ipvs_mode
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.manifests import ManifestFolder, port, service
from tests.lab.probe import Conversation, ProbeQuestion
from tests.lab.proxy import LabProxy
from tests.lab.takeover import (
    ARGUMENTS,
    CLEANUP,
    EXCLUDED,
    ask,
    asking,
    leftovers,
    listings,
    questions,
    rules,
)
from tests.lab.waiting import eventually
from tests.support.deploy_tools import render

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", *TOOLS)

# Kernel settings stay (docs/compatibility.md); all others must be as they were.
SETTINGS = ("net/ipv4/vs", "net/ipv4/conf/all", "net/ipv4/conf/default", "net/ipv6/conf/all", "net/netfilter")
STAY = {"conntrack", "expire_nodest_conn", "expire_quiescent_template"}
STAY |= {f"nf_conntrack_tcp_timeout_{name}" for name in ("close_wait", "established")}
COUNTERS = {"nf_conntrack_count", "nf_conntrack_max"}


def foreign(lab: Lab, node: LabNode) -> list[str]:
    """What belongs to others: rules, sets, servers."""
    servers = lab.run(node, ["ipvsadm", "-Sn"]).splitlines()
    sets = lab.run(node, ["ipset", "list", "-n"]).splitlines()
    return rules(lab, node) + sets + [line for line in servers if "77" in line or "10.98." in line]


def settings(node: LabNode) -> dict[str, str]:
    with netns.inside(node.netns):
        files = [path for folder in SETTINGS for path in pathlib.Path("/proc/sys", folder).iterdir()]
        return {str(path): _read(path) for path in files if path.is_file() and path.stat().st_mode & 0o200}


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # stable_secret, as long as there is none


def taken_over(lab: Lab, node: LabNode, manifests: ManifestFolder) -> LabProxy:
    proxy = lab.proxy(node, manifests.path, ARGUMENTS)
    eventually(lambda: not leftovers(lab, node))
    return proxy


@pytest.mark.parametrize("mode", LEAVE)
def test_open_connections_go_on_and_leftovers_go(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], mode: str
) -> None:
    before = foreign(lab, node)
    LEAVE[mode](lab, node, served)
    if mode == "nftables":
        before = [line.replace(":FORWARD DROP", ":FORWARD ACCEPT") for line in before]
    assert leftovers(lab, node)
    asked = questions(lab, node, served)
    assert ask(asked) == ["answered"]
    talks = [Conversation(question, timeout=20) for question in asked]
    served_by = [talk.ask().name for talk in talks]
    assert set(served_by) == {"p11", "p21"}

    with asking(ProbeQuestion(lab.client.netns, served[0].cluster_ip, 80)) as results:
        proxy = taken_over(lab, node, manifests)
    if mode == "ipvs":
        assert proxy.wait_for(messages.SYNCED)["changes"] == 0
    assert {result.outcome for result in results} == {"answered"}
    assert [talk.ask().name for talk in talks] == served_by
    assert ask(asked) == ["answered"]
    assert foreign(lab, node) == before
    for talk in talks:
        talk.socket.close()


# What a kube-proxy says of its mode on its metrics port; it goes on until it is killed.
ANSWERS_MODE = """
import http.server
class Mode(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"iptables")
http.server.HTTPServer(("127.0.0.1", 10249), Mode).serve_forever()
"""


def test_another_mode_in_the_settings_is_replaced_only_where_no_kube_proxy_runs(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...]
) -> None:
    """As after a change of the image where kubeadm has written `mode: iptables`."""
    LEAVE["iptables"](lab, node, served)
    before, asked = listings(lab, node), questions(lab, node, served)
    with netns.inside(node.netns):
        running = subprocess.Popen([sys.executable, "-c", ANSWERS_MODE])
    try:
        eventually(lambda: "10249" in lab.run(node, ["ss", "-ltn"]))
        proxy = lab.proxy(node, manifests.path, [*ARGUMENTS, "--proxy-mode=iptables"], wait=False)
        eventually(lambda: not proxy.is_running())
    finally:
        running.kill()
        running.wait()
    assert proxy.process is not None
    assert proxy.process.returncode == 1
    assert "A kube-proxy is running on this node (127.0.0.1:10249 answers in mode iptables)" in proxy.text()
    assert listings(lab, node) == before
    assert ask(asked) == ["answered"]

    proxy.start()
    said = proxy.wait_for(messages.OTHER_MODE)
    assert "IPVSPROXY_REPLACE_PROXY_MODE=true" in str(said["reason"])
    eventually(lambda: not leftovers(lab, node))
    assert ask(asked) == ["answered"]


@pytest.mark.parametrize("mode", LEAVE)
def test_beside_a_kube_proxy_commands_report_what_a_run_removes_and_what_they_do_not_follow(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], mode: str
) -> None:
    LEAVE[mode](lab, node, served)
    settings = [f"--manifests={manifests.path}", "--hostname-override=node1", *DEFAULT_PROXY_ARGS]
    removed = {(change["object"], change["name"]) for change in called(node, "diff", *settings)["changes"]
               if change["action"] == "remove"}  # fmt: skip
    expected = {
        "ipvs": {("chains", "ip nat"), ("rules", "ip6 filter"), ("ipset", "KUBE-CLUSTER-IP")},
        "iptables": {("chains", "ip nat"), ("rules", "ip6 nat"), ("chains", "ip mangle")},
        "nftables": {("table", "ip kube-proxy"), ("table", "ip6 kube-proxy")},
    }
    assert removed >= expected[mode]
    said = called(node, "explain", "192.0.2.100", f"{served[0].cluster_ip}:80")
    assert said["notFollowed"]
    findings = called(node, "doctor", *settings)["findings"]
    (found,) = (finding for finding in findings if finding["check"] == "installation")
    assert "problem" not in {
        f["verdict"] for f in findings if f["check"] in ("proxy", "drift", "ruleset", "sysctls")
    }
    assert any("kube-proxy" in line for line in found["evidence"])


def called(node: LabNode, *words: str) -> dict[str, Any]:
    """Return the document of a command."""
    out = io.StringIO()
    with netns.inside(node.netns), contextlib.redirect_stdout(out):
        cli.main([*words, "-o", "json"])
    document: dict[str, Any] = json.loads(out.getvalue())
    return document


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_until_a_vip_is_bound_the_old_rules_serve_it(
    lab: Lab, node: LabNode, served: tuple[Served, ...], mode: str
) -> None:
    LEAVE[mode](lab, node, served)
    elements = [f"add element {TABLE} vips4 {{ {one.cluster_ip} }}" for one in served if one.family == 4]
    elements += [f"add element {TABLE} vips6 {{ {one.cluster_ip} }}" for one in served if one.family == 6]
    lab.run(node, ["nft", "-f", "-"], "\n".join([ruleset(), *elements]))
    assert ask([ProbeQuestion(lab.client.netns, one.cluster_ip, 80) for one in served]) == ["answered"]


def test_a_kube_proxy_that_goes_on_is_reported_and_its_changes_are_not_reverted_for_ever(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...]
) -> None:
    proxy = taken_over(lab, node, manifests)
    LEAVE["nftables"](lab, node, served)
    said = proxy.wait_for(messages.KUBE_PROXY_RUNS)
    # It writes one table after the other, and may be seen in between.
    assert said["found"] in (["ip table kube-proxy"], ["ip table kube-proxy", "ip6 table kube-proxy"])
    assert leftovers(lab, node) == {"table ip kube-proxy", "table ip6 kube-proxy"}


def test_cleanup_leaves_the_node_as_it_was_and_kube_proxy_works_again(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...]
) -> None:
    before, set_before = listings(lab, node), settings(node)
    LEAVE["ipvs"](lab, node, served)
    taken_over(lab, node, manifests).stop()
    assert ask(questions(lab, node, served)) == ["answered"]
    lab.run(node, CLEANUP)
    assert listings(lab, node) == before
    changed = {name for name, value in settings(node).items() if set_before.get(name) != value}
    assert {pathlib.Path(name).name for name in changed} - COUNTERS <= STAY

    LEAVE["ipvs"](lab, node, served)
    assert ask(questions(lab, node, served)) == ["answered"]


def test_after_an_uninstall_of_the_chart_another_proxy_serves_what_ours_never_knew(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], tmp_path: pathlib.Path
) -> None:
    command, files = cleanup_of_the_chart()
    asked = [ProbeQuestion(lab.client.netns, vip, 80) for one in served for vip in (one.cluster_ip, one.balancer)]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    command = [word.replace("/var/lib/kube-proxy", str(tmp_path)) for word in command]
    # Ours knows the addresses, but not this port of them.
    ips, balancers = [one.cluster_ip for one in served], [one.balancer for one in served]
    known = service("web", [port(81, 8080)], ips, type_="LoadBalancer", ingress=balancers)
    manifests.write("web", known)
    proxy = taken_over(lab, node, manifests)
    # While the proxy ends, the container is started again and again.
    with netns.inside(node.netns):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "an ipvsproxy is at work on this node" in refused.stderr
    proxy.stop()
    # A kube-proxy would use the link as it is; the lab's makes its own.
    lab.run(node, ["ip", "link", "delete", "kube-ipvs0"])
    LEAVE["ipvs"](lab, node, served)
    assert "answered" not in ask(asked)

    # What the other proxy has written since stays, as do virtual servers in the ranges of the configuration.
    lab.run(node, command)
    assert "10.98.0.1:80" in lab.run(node, ["ipvsadm", "-Sn"])
    assert f"table {TABLE}" not in lab.run(node, ["nft", "list", "tables"])
    assert ask(asked) == ["answered"]


def cleanup_of_the_chart() -> tuple[list[str], dict[str, str]]:
    """Return the command that the chart's hook runs on a node, with the files that it sees."""
    values = {"apiServer": "https://192.0.2.1:6443", "config": {"ipvs": {"excludeCIDRs": [EXCLUDED]}}}
    hooks = {item["kind"]: item for item in render(values) if item["metadata"]["name"] == "ipvsproxy-cleanup"}
    (container,) = hooks["DaemonSet"]["spec"]["template"]["spec"]["initContainers"]
    program, *words = container["command"] + container["args"]
    assert program == "/usr/local/bin/ipvsproxy"
    return [sys.executable, "-m", "ipvsproxy", *words], hooks["ConfigMap"]["data"]


@pytest.mark.parametrize("mode", LEAVE)
def test_cleanup_takes_away_what_a_kube_proxy_left(
    lab: Lab, node: LabNode, served: tuple[Served, ...], mode: str
) -> None:
    if mode == "nftables":
        for one in served:
            lab.run(node, [one.program, "-P", "FORWARD", "ACCEPT"])
    before = listings(lab, node)
    LEAVE[mode](lab, node, served)
    assert listings(lab, node) != before
    lab.run(node, CLEANUP)
    assert listings(lab, node) == before
    lab.run(node, CLEANUP)  # nothing there is no error


@pytest.mark.parametrize("mode", LEAVE)
def test_back_to_kube_proxy_first_and_cleanup_second_takes_away_ours_alone_and_no_new_connection_fails(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], mode: str
) -> None:
    taken_over(lab, node, manifests).stop()
    (finish_ipvs_mode if mode == "ipvs" else LEAVE[mode])(lab, node, served)
    asked = questions(lab, node, served)
    with asking(ProbeQuestion(lab.client.netns, served[0].cluster_ip, 80)) as results:
        said = lab.run(node, ["sh", "-c", f"{' '.join(CLEANUP)} 2>&1"])
    assert messages.KUBE_PROXY_KEPT in said
    assert "it has written rules since ipvsproxy ran here" in said
    assert {result.outcome for result in results} == {"answered"}
    assert ask(asked) == ["answered"]
    left = listings(lab, node)
    assert not [line for line in left["tables"] if "ipvsproxy" in line]
    assert leftovers(lab, node)
    has_link = any("kube-ipvs0" in line for line in left["links"])
    assert has_link is (mode == "ipvs")
    lab.run(node, [*CLEANUP, "--cleanup-kube-proxy"])
    assert leftovers(lab, node) == set()
