"""`ipvsproxy doctor` on a node that is broken in many ways, one at a time: the cause comes first in its list.

One node with one proxy (`sick_node`). It must be found healthy before the first way and after the last one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ipvsproxy.commands.service_survey import survey_service
from ipvsproxy.commands.survey import survey
from ipvsproxy.diagnosis.finding import CheckResult, Finding
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.diagnosis.service import diagnose_service
from ipvsproxy.probe.web import read_metrics
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, probe, probe_many
from tests.lab.sick_node import (
    DNS,
    NODE_PORT,
    WAYS,
    WEB,
    DiagnosedNode,
    commands,
    healthy_node,
    modules_are_known,
    proxy_gone,
    serve_pods,
    table,
)
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")


ENDPOINT_CONNECTIONS = "ipvsproxy_endpoint_connections_total"


BOTH_PATHS = pytest.mark.parametrize("diagnosed", ["ipvs", "auto"], indirect=True)


@pytest.fixture(scope="module")
def diagnosed(
    session_lab: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[DiagnosedNode]:
    folder = ManifestFolder(tmp_path_factory.mktemp("manifests"))
    with healthy_node(session_lab, folder, getattr(request, "param", "ipvs")) as diagnosed:
        yield diagnosed


def told(findings: list[Finding]) -> list[str]:
    return [
        f"{f.verdict} {f.check}: {f.summary} {f.evidence}" for f in findings if f.verdict is not CheckResult.OK
    ]


def test_a_healthy_node_is_found_healthy(diagnosed: DiagnosedNode) -> None:
    for _ in range(2):
        assert probe(diagnosed.lab.client.netns, diagnosed.node.ipv4, NODE_PORT).outcome == "answered"
    assert told(diagnosed.findings()) == []


ON_BOTH_PATHS = ("forward-policy-drop", "untracked", "host-port", "chain-flushed", "vip-lost", "element-lost")


@pytest.mark.parametrize(
    ("diagnosed", "name"),
    [*(("ipvs", name) for name in WAYS), *(("auto", name) for name in ON_BOTH_PATHS)],
    indirect=["diagnosed"],
)
def test_the_cause_comes_first(diagnosed: DiagnosedNode, name: str) -> None:
    way, check, words = WAYS[name]
    if name == "no-such-scheduler" and not modules_are_known():
        pytest.skip("which modules this kernel has is not to be seen here")
    with way(diagnosed):
        findings = diagnosed.findings()
    first = findings[0]
    assert first.check == check, told(findings)
    assert words in " ".join((first.summary, *first.evidence)), told(findings)
    assert first.verdict in (CheckResult.PROBLEM, CheckResult.WARNING)
    assert first.next


HARMLESS = {
    "behind IPVS, of what comes in": "chain c { type filter hook input priority 150; tcp dport 80 drop; };",
    "behind IPVS, of what the node sends": "chain c { type filter hook output priority 0; tcp dport 80 drop; };",
    "a firewall with sets and maps": """
        set ports { type inet_service; flags interval; elements = { 22, 53, 80, 443, 10249-10256, 30000-32767 }; };
        chain states { ct state vmap { established : accept, related : accept, invalid : drop }; };
        chain new { iifname { lo, cni0 } accept; ct state new accept; };
        chain i { type filter hook input priority 0; policy drop; jump states; icmpv6 type 1-255 accept;
                  iifname vmap { lo : accept, "cni*" : goto new };
                  meta l4proto { tcp, udp } th dport @ports accept; };
        chain f { type filter hook forward priority 0; policy drop; jump states; ct state new accept; };
    """,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_rules_that_no_packet_of_a_service_meets_are_no_problem(diagnosed: DiagnosedNode, name: str) -> None:
    with table(f"table inet firewall {{ {HARMLESS[name]} }}")(diagnosed):
        asked = [
            ProbeQuestion(host.netns, WEB, 80)
            for host in (diagnosed.lab.client, diagnosed.node, diagnosed.lab.host("p12"))
        ]
        assert {result.outcome for result in probe_many(asked * 3)} == {"answered"}
        assert told(diagnosed.findings()) == []


@pytest.mark.needs("tool:iptables-legacy")
def test_legacy_iptables_that_drop(diagnosed: DiagnosedNode) -> None:
    if diagnosed.lab.run(diagnosed.node, ["sh", "-c", "iptables-legacy -S >/dev/null 2>&1 || echo no"]):
        pytest.skip("this kernel has no legacy iptables; unit/kernel/filters/test_legacy.py reads its blobs")
    with commands("iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT")(diagnosed):
        first = diagnosed.findings()[0]
    assert "policy of iptables-legacy filter FORWARD drops replies" in first.summary
    assert "iptables-legacy -I FORWARD" in first.next


def walk(diagnosed: DiagnosedNode, key: str, netns_name: str = "") -> list[Finding]:
    with netns.inside(diagnosed.node.netns):
        seen = survey(diagnosed.config, "cluster.local")
        facts = survey_service(key, seen, "cluster.local", netns_name)
    assert facts is not None
    return diagnose_service(facts, diagnose(seen.facts))


@BOTH_PATHS
def test_one_service_through_its_steps(diagnosed: DiagnosedNode) -> None:
    diagnosed.names.addresses["web.default.svc.cluster.local"] = WEB
    findings = walk(diagnosed, "default/web", diagnosed.lab.host("p12").netns)
    assert told(findings) == []
    evidence = [line for finding in findings for line in finding.evidence]
    asked = [line for line in evidence if line.startswith(f"{WEB}:80/TCP from")]
    assert len(asked) == 2, evidence
    assert all("answered" in line for line in asked)
    assert any("10.244.2.10:8080" in line and "answered" in line for line in evidence)
    assert walk(diagnosed, "default/nothing")[0].summary == "there is no Service default/nothing"
    assert told(walk(diagnosed, "default/else")) == []


ELSEWHERE = (
    "table ip elsewhere {{ chain o {{ type nat hook output priority -150;"
    " ip daddr {} {} dport {} dnat to {}; }}; }}"
)


def test_an_answer_that_did_not_come_by_ipvs_does_not_count(diagnosed: DiagnosedNode) -> None:
    """As of a kube-proxy, or of another host: the same pod answers, before IPVS sees the packet."""
    diagnosed.names.addresses["web.default.svc.cluster.local"] = WEB
    with table(ELSEWHERE.format(WEB, "tcp", 80, "10.244.1.10:8080"))(diagnosed):
        found = {
            finding.check: finding
            for finding in walk(diagnosed, "default/web")
            if finding.verdict is CheckResult.PROBLEM
        }
    assert found["probe"].summary.startswith(f"{WEB}:80/TCP from this node: answered, but not by this node's IPVS")
    resolver = diagnosed.lab.host("p12").ipv4
    with table(ELSEWHERE.format(DNS, "udp", 53, resolver))(diagnosed):
        (first, *_) = [finding for finding in diagnosed.findings() if finding.check == "DNS"]
    assert first.summary == f"{DNS} answered, but not by this node's IPVS"
    assert told(walk(diagnosed, "default/web")) == []


@pytest.mark.parametrize("diagnosed", ["auto"], indirect=True)
def test_on_the_short_path_an_answer_of_others_does_not_count(diagnosed: DiagnosedNode) -> None:
    """Another program's DNAT comes before ours: to what is no endpoint of the Service."""
    diagnosed.names.addresses["web.default.svc.cluster.local"] = WEB
    elsewhere = diagnosed.lab.host("p12")
    diagnosed.lab.responder.listen(elsewhere, 8099)
    with table(ELSEWHERE.format(WEB, "tcp", 80, f"{elsewhere.ipv4}:8099"))(diagnosed):
        problems = [f for f in walk(diagnosed, "default/web") if f.verdict is CheckResult.PROBLEM]
    (summary,) = [finding.summary for finding in problems if finding.check == "probe"]
    assert summary.startswith(f"{WEB}:80/TCP from this node: answered, but not by this node's rules")
    resolver = diagnosed.lab.host("p22")
    with table(ELSEWHERE.format(DNS, "udp", 53, resolver.ipv4))(diagnosed), diagnosed.names.serving(resolver):
        (first, *_) = [finding for finding in diagnosed.findings() if finding.check == "DNS"]
    assert first.summary == f"{DNS} answered, but not by this node's rules"
    assert told(walk(diagnosed, "default/web")) == []


