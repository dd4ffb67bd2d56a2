"""`explain` from its words to its output and exit status; the kernel's answers come from a plan."""

import json
from contextlib import nullcontext

import pytest

from ipvsproxy import cli
from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import explain
from ipvsproxy.commands.endpoint import frontend
from ipvsproxy.commands.invocation import WrongUsage
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.service_names import Names
from ipvsproxy.exchange.inbox import Kind, Listed
from tests.support.build import config, key, service, slice_of
from tests.support.memory_state import MemoryState


@pytest.fixture
def node(monkeypatch):
    """A node with one Service, 10.96.0.10:80, and without names."""
    svc, piece = service(), slice_of("web", "10.244.1.1", "10.244.2.1")
    listed = [
        Listed(Kind.SERVICE, {svc.key: svc}),
        Listed(Kind.ENDPOINT_SLICE, {piece.key: piece}),
        Listed(Kind.NODE, {}),
    ]
    here = [parse_ip("192.0.2.1")]
    ledger = desired(config(cluster_cidrs=("10.244.0.0/16",)), listed, here)
    state = MemoryState(ledger, here, [parse_ip("10.244.1.1")])
    state.has_table = lambda: True
    state.has_ipvs = True
    monkeypatch.setattr(explain, "KernelReader", lambda: nullcontext(state))
    known = Names({"10.96.0.10:80/TCP": "default/web"})
    monkeypatch.setattr(explain, "names", lambda *_: known)
    monkeypatch.setattr(explain, "at_its_address", lambda given: given)
    monkeypatch.setattr(explain, "written_by_kube_proxy", list)
    return state


def test_for_people(node, capsys):
    assert cli.main(["explain", "10.244.1.1", "10.96.0.10:80"]) == 0
    out = capsys.readouterr().out
    assert "10.244.1.1 -> 10.96.0.10:80/TCP  (local pod)" in out
    assert "Service: default/web" in out
    assert "pod_cidrs4 { 10.244.0.0/16 }" in out
    assert out.count("hairpin: the endpoint reaches itself") == 1
    assert "ACCEPTED: IPVS sends it to one of 2 endpoints" in out


def test_why_a_frontend_is_not_on_the_short_path(node, capsys, monkeypatch):
    reason = "session affinity: only with IPVS"
    monkeypatch.setattr(explain, "names", lambda *_: Names({}, path_reasons={"10.96.0.10:80/TCP": reason}))
    assert cli.main(["explain", "10.244.1.1", "10.96.0.10:80"]) == 0
    assert f"Not on the short path: {reason}" in capsys.readouterr().out
    assert cli.main(["explain", "10.244.1.1", "10.96.0.10:80", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["pathReason"] == reason


def test_for_programs(node, capsys):
    assert cli.main(["explain", "10.96.0.10:80", "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["version"], document["kind"]) == (1, "Explanation")
    assert document["from"] == {"address": "10.96.0.10", "link": "", "sender": "node"}
    assert document["steps"][1]["element"] == {
        "set": "frontends4", "key": "10.96.0.10 . tcp . 80", "value": "goto own"
    }  # fmt: skip
    assert {(e["endpoint"], e["share"], e["source"], e["masqueraded"]) for e in document["endpoints"]} == {
        ("10.244.1.1:8080", 0.5, "192.0.2.1", True),
        ("10.244.2.1:8080", 0.5, "192.0.2.1", True),
    }


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["10.96.0.10:81"], 1),  # the guard
        (["10.0.0.9:80"], 1),  # not ours
        (["192.0.2.9", "10.96.0.10:80/tcp"], 0),
        (["node", "10.96.0.10:80"], 0),
        (["--link=lo", "10.244.7.7", "10.96.0.10:80"], 0),
        (["--link=lo", "10.96.0.10:80"], 2),
        (["--link=nosuch", "10.244.7.7", "10.96.0.10:80"], 2),
        ([], 2),
        (["10.96.0.10"], 2),
        (["fd00::1", "10.96.0.10:80"], 2),
        (["nonsense", "10.96.0.10:80"], 2),
        (["1.1.1.1", "2.2.2.2", "10.96.0.10:80"], 2),
    ],
)
def test_exit_status(node, words, status, capsys):
    assert cli.main(["explain", *words]) == status


def test_what_a_node_lacks_is_reported(node, capsys):
    node.has_table, node.has_ipvs = lambda: False, False
    assert cli.main(["explain", "10.96.0.10:80"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "this kernel has no IPVS"
    assert "no nft table inet ipvsproxy" in lines[1]


@pytest.mark.parametrize("text", ["10.96.0.10:80", "10.96.0.10:80/tcp", "10.96.0.10:80/TCP"])
def test_frontends(text):
    assert frontend(text) == key("10.96.0.10:80/TCP")
    assert frontend("[fd00::1]:53/udp") == key("[fd00::1]:53/UDP")


@pytest.mark.parametrize(
    "text", ["10.96.0.10", "10.96.0.10:0", "10.96.0.10:x", "fd00::1:80", "a:80", "1.2.3.4:5/icmp"]
)
def test_what_is_no_frontend(text):
    with pytest.raises(WrongUsage):
        frontend(text)


def test_a_kernel_that_refuses_is_one_line(monkeypatch, capsys):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(explain, "KernelReader", refuse)
    assert cli.main(["explain", "10.96.0.10:80"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: the kernel cannot be read: Operation not permitted; it takes")


def test_rules_of_kube_proxy_are_not_followed_and_that_is_reported(node, monkeypatch, capsys):
    monkeypatch.setattr(explain, "written_by_kube_proxy", lambda: ["ip chain nat KUBE-SERVICES"])
    assert cli.main(["explain", "10.244.1.1", "10.96.0.10:80"]) == 1
    out = capsys.readouterr().out
    assert "NOT FOLLOWED: rules of kube-proxy (ip chain nat KUBE-SERVICES): where they have this address" in out
    assert cli.main(["explain", "10.244.1.1", "10.96.0.10:80", "-o", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["notFollowed"] == ["ip chain nat KUBE-SERVICES"]
