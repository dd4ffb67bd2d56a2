"""One Service through the three steps: name, endpoints and why each is not used, kernel, live questions."""

import pytest
from msgspec.structs import replace

from ipvsproxy.diagnosis.facts import IPVS, RULES, DnsAnswer
from ipvsproxy.diagnosis.finding import CheckResult, fine, problem, warning
from ipvsproxy.diagnosis.service import EndpointView, PortView, Probe, ServiceFacts, diagnose_service, views
from ipvsproxy.plan.model import Endpoint
from ipvsproxy.plan.state import Destination
from ipvsproxy.plan.topology import choose

NODE, ZONE = "node1", "a"
USED = EndpointView("10.244.1.10:8080", NODE, used=True)
UNUSED = EndpointView("10.244.2.10:8080", "node2", used=False, reason="not ready")
NAME = "web.default.svc.cluster.local"
WELL = ServiceFacts(
    "default/web",
    "proxied",
    cluster_ips=("10.96.3.1",),
    dns_service="kube-system/kube-dns",
    answer=DnsAnswer("10.96.0.10", NAME, ("10.96.3.1",)),
    ports=(PortView("10.96.3.1:80/TCP", (USED, UNUSED), local=1),),
    drift=(),
    probes=(Probe("this node", "10.96.3.1:80/TCP", "answered"),),
)
SILENT = Probe("this node", "10.96.3.1:80/TCP", "timeout", 5.0)
DEAD = Probe("this node", "10.244.1.10:8080/TCP", "refused", 0.1, "Connection refused", is_endpoint=True)


def endpoint(number, **changes):
    return Endpoint(bytes([10, 244, 0, number]), **changes)


def reasons(*endpoints, local=False):
    of_port = {Destination(one.address, 80): one for one in endpoints}
    return {
        view.endpoint.partition(":")[0].rpartition(".")[2]: "" if view.used else view.reason
        for view in views(of_port, choose(of_port, NODE, ZONE), NODE, ZONE, local=local)
    }


def test_why_an_endpoint_is_not_used():
    found = reasons(
        endpoint(1, node=NODE),
        endpoint(2, ready=False, serving=False),
        endpoint(3, ready=False, serving=True, terminating=True),
        endpoint(4, ready=False, serving=False, terminating=True),
    )
    assert found == {
        "1": "", "2": "not ready", "3": "terminating, and there are ready ones",
        "4": "terminating, not serving any more",
    }  # fmt: skip


def test_local_policies_and_hints():
    assert reasons(endpoint(1, node=NODE), endpoint(2, node="node2"), local=True) == {
        "1": "", "2": "on node node2, and the policy is Local",
    }  # fmt: skip
    assert reasons(endpoint(1, zone_hints=("a",)), endpoint(2, zone_hints=("b",))) == {
        "1": "", "2": "meant for b (topology hints), and this is zone a",
    }  # fmt: skip


def test_the_last_ones_are_used_though_they_go():
    last = endpoint(1, ready=False, terminating=True)
    of_port = {Destination(last.address, 80): last}
    (view,) = views(of_port, choose(of_port, NODE, ZONE), NODE, ZONE, local=False)
    assert (view.used, view.reason) == (True, "terminating, used since there is no ready one")


def said(facts, node=()):
    return [f for f in diagnose_service(facts, node) if f.verdict is not CheckResult.OK]


def test_a_service_that_is_well():
    assert said(WELL) == []
    evidence = [line for finding in diagnose_service(WELL, ()) for line in finding.evidence]
    assert "10.244.2.10:8080 on node2: not ready" in evidence


def test_why_no_answer_is_right_is_reported():
    excluded = replace(SILENT, expected="timeout", reason="loadBalancerSourceRanges do not have 10.96.3.1")
    evidence = [
        line for finding in diagnose_service(replace(WELL, probes=(excluded,)), ()) for line in finding.evidence
    ]
    assert evidence[-1].endswith("timeout after 5.000 s: loadBalancerSourceRanges do not have 10.96.3.1")


def port(**changes):
    return {"ports": (replace(WELL.ports[0], **changes),)}


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"kind": "", "similar": ("default/web2",)}, "Service", "no Service default/web"),
        ({"answer": DnsAnswer("10.96.0.10", NAME, error="NXDOMAIN")}, "DNS", "NXDOMAIN"),
        ({"answer": DnsAnswer("10.96.0.10", NAME, ("10.96.9.9",))}, "DNS", "not 10.96.3.1"),
        (port(endpoints=()), "endpoints", "10.96.3.1:80/TCP: no endpoints"),
        (port(endpoints=(UNUSED,), exists=False), "endpoints", "none is ready"),
        (port(endpoints=(UNUSED,), internal_local=True), "endpoints", "internalTrafficPolicy is Local"),
        (port(local=0, external_local=True), "endpoints", "externalTrafficPolicy is Local"),
        ({"unmet": ("mh-port has no effect",)}, "annotations", "asks for something that it does not get"),
        ({"maintenance": ("10.244.1.10:8080",)}, "maintenance", "get no new connections"),
        ({"conflicts": ("203.0.113.1:80/TCP",)}, "kernel", "another Service holds"),
        ({"drift": ("VIP is missing",)}, "kernel", "not as this Service wants it"),
        ({"probes": (SILENT,)}, "probe", "10.96.3.1:80/TCP from this node: timeout"),
        (
            {"probes": (SILENT, DEAD)},
            "probe",
            "the endpoint 10.244.1.10:8080/TCP itself: refused Connection refused",
        ),
        ({"probes": (replace(SILENT, outcome="answered", expected="refused"),)}, "probe", "answered"),
    ],
)
def test_the_step_that_broke_comes_first(changes, check, words):
    first = said(replace(WELL, **changes))[0]
    assert (first.check, bool(first.next)) == (check, True)
    assert words in first.summary