@BOTH_PATHS
def test_source_ranges_that_shut_the_asker_out_are_no_problem(diagnosed: DiagnosedNode) -> None:
    """The VIP of the load balancer answers the pod that the ranges have, and neither the node nor another pod."""
    vip, web = "203.0.113.5", [port(80, 8080)]
    allowed, other = diagnosed.lab.host("p11"), diagnosed.lab.host("p12")
    spec = {"type_": "LoadBalancer", "ingress": [vip], "loadBalancerSourceRanges": [f"{allowed.ipv4}/32"]}
    ranged = endpoint_slice("ranged", web, [endpoint(diagnosed.lab, allowed)])
    diagnosed.folder.write("ranged", service("ranged", web, ["10.96.3.9"], **spec), ranged)
    diagnosed.names.addresses["ranged.default.svc.cluster.local"] = "10.96.3.9"
    eventually(lambda: vip in diagnosed.run("ip", "address", "show", "dev", "kube-ipvs0"))
    for pod, outcome in ((allowed, "answered"), (other, "timeout")):
        findings = walk(diagnosed, "default/ranged", pod.netns)
        assert told(findings) == []
        lines = [line for f in findings for line in f.evidence if line.startswith(f"{vip}:80/TCP from")]
        assert [outcome in line for line in lines] == [outcome == "timeout", True], lines
        assert lines[0].endswith(f"loadBalancerSourceRanges do not have {vip}")
    diagnosed.folder.remove("ranged")
    eventually(lambda: vip not in diagnosed.run("ip", "address", "show", "dev", "kube-ipvs0"))


