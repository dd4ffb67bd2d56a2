"""The packet flows of flows.json, and whether the runner would notice if the proxy were wrong."""

from __future__ import annotations

import copy
import dataclasses
import http.server
import json
import pathlib
import socket
import threading
from collections.abc import Callable

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.inspect.explanation import Explanation, Packet, PacketOutcome, Sender, Target
from ipvsproxy.plan.records import Counters, DestinationRecord
from ipvsproxy.plan.state import Destination, FrontendKey
from tests.conformance import explain, judge, places, scenario_file
from tests.conformance import run as conformance
from tests.conformance.client import HTTP_REQUEST, TimedQuestion, ask_all
from tests.conformance.listeners import HOST, OUTSIDE
from tests.conformance.network import Prefix
from tests.conformance.runner import Plant, Runner, ScenarioReport
from tests.conformance.scenario_file import Flow, Scenario
from tests.lab import netns
from tests.lab.probe import ProbeQuestion, Result

NEEDS = pytest.mark.needs("root", "ip_vs", "nf_tables", "namespaces", "br_netfilter")
MORE = conformance.FLOWS.with_name("flows-more.json")


def play(scenarios: list[Scenario], plants: dict[str, Plant] | None = None) -> ScenarioReport:
    report = ScenarioReport()
    Runner(report, plants=plants).run(scenarios)
    print(report.summary())
    return report


def flows(*ids: str, path: pathlib.Path = conformance.FLOWS) -> list[Scenario]:
    return [scenario for scenario in scenario_file.load(path) if not ids or scenario.id in ids]


@NEEDS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data_path", ["ipvs", "auto"])
def test_each_rule_once(data_path: str) -> None:
    report = play([scenario.on(data_path) for scenario in flows(*conformance.SUBSETS["rules"])])
    assert report.failed == 0, "\n".join(report.lines)
    assert report.passed > 100
    assert report.explained == report.passed


@NEEDS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data_path", ["ipvs", "auto"])
def test_flows_of_tenants(data_path: str) -> None:
    report = play([scenario.on(data_path) for scenario in flows(path=MORE) if scenario.config.get("tenantLabel")])
    assert report.failed == 0, "\n".join(report.lines)
    assert report.passed > 150
    assert report.explained == report.passed


@NEEDS
@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("data_path", ["ipvs", "auto"])
@pytest.mark.parametrize("path", [conformance.FLOWS, MORE], ids=lambda path: path.stem)
def test_all_scenarios(path: pathlib.Path, data_path: str) -> None:
    report = play([scenario.on(data_path) for scenario in scenario_file.load(path)])
    assert report.failed == 0, "\n".join(report.lines)
    assert report.passed > 200


# Errors on purpose. Each takes one scenario whose flows must then fail, and only those that concern it. (A
# node's own connection to its NodePort has a node address as source with and without masquerade.)


def nft(command: str) -> Callable[[str], None]:
    return lambda where: netns.run(where, ["nft", command]) and None


def without(*keys: str) -> Callable[[Scenario], Scenario]:
    """Hide keys of the Services from the proxy."""

    def given(scenario: Scenario) -> Scenario:
        services = tuple({k: v for k, v in service.items() if k not in keys} for service in scenario.services)
        return dataclasses.replace(scenario, services=services)

    return given


def with_a_wrong_endpoint(scenario: Scenario) -> Scenario:
    """Give the proxy another port for the first endpoint."""
    first, *others = scenario.endpoints
    ports = tuple((name, number + 1, proto) for name, number, proto in first.ports)
    return dataclasses.replace(scenario, endpoints=(dataclasses.replace(first, ports=ports), *others))


def with_no_tenants(scenario: Scenario) -> Scenario:
    """Take the labels from all namespaces that the proxy gets."""
    return dataclasses.replace(scenario, namespaces={name: {} for name in scenario.namespaces})


