"""Every command in every form that its table of flags offers, on objects of every kind.

A new command with `--output`, or a new form, is tried out by being in the table.
"""

import json
import sys

import pytest
import yaml

from ipvsproxy import cli
from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import diff, doctor, explain, objects, rows, service_names, show
from ipvsproxy.commands.command_table import BY_NAME, COMMANDS, EXIT_USAGE
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.survey import SurveyResult
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import DnsAnswer, Facts, KubeProxy, SettingsFacts, to_json
from ipvsproxy.diagnosis.service import EndpointView, PortView, Probe, ServiceFacts
from ipvsproxy.kernel.read.connections import parse
from ipvsproxy.kube.once import read_objects
from ipvsproxy.plan.leftovers import RemovedItem
from ipvsproxy.plan.state import Vip, VipForm
from tests.support.elements import element
from tests.support.memory_state import MemoryState
from tests.support.memory_view import MemoryView
from tests.support.terminal import Terminal

EVERY_KIND = """
apiVersion: v1
kind: List
items:
- {kind: Node, apiVersion: v1, metadata: {name: n1}, spec: {podCIDRs: [10.244.1.0/24, "fd00:1::/64"]},
   status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}}
- {kind: Service, apiVersion: v1, metadata: {name: web}, spec: {type: NodePort, clusterIP: 10.96.0.10,
   clusterIPs: [10.96.0.10, "fd00:10::10"], ipFamilies: [IPv4, IPv6], ports: [{port: 80, nodePort: 30080}]}}
- {kind: Service, apiVersion: v1, metadata: {name: edge}, spec: {type: LoadBalancer, clusterIP: 10.96.0.40,
   externalTrafficPolicy: Local, healthCheckNodePort: 31999, sessionAffinity: ClientIP,
   externalIPs: [198.51.100.7],
   loadBalancerSourceRanges: [198.51.100.0/24, "2001:db8:1::/48"], ports: [{name: s, port: 443, nodePort: 30443}]},
   status: {loadBalancer: {ingress: [{ip: 203.0.113.20}]}}}
- {kind: Service, apiVersion: v1, metadata: {name: dns, annotations: {ipvsproxy.io/one-packet: "true"}},
   spec: {clusterIP: 10.96.0.53, internalTrafficPolicy: Local, ports: [{port: 53, protocol: UDP}]}}
- {kind: Service, apiVersion: v1, metadata: {name: call}, spec: {clusterIP: "fd00:10::5060",
   ipFamilies: [IPv6], ports: [{port: 5060, protocol: SCTP}]}}
- {kind: Service, apiVersion: v1, metadata: {name: bare}, spec: {clusterIP: None}}
- {kind: Service, apiVersion: v1, metadata: {name: away}, spec: {type: ExternalName, externalName: a.example.com}}
- {kind: Service, apiVersion: v1, metadata: {name: bad}, spec: {clusterIP: 10.96.0.11, ports: [{port: many}]}}
- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, ports: [{port: 8080}],
   metadata: {name: web-4, labels: {kubernetes.io/service-name: web}},
   endpoints: [{addresses: [10.244.1.1], nodeName: n1}, {addresses: [10.244.2.1], nodeName: n2}]}
- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv6, ports: [{port: 8080}],
   metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: ["fd00:1::1"]}]}
- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, ports: [{name: s, port: 8443}],
   metadata: {name: edge-4, labels: {kubernetes.io/service-name: edge}},
   endpoints: [{addresses: [10.244.2.2], nodeName: n2, conditions: {ready: true}}]}
- {kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, ports: [{port: 53, protocol: UDP}],
   metadata: {name: dns-4, labels: {kubernetes.io/service-name: dns}},
   endpoints: [{addresses: [10.244.1.3], nodeName: n1, conditions: {ready: false, terminating: true}}]}
"""
FLAGS = ["--hostname-override=n1", "--cluster-cidr=10.244.0.0/16,fd00:1::/32"]
WORDS = {
    "explain": [["10.96.0.10:80"], ["node", "[fd00:10::10]:80"], ["198.51.100.9", "203.0.113.20:443"],
                ["10.244.1.9", "203.0.113.20:443"], ["10.96.0.40:444"], ["10.0.0.9:80"]],
    "show": [["services"], ["endpoints"], ["connections"], ["rules"]],
    "diff": [[]],
    "plan": [["--from={folder}"]],
    "doctor": [[], ["--facts={facts}"], ["default/web"]],
}  # fmt: skip
"""What each command is called with. A command that is not in here fails the test: give it words."""
FORMS = [
    (command.name, form)
    for command in COMMANDS
    if "output" in {row.flag for row in command.own}
    for form in command.flags["output"].kind.name.split("|")
]
READERS = {"json": json.loads, "yaml": yaml.safe_load}
LINE = "TCP C0000201 D8B2 0A60000A 0050 0AF40101 1F90 ESTABLISHED     899"
SEEN_SERVICE = ServiceFacts(
    "default/web",
    "proxied",
    cluster_ips=("10.96.0.10",),
    dns_service="kube-system/kube-dns",
    answer=DnsAnswer("10.96.0.53", "web.default.svc.cluster.local", ("10.96.0.10",)),
    ports=(PortView("10.96.0.10:80/TCP", (EndpointView("10.244.1.1:8080", "n1", used=True),), local=1),),
    drift=("VIP 10.96.0.10 is missing",),
    probes=(Probe("this node", "10.96.0.10:80/TCP", "timeout", 5.0),),
)