def test_what_is_the_same_for_several_ports_is_reported_once():
    ports = [replace(WELL.ports[0], port=f"10.96.3.1:{number}/TCP", endpoints=()) for number in (80, 81)]
    other = replace(WELL.ports[0], port="10.96.3.1:82/TCP")
    found = [f for f in diagnose_service(replace(WELL, ports=(*ports, other)), ()) if f.check == "endpoints"]
    assert [f.summary for f in found] == [
        "10.96.3.1:80/TCP, 10.96.3.1:81/TCP: no endpoints",
        "10.96.3.1:82/TCP: 1 of 2 endpoints used",
    ]


def test_the_node_may_be_the_cause():
    node = [problem("sysctls", "ip_forward is 0", step="set it"), fine("kernel", "well")]
    first, *_ = said(replace(WELL, probes=(SILENT,)), node)
    assert (first.check, first.evidence) == ("node", ("sysctls: ip_forward is 0",))


def test_other_settings_than_the_proxy_has_are_reported_with_a_service_too():
    node = [
        warning("settings", "the proxy has others", step="give them"),
        warning("VIPs", "held", step="take it off"),
    ]
    assert [finding.check for finding in said(WELL, node)] == ["settings"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"kind": "headless", "answer": DnsAnswer("10.96.0.10", NAME, ("10.244.1.10",))}, CheckResult.OK),
        (
            {"kind": "of type ExternalName", "cluster_ips": (), "external_name": "A.b.",
             "answer": DnsAnswer("10.96.0.10", NAME, canonical="a.b")},
            CheckResult.OK,
        ),
        (
            {"kind": "of type ExternalName", "cluster_ips": (), "external_name": "a.b",
             "answer": DnsAnswer("10.96.0.10", NAME, canonical="c.d")},
            CheckResult.PROBLEM,
        ),
        ({"probes": (replace(SILENT, outcome="sent"),)}, CheckResult.OK),
        ({"probes": (replace(SILENT, expected="timeout"),)}, CheckResult.OK),
        ({"probes": (replace(SILENT, outcome="refused", expected="timeout"),)}, CheckResult.OK),
    ],
)  # fmt: skip
def test_what_needs_no_proxy_and_what_need_not_answer(changes, verdict):
    assert diagnose_service(replace(WELL, **changes), ())[0].verdict is verdict


def told(findings):
    return [f for f in findings if f.verdict is not CheckResult.OK]


ELSEWHERE = replace(WELL.probes[0], balanced_here=False)


@pytest.mark.parametrize(
    ("by", "evidence"),
    [
        (IPVS, "IPVS of this node has no connection of this client"),
        (RULES, "connection tracking of this node has led this client to no endpoint"),
    ],
)
def test_an_answer_that_this_node_did_not_balance_does_not_count(by, evidence):
    probes = (replace(ELSEWHERE, by=by),)
    (found,) = (f for f in diagnose_service(replace(WELL, probes=probes), []) if f.check == "probe")
    assert found.verdict is CheckResult.PROBLEM
    assert f"answered, but not by this node's {by}" in found.summary
    assert found.evidence == (evidence,)


@pytest.mark.parametrize("balanced_here", [True, None])
def test_an_answer_that_this_node_balanced_or_that_leaves_nothing_behind_counts(balanced_here):
    probes = (replace(ELSEWHERE, balanced_here=balanced_here),)
    assert told(diagnose_service(replace(WELL, probes=probes), [])) == []


def test_a_refusal_or_silence_needs_no_trace_in_ipvs():
    shut = replace(SILENT, expected="timeout", balanced_here=False)
    assert told(diagnose_service(replace(WELL, probes=(shut,)), [])) == []


@pytest.mark.parametrize("by", [IPVS, RULES])
def test_a_name_server_that_was_reached_past_this_node_reports_nothing(by):
    answer = replace(WELL.answer, asked_from="192.0.2.1:4711", balanced_here=False, by=by)
    first = diagnose_service(replace(WELL, answer=answer), [])[0]
    assert (first.check, first.verdict) == ("DNS", CheckResult.PROBLEM)
    assert first.summary == f"10.96.0.10 answered, but not by this node's {by}"
    (line,) = first.evidence
    assert "192.0.2.1:4711" in line


def test_before_installation_nothing_is_reported_about_the_kernel_and_of_answers():
    absent = warning("installation", "ipvsproxy is not installed on this node", step="install it")
    broken = replace(WELL, drift=("server 10.96.3.1:80/TCP is missing",), probes=(ELSEWHERE, SILENT))
    broken = replace(broken, answer=replace(WELL.answer, balanced_here=False))
    found = diagnose_service(broken, [absent])
    assert {f.check for f in found if f.verdict is CheckResult.NOT_CHECKED} == {"kernel", "probe"}
    assert [f.check for f in found if f.verdict in (CheckResult.PROBLEM, CheckResult.WARNING)] == ["installation"]