def numbers(first: int, last: int) -> set[str]:
    return {f"{number:02}" for number in range(first, last + 1)}


PLANTED = {
    "no masquerade": (
        "nodeports-v4-primary",
        Plant(spoil=nft("flush chain inet ipvsproxy postrouting")),
        {"02"},
    ),
    "no guard": (
        "clusterip-general",
        Plant(spoil=nft("flush set inet ipvsproxy vips4")),
        {"08", "09"},
    ),
    "a wrong endpoint": ("ipvs-externalips-matching", Plant(given=with_a_wrong_endpoint), {"01", "02"}),
    "externalTrafficPolicy ignored": (
        "ipvs-loadbalancer-local",
        Plant(given=without("externalTrafficPolicy")),
        {"01"},
    ),
    "internalTrafficPolicy ignored": (
        "itp-local-one",
        Plant(given=without("internalTrafficPolicy")),
        {"01"},
    ),
    "source ranges ignored": (
        "ipvs-source-ranges",
        Plant(given=without("loadBalancerSourceRanges")),
        {"02"},
    ),
    "affinity ignored": (
        "ipvs-session-affinity-flows",
        Plant(given=without("sessionAffinity")),
        {"01", "02", "03"},
    ),
    "tenants ignored": ("tenants-dropped", Plant(given=with_no_tenants), {"09", "10"}),
    "shares ignored": ("tenants-dropped", Plant(given=without("annotations")), numbers(1, 8) | numbers(13, 14)),
    "DNS of a tenant ignored": ("tenant-dns", Plant(given=without("annotations")), numbers(17, 20)),
    "pods of tenants unknown": (
        "tenant-dns",
        Plant(given=lambda scenario: dataclasses.replace(scenario, pods=())),
        numbers(17, 22),
    ),
}


@NEEDS
@pytest.mark.timeout(900)
def test_planted_errors_are_found() -> None:
    scenarios, plants = [], {}
    for name, (origin, plant, _) in PLANTED.items():
        original = copy.copy(next(iter(flows(origin) or flows(origin, path=MORE))))
        scenarios.append(dataclasses.replace(original, id=name, state={}))
        plants[name] = plant
    report = play(scenarios, plants)
    for name, (origin, _, wrong) in PLANTED.items():
        prefix = f"FAIL {name} {origin}/"
        found = {line.removeprefix(prefix).split()[0] for line in report.lines if line.startswith(prefix)}
        assert found == wrong, (name, report.lines)


# The rules of judgement, without any packet.

FACTS = judge.NetworkFacts(frozenset({"192.0.2.1", "127.0.0.1"}), frozenset({30000}))
TWO = frozenset({"10.0.1.1:80", "10.0.1.2:80"})
POD = Flow("f", "", "pod", "10.0.0.2", "10.96.0.1", 80, "tcp", "endpoints", TWO, masquerade=False)
NODE = dataclasses.replace(POD, sender="node", source="192.0.2.1")
HEALTH = dataclasses.replace(POD, expect="passes-through", endpoints=frozenset(), port=30000)


def answered(name: str, source: str = "10.0.0.2") -> Result:
    return Result("answered", name, source)