def test_counters_of_services_and_endpoints(diagnosed: DiagnosedNode) -> None:
    """Of three Services the two with traffic are shown, as soon as the pause between two looks is over."""
    own = f'frontend="{diagnosed.node.ipv4}:{NODE_PORT}/TCP"'
    name = f'ipvsproxy_service_connections_total{{{own},namespace="default",service="web"}}'

    def shown() -> dict[str, float]:
        with netns.inside(diagnosed.node.netns):
            text = read_metrics(diagnosed.config)
        lines = (line.rpartition(" ") for line in (text or "").splitlines() if "kubernetes_io" not in line)
        return {name: float(value) for name, _, value in lines if name.startswith("ipvsproxy_")}

    def of_endpoints(found: dict[str, float]) -> list[float]:
        return [count for key, count in found.items() if key.startswith(ENDPOINT_CONNECTIONS) and own in key]

    eventually(lambda: name in shown())
    before = shown()
    assert probe(diagnosed.lab.client.netns, diagnosed.node.ipv4, NODE_PORT).outcome == "answered"
    diagnosed.findings()  # asks the name server
    eventually(lambda: shown()[name] > before[name] and 'service="kube-dns"' in " ".join(shown()))
    found = shown()
    assert len(of_endpoints(found)) == 3
    # A destination that was away counts anew, its virtual server does not.
    assert sum(of_endpoints(found)) - sum(of_endpoints(before)) == found[name] - before[name]
    told = " ".join(found)
    assert 'service="kubernetes"' not in told


@BOTH_PATHS
def test_an_endpoint_that_does_not_listen_is_the_cause(diagnosed: DiagnosedNode) -> None:
    diagnosed.lab.responder.clear()
    first = walk(diagnosed, "default/web")[0]
    assert "the endpoint 10.244." in first.summary
    serve_pods(diagnosed.lab)


def test_nothing_is_left_of_all_that_and_a_proxy_that_ends_is_missed(diagnosed: DiagnosedNode) -> None:
    assert told(diagnosed.findings()) == []
    with proxy_gone(diagnosed):
        assert "no proxy answers" in diagnosed.findings()[0].summary