class FreeLockLook:
    """The lock of a network namespace in which no proxy runs."""

    def look(self):
        return None


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "objects"
    place.mkdir()
    (place / "every.yaml").write_text(EVERY_KIND)
    return place


@pytest.fixture
def node(folder, monkeypatch):
    """A node whose kernel has all that is wanted, and some that is not."""
    here = [parse_ip("192.0.2.1"), parse_ip("2001:db8::1")]
    settings = Config("n1", cluster_cidrs=("10.244.0.0/16", "fd00:1::/32"), manifests=folder)
    ledger = desired(settings, read_objects(settings).listed(), here)
    view = MemoryView(MemoryState(ledger, here, [parse_ip("10.244.1.1")]))
    view.masquerade_source = view.state.masquerade_source
    view.vips = lambda: {Vip(parse_ip("10.96.9.9"), VipForm.ADDRESS), Vip(parse_ip("fd00:10::9"), VipForm.ROUTE)}
    view.state.elements[element("frontends4", "10.96.0.10 . tcp . 80")] = "drop"
    for module in (show, diff, explain):
        monkeypatch.setattr(module, "KernelReader", lambda: view)
    monkeypatch.setattr(explain, "written_by_kube_proxy", lambda: ["ip chain nat KUBE-SERVICES"])
    monkeypatch.setattr(
        diff,
        "removed_by_a_run",
        lambda: [RemovedItem("chains", "ip nat", 3), RemovedItem("ipset", "KUBE-CLUSTER-IP")],
    )
    monkeypatch.setattr(diff, "legacy_leftovers", lambda: ["iptables-legacy"])
    monkeypatch.setattr(diff, "signs", lambda *_, **__: KubeProxy(("process 7: kube-proxy",)))
    monkeypatch.setattr(diff, "InstanceLock", FreeLockLook)
    for module in (show, explain):
        monkeypatch.setattr(module, "at_its_address", lambda given: given)
    for module in (diff, doctor):
        monkeypatch.setattr(module, "adopted", lambda given: given)
    known = service_names.Names({str(key): ledger.owner(key) for key in ledger.frontends})
    for module in (show, explain):
        monkeypatch.setattr(module, "names", lambda *_: known)
    monkeypatch.setattr(rows, "all_connections", lambda: [parse(LINE)])
    monkeypatch.setattr(objects, "of_this_host", lambda given: given)
    facts = Facts(SettingsFacts("n1"), drift=("VIP 10.96.0.10 is missing",), unread={"links": "not permitted"})
    monkeypatch.setattr(doctor, "survey", lambda *_: SurveyResult(facts, None, None, None))
    monkeypatch.setattr(doctor, "survey_service", lambda *_: SEEN_SERVICE)
    saved = folder.parent / "facts.json"
    saved.write_bytes(to_json(facts))
    return {"folder": folder, "facts": saved}


@pytest.mark.parametrize(("command", "form"), FORMS)
def test_every_command_in_every_form(node, command, form, capsys):
    objects_from = [f"--manifests={node['folder']}"] if BY_NAME[command].settings and command != "plan" else []
    for words in WORDS[command]:
        filled = [word.format(**{name: str(path) for name, path in node.items()}) for word in words]
        status = cli.main([command, *filled, *FLAGS, *objects_from, "-o", form])
        said = capsys.readouterr()
        assert status < EXIT_USAGE, said.err
        assert said.out.strip()
        if form in READERS:
            document = READERS[form](said.out)
            assert (document["version"], bool(document["kind"])) == (1, True)
            assert document == json.loads(json.dumps(document)), "nothing but JSON's own types"


@pytest.mark.parametrize("command", sorted(WORDS))
def test_every_command_fits_a_terminal_of_80_columns(node, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    objects_from = [f"--manifests={node['folder']}"] if command != "plan" else []
    for words in WORDS[command]:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        cli.main([command, *(word.format(**node) for word in words), *FLAGS, *objects_from])
        too_long = [line for line in screen.getvalue().splitlines() if len(line) > 80]
        assert [line for line in too_long if len(line.split()) > 1] == [], "only a word that is too long may be"


def test_json_and_yaml_contain_the_same(node, capsys):
    answers = []
    for form, read in READERS.items():
        cli.main(["diff", *FLAGS, f"--manifests={node['folder']}", "-o", form])
        answers.append(read(capsys.readouterr().out))
    assert answers[0] == answers[1]
    changed = {(change["object"], change["wanted"]) for change in answers[0]["changes"]}
    assert ("VIP", "address") in changed


def test_what_a_run_would_remove_of_a_kube_proxy_is_a_difference(node, capsys):
    assert cli.main(["diff", *FLAGS, f"--manifests={node['folder']}", "-o", "json"]) == 1
    said = capsys.readouterr()
    removed = [
        (c["object"], c["name"], c["was"]) for c in json.loads(said.out)["changes"] if c["action"] == "remove"
    ]
    assert removed[-2:] == [("chains", "ip nat", "3 of kube-proxy"), ("ipset", "KUBE-CLUSTER-IP", "")]
    assert "rules of kube-proxy in iptables-legacy, which a run cannot remove" in said.err
    assert "would write its rules again: process 7: kube-proxy" in said.err


def test_there_is_something_of_every_verdict_in_the_plan(node, folder, capsys):
    cli.main(["plan", f"--from={folder}", *FLAGS, "-o", "yaml"])
    plan = yaml.safe_load(capsys.readouterr().out)
    assert {row["verdict"] for row in plan["frontends"]} >= {"accept", "refuse", "drop"}
    assert {row["vip"] for row in plan["frontends"]} >= {"address", None}