FIRST, SECOND = answered("10.0.1.1:80"), answered("10.0.1.2:80")
JUDGEMENTS = [
    (POD, [FIRST, SECOND], True),
    (POD, [FIRST, FIRST], False),
    (POD, [FIRST, SECOND, answered("10.0.1.3:80")], False),
    (POD, [FIRST, SECOND, Result("timeout")], False),
    (POD, [], False),
    (POD, [FIRST, answered("10.0.1.2:80", "192.0.2.1")], False),
    (dataclasses.replace(POD, masquerade=None), [FIRST, answered("10.0.1.2:80", "192.0.2.1")], True),
    (dataclasses.replace(POD, masquerade=True), [FIRST, SECOND], False),
    (dataclasses.replace(POD, masquerade_by_endpoint={"10.0.1.1:80": True}), [FIRST, SECOND], False),
    (
        dataclasses.replace(POD, masquerade_by_endpoint={"10.0.1.1:80": True}),
        [answered("10.0.1.1:80", "192.0.2.1"), SECOND],
        True,
    ),
    (dataclasses.replace(POD, sticky=True), [FIRST, FIRST], True),
    (dataclasses.replace(POD, sticky=True), [FIRST, SECOND], False),
    (NODE, [answered("10.0.1.1:80", "192.0.2.1"), answered("10.0.1.2:80", "192.0.2.1")], True),
    (NODE, [answered("10.0.1.1:80", "10.96.0.1"), answered("10.0.1.2:80", "192.0.2.1")], False),
    (dataclasses.replace(POD, expect="reject"), [Result("refused")], True),
    (dataclasses.replace(POD, expect="reject"), [Result("refused"), Result("timeout")], False),
    (dataclasses.replace(POD, expect="reject"), [Result("unreachable")], False),
    (dataclasses.replace(POD, expect="drop"), [Result("timeout")], True),
    (dataclasses.replace(POD, expect="drop"), [Result("refused")], False),
    (HEALTH, [answered(HOST)], True),
    (HEALTH, [answered(OUTSIDE)], True),
    (HEALTH, [answered(HOST, "192.0.2.1")], False),
    (HEALTH, [FIRST], False),
    (HEALTH, [answered("?", "")], True),
    (dataclasses.replace(HEALTH, port=81), [answered("?", "")], False),
]


@pytest.mark.parametrize(("flow", "results", "right"), JUDGEMENTS)
def test_judgement(flow: Flow, results: list[Result], right: bool) -> None:
    assert judge.is_right(flow, results, FACTS) is right


def test_an_endpoint_not_seen_yet_is_asked_for_again_but_nothing_else_is() -> None:
    assert judge.lacks_endpoints(POD, [FIRST], FACTS)
    assert not judge.lacks_endpoints(POD, [FIRST, Result("timeout")], FACTS)
    assert not judge.lacks_endpoints(POD, [FIRST, SECOND], FACTS)
    assert not judge.lacks_endpoints(dataclasses.replace(POD, sticky=True), [FIRST], FACTS)
    hashed = dataclasses.replace(FACTS, spreads=False)
    assert not judge.lacks_endpoints(POD, [FIRST], hashed)
    assert judge.is_right(POD, [FIRST], hashed)


# Whether explain agrees with what was seen.


def said(outcome: PacketOutcome, *endpoints: str, source: str = "10.0.0.2") -> Explanation:
    asked = Packet(parse_ip("10.0.0.2"), FrontendKey(parse_ip("10.96.0.1"), 6, 80), "pods0")
    targets = [
        Target(
            DestinationRecord(Destination(parse_ip(host), int(port)), 1, 0, 0, 0, Counters()),
            0.5,
            parse_ip(source),
            "",
        )
        for host, _, port in (name.partition(":") for name in endpoints)
    ]
    return Explanation(asked, Sender.POD, (), outcome, "", None, tuple(targets))


BOTH = ("10.0.1.1:80", "10.0.1.2:80")
AGREEMENTS = [
    (POD, said(PacketOutcome.ACCEPTED, *BOTH), [FIRST, SECOND], True),
    (POD, said(PacketOutcome.ACCEPTED, *BOTH), [FIRST, FIRST], False),
    (POD, said(PacketOutcome.ACCEPTED, BOTH[0]), [FIRST, SECOND], False),
    (POD, said(PacketOutcome.ACCEPTED, *BOTH, source="192.0.2.1"), [FIRST, SECOND], False),
    (POD, said(PacketOutcome.ACCEPTED, *BOTH), [Result("refused")], False),
    (POD, said(PacketOutcome.NOT_OURS), [FIRST], False),
    (POD, said(PacketOutcome.NOT_OURS), [Result("timeout")], True),
    (POD, said(PacketOutcome.REFUSED), [Result("refused")], True),
    (POD, said(PacketOutcome.REFUSED), [Result("timeout")], False),
    (POD, said(PacketOutcome.DROPPED), [Result("timeout")], True),
    (HEALTH, said(PacketOutcome.NOT_OURS), [answered(HOST)], True),
    (HEALTH, said(PacketOutcome.REFUSED), [answered(HOST)], False),
    (dataclasses.replace(POD, sticky=True), said(PacketOutcome.ACCEPTED, *BOTH), [FIRST, FIRST], True),
]


@pytest.mark.parametrize(("flow", "explanation", "results", "agree"), AGREEMENTS)
def test_explain_is_compared(flow: Flow, explanation: Explanation, results: list[Result], agree: bool) -> None:
    assert (not list(explain.compare(flow, explanation, results, FACTS))) is agree


# Reading files, and what can share a network.


def read(tmp_path: pathlib.Path, *scenarios: dict[str, object]) -> list[Scenario]:
    path = tmp_path / "flows.json"
    path.write_text(json.dumps({"scenarios": scenarios}))
    return scenario_file.load(path)


def sent(sender: str, source: str, address: str = "10.96.0.1") -> dict[str, object]:
    return {"from": sender, "src_ip": source, "dst_ip": address, "dst_port": 80, "expect": "reject"}


def test_a_file_may_contain_little(tmp_path: pathlib.Path) -> None:
    flow = {"dst_ip": "2001:DB8:0::1", "dst_port": 80, "expect": "drop"}
    (scenario,) = read(tmp_path, {"id": "x", "flows": [flow], "endpoints": [{"service": "s", "address": "a.b"}]})
    (only,) = scenario.flows
    assert (only.id, only.sender, only.address, only.proto) == ("x/01", "external", "2001:db8::1", "tcp")
    assert scenario.endpoints == ()
    with pytest.raises(scenario_file.Unusable):
        read(tmp_path, {"flows": []})


def test_one_address_in_two_places_takes_two_worlds(tmp_path: pathlib.Path) -> None:
    flows = [sent("pod", "10.0.0.2"), sent("external", "10.0.0.2"), sent("external", "10.0.0.3")]
    (scenario,) = read(tmp_path, {"id": "x", "flows": flows})
    parts = [[flow.id for flow in part.flows] for part in places.split(scenario)]
    assert parts == [["x/01", "x/03"], ["x/02"]]


def test_a_client_with_the_address_of_another_scenarios_vip_gets_a_world_of_its_own(
    tmp_path: pathlib.Path,
) -> None:
    first = {"id": "a", "flows": [sent("external", "192.0.2.9")]}
    second = {"id": "b", "flows": [sent("external", "10.96.0.1", "192.0.2.9")]}
    third = {"id": "c", "flows": [sent("pod", "10.0.0.2", "10.96.0.7")]}
    groups = places.group(read(tmp_path, first, second, third))
    assert [[scenario.id for scenario in one.scenarios] for one in groups] == [["a", "c"], ["b"]]


def test_the_labs_own_addresses_are_none_of_the_files() -> None:
    first = Prefix.apart_from(["10.0.0.1"])
    other = Prefix.apart_from([first.address(4, 200), "10.0.0.1"])
    assert not other.address(4, 1).startswith(first.four)


def test_a_health_server_counts_as_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"tcp": socket.SOCK_STREAM | socket.SOCK_NONBLOCK}
    monkeypatch.setattr(netns, "open_socket", lambda _, __, proto: socket.socket(socket.AF_INET, kinds[proto]))
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        asked = TimedQuestion(ProbeQuestion("", "127.0.0.1", server.server_port), 10.0, HTTP_REQUEST)
        (result,) = ask_all([asked])
        thread.join()
    assert (result.outcome, result.name) == ("answered", "?")
