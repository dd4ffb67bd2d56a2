"""Every flow of flows.json explained from what the planner wants, and the cases that flows do not have.

The same flows are explained from a real kernel, and compared with the wire, by tests/conformance/explain.py.
"""

from pathlib import Path

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import is_loopback, parse_ip
from ipvsproxy.commands.objects import desired
from ipvsproxy.config import DataPath
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.commandline import parse
from ipvsproxy.config.settle import settle
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.inspect.admission import Rule
from ipvsproxy.inspect.explanation import PacketOutcome, Sender
from ipvsproxy.inspect.walk import explain, packet
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.rules import elements
from ipvsproxy.plan.state import (
    PERSISTENT,
    Destination,
    Frontend,
    FrontendKey,
    GroupAdmission,
    ServerAttributes,
)
from ipvsproxy.ruleset.elements import ElementKey, PacketVerdict
from ipvsproxy.ruleset.schema import AUDIENCES, SHARED_GROUP
from tests.conformance import objects as flow_objects
from tests.conformance import places as flow_places
from tests.conformance import scenario_file
from tests.support.build import config, endpoint, key, service, slice_of
from tests.support.elements import element
from tests.support.memory_state import MemoryState

FLOWS, MORE = (Path(__file__).parents[2] / "conformance" / name for name in ("flows.json", "flows-more.json"))
SCENARIOS = [
    *scenario_file.load(FLOWS),
    *(found for found in scenario_file.load(MORE) if found.config.get("tenantLabel")),
]
ROWS = [(scenario, flow) for scenario in SCENARIOS for flow in scenario.flows]
DATA_PATHS = ("ipvs", "auto")
OUTCOMES = {
    "endpoints": {PacketOutcome.ACCEPTED},
    "reject": {PacketOutcome.REFUSED},
    "drop": {PacketOutcome.DROPPED, PacketOutcome.NOT_OURS},  # a VIP that is ignored is nobody's
    "passes-through": {PacketOutcome.NOT_OURS},
}


def state_of(scenario, data_path):
    flags = [flag for flag in flow_objects.flags(scenario) if not flag.startswith("--manifests")]
    flags.append(f"--data-path={data_path}")
    settings = assembled(settle(parse(flags).values, {}), scenario.node_name)
    objects = {kind: {} for kind in Kind}
    for tree in flow_objects.objects(scenario):
        value = decode_mapping(Kind(tree["kind"]), tree).object
        if value is not None:
            objects[Kind(tree["kind"])][value.key] = value
    here = [parse_ip(text) for text in sorted(scenario.node_addresses, key=scenario_file.LOOPBACKS.__contains__)]
    pods = [parse_ip(text) for text, place in flow_places.places(scenario).items() if place == "pod"]
    listed = [Listed(kind, found) for kind, found in objects.items()]
    return MemoryState(desired(settings, listed, here), here, pods)


@pytest.fixture(scope="module")
def states():
    return {(scenario.id, way): state_of(scenario, way) for scenario in SCENARIOS for way in DATA_PATHS}


@pytest.mark.parametrize("data_path", DATA_PATHS)
@pytest.mark.parametrize(("scenario", "flow"), ROWS, ids=[flow.id for _, flow in ROWS])
def test_every_flow(states, scenario, flow, data_path):
    state, here = states[scenario.id, data_path], scenario.node_addresses
    link = detected_link(scenario) if flow.sender == "pod" else ""
    source = None if flow.sender == "node" else parse_ip(flow.source)
    to = key(f"{scenario_file.endpoint_name(flow.address, flow.port)}/{flow.proto.upper()}")
    said = explain(packet(to, state, source, link), state)
    if is_loopback(to.address):
        # Our relay may answer there, which is a program of the node to the kernel.
        assert said.outcome in OUTCOMES["passes-through"], said
        return
    assert said.outcome in OUTCOMES[flow.expect], said
    assert {str(target.real.destination) for target in said.targets} == flow.endpoints
    for target in said.targets:
        wanted = flow.masquerade_by_endpoint.get(str(target.real.destination), flow.masquerade)
        if wanted is not None and flow.sender != "node":
            assert bool(target.masquerade) is wanted, (target, said.steps)
            assert (target.source in map(parse_ip, here)) is wanted


def detected_link(scenario):
    """Pods come in by the link that the detector looks for."""
    mode, name = flow_objects.detector(scenario)
    return {"BridgeInterface": name, "InterfaceNamePrefix": f"{name}1"}.get(mode, "pods0")


# What flows do not have.

HERE, POD, CLIENT = parse_ip("192.0.2.1"), parse_ip("10.244.1.9"), parse_ip("192.0.2.100")
WEB = key("10.96.0.10:80")


def node_with(svc, *slices, **settings):
    listed = [Listed(Kind.SERVICE, {svc.key: svc}), Listed(Kind.ENDPOINT_SLICE, {s.key: s for s in slices})]
    wanted = desired(
        config(cluster_cidrs=("10.244.0.0/16",), **settings), [*listed, Listed(Kind.NODE, {})], [HERE]
    )
    return MemoryState(wanted, [HERE], [POD])


def ask(state, to, source=None, **settings):
    return explain(packet(to, state, source, **settings), state)


def elements_of(said):
    return [step.match.slot.set.name for step in said.steps if step.match]


def test_who_sends_it():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    assert ask(state, WEB).sender is Sender.NODE
    assert ask(state, WEB, HERE).sender is Sender.NODE
    assert ask(state, WEB, POD).sender is Sender.POD
    assert ask(state, WEB, CLIENT).sender is Sender.OUTSIDE
    # One of this node's own addresses on the wire is somebody who pretends.
    assert ask(state, WEB, HERE, link="eth0").sender is Sender.OUTSIDE


def test_shares_follow_weights_and_draining_endpoints_get_nothing():
    state = node_with(service(), slice_of("web", "10.244.1.1", "10.244.1.2", "10.244.1.3"), scheduler="wrr")
    one, two, three = sorted(state.servers[WEB])
    state.weights = {one: 3, two: 1, three: 0}
    said = ask(state, WEB, CLIENT)
    assert {(t.real.destination, t.share) for t in said.targets} == {(one, 0.75), (two, 0.25)}
    state.attributes[WEB] = ServerAttributes("rr", 0, 0)
    assert {t.share for t in ask(state, WEB, CLIENT).targets} == {0.5}
    state.attributes[WEB] = ServerAttributes("fo", 0, 0)
    assert [(t.real.destination, t.share) for t in ask(state, WEB, CLIENT).targets] == [(one, 1)]
    state.weights[one] = state.weights[two] = 0
    said = ask(state, WEB, CLIENT)
    assert (said.outcome, said.targets) == (PacketOutcome.REFUSED, ())
    assert "no endpoint that takes new connections" in said.reason


def test_the_element_that_decided_is_named():
    ranges = service(load_balancer_ips=["203.0.113.1"], source_ranges=["198.51.100.0/24"])
    state = node_with(ranges, slice_of("web", "10.244.1.1"))
    vip = key("203.0.113.1:80")
    said = ask(state, vip, CLIENT)
    assert (said.outcome, elements_of(said)) == (PacketOutcome.DROPPED, ["ranged4"])
    said = ask(state, vip, parse_ip("198.51.100.7"))
    assert said.outcome is PacketOutcome.ACCEPTED
    assert str(said.steps[1].match) == "allowed4 { 203.0.113.1 . tcp . 80 . 198.51.100.0/24 }"
    said = ask(state, key("203.0.113.1:22"), CLIENT)
    assert (said.outcome, elements_of(said)) == (PacketOutcome.REFUSED, ["vips4"])
    assert ask(state, key("192.0.2.1:22"), CLIENT).outcome is PacketOutcome.NOT_OURS


def test_rules_without_a_server_are_called_drift():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    del state.servers[WEB]
    said = ask(state, WEB, CLIENT)
    assert said.outcome is PacketOutcome.NOT_OURS
    assert said.reason.startswith("drift")


def test_a_server_of_others_on_an_address_that_is_no_vip():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    others = key("192.0.2.1:8080")
    state.servers[others], state.attributes[others] = state.servers[WEB], state.attributes[WEB]
    assert ask(state, others, CLIENT).outcome is PacketOutcome.ACCEPTED


def test_a_server_of_others_for_all_ports_of_an_address():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    others = key("192.0.2.1:8080")
    every = FrontendKey(others.address, others.protocol, 0)
    state.servers[every] = [Destination(POD, 0)]
    state.attributes[every] = ServerAttributes("rr", PERSISTENT, 300)
    said = ask(state, others, CLIENT)
    assert [str(target.real.destination) for target in said.targets] == ["10.244.1.9:8080"]
    assert "affinity of clients for 300 s" in said.steps[-1].what
    assert said.reason == "IPVS sends it to the only endpoint"


def test_a_health_check_port_is_answered_by_this_node_alone():
    local = service(load_balancer_ips=["203.0.113.1"], external_local=True, health_check_port=30999)
    state = node_with(local, slice_of("web", "10.244.1.1"))
    assert "healthCheckNodePort" in ask(state, key("192.0.2.1:30999"), CLIENT).reason
    assert "it is forwarded to eth0" in ask(state, key("192.0.2.2:30999")).reason


def test_a_port_of_a_range_keeps_its_number():
    ranges = ((Protocol.TCP, 30000, 30010), (Protocol.TCP, 30999, 30999))
    settings = {"external_local": True, "health_check_port": 30999}
    ranged = service(load_balancer_ips=["203.0.113.1"], port_ranges=ranges, **settings)
    state = node_with(ranged, slice_of("web", endpoint("10.244.1.1", on="node1")))
    said = ask(state, key("203.0.113.1:30005"), CLIENT)
    assert (said.outcome, elements_of(said)) == (PacketOutcome.ACCEPTED, ["port_ranges4"])
    assert [str(target.real.destination) for target in said.targets] == ["10.244.1.1:30005"]
    assert said.frontend == key("203.0.113.1:0")
    assert ask(state, key("203.0.113.1:80"), CLIENT).frontend == key("203.0.113.1:80")
    assert ask(state, key("203.0.113.1:30011"), CLIENT).outcome is PacketOutcome.REFUSED
    assert ask(state, key("203.0.113.1:80"), CLIENT).server.key == key("203.0.113.1:80")
    # IPVS takes it before the proxy's own server would.
    assert ask(state, key("203.0.113.1:30999"), CLIENT).outcome is PacketOutcome.ACCEPTED


def test_ports_for_data_connections_of_ftp_go_to_its_server():
    """Those from 1024 on; IPVS looks for that server, which may be another Service's, before one with port 0."""
    ranged = service(port_ranges=((Protocol.TCP, 900, 30010),))
    state = node_with(ranged, slice_of("web", "10.244.1.1"))
    ftp = key("10.96.0.10:21")
    state.servers[ftp], state.attributes[ftp] = [Destination(POD, 2121)], ServerAttributes("rr", PERSISTENT, 300)
    said = {port: ask(state, key(f"10.96.0.10:{port}"), CLIENT) for port in (900, 30000)}
    assert {port: found.server.key.port for port, found in said.items()} == {900: 0, 30000: 21}
    assert [str(found.targets[0].real.destination) for found in said.values()] == [
        "10.244.1.1:900", "10.244.1.9:30000",
    ]  # fmt: skip


def test_an_endpoint_that_no_route_leads_to_is_reported():
    state = node_with(service(), slice_of("web", "10.244.1.1", "10.244.2.1"))
    route = state.route
    state.route = lambda address: None if address == parse_ip("10.244.2.1") else route(address)
    said = ask(state, WEB, CLIENT)
    assert len(said.targets) == 2
    assert [step.what for step in said.steps if step.place == "routing"] == [
        "no route leads to the endpoint 10.244.2.1: what goes there is lost"
    ]


def test_the_synthetic_port_of_the_internal_view_answers_no_one_who_dials_it():
    both = service(load_balancer_ips=["203.0.113.1"], external_local=True, internal_local=True)
    state = node_with(both, slice_of("web", endpoint("10.244.2.1", on="node2")))
    said = ask(state, key("203.0.113.1:80"), POD)
    assert (said.outcome, elements_of(said)[:2]) == (PacketOutcome.ACCEPTED, ["pod_cidrs4", "internal_views4"])
    assert said.server.key == key("10.96.0.10:32848")
    assert ask(state, key("10.96.0.10:32848"), POD).outcome is PacketOutcome.REFUSED
    assert ask(state, key("203.0.113.1:80"), CLIENT).outcome is PacketOutcome.DROPPED


def test_views_and_source_ranges_are_asked_for_only_where_an_address_has_some():
    local = service(load_balancer_ips=["203.0.113.1"], external_local=True, source_ranges=["10.0.0.0/8"])
    state = node_with(local, slice_of("web", endpoint("10.244.2.1", on="node2")))
    balancer = key("203.0.113.1:80")
    assert ask(state, balancer, POD).outcome is PacketOutcome.ACCEPTED
    assert ask(state, balancer, CLIENT).steps[-1].place == "check_source4"
    for name in ("viewed4", "ranged_vips4"):
        del state.elements[element(name, "203.0.113.1")]
    for source in (POD, CLIENT):
        said = ask(state, balancer, source)
        assert (said.outcome, said.steps[-1].place) == (PacketOutcome.DROPPED, "decide4")


@pytest.mark.parametrize(
    ("data_path", "pods", "outcome"),
    [
        ("ipvs", ["10.244.1.1"], PacketOutcome.NOT_OURS),
        ("auto", ["10.244.1.1"], PacketOutcome.ACCEPTED),
        ("auto", [], PacketOutcome.REFUSED),
    ],
)
def test_only_ipvs_needs_a_vip_that_is_local(data_path, pods, outcome):
    state = node_with(service(), slice_of("web", *pods), data_path=DataPath(data_path))
    state.vips.clear()
    assert ask(state, WEB, POD).outcome is outcome
    # The guard is for VIPs that are there.
    assert ask(state, key("10.96.0.10:81"), POD).outcome is PacketOutcome.NOT_OURS


def test_a_group_of_sources_is_led_to_the_server_of_its_view():
    local = service(load_balancer_ips=["203.0.113.1"], external_local=True)
    other = service("dns", ["10.96.0.53"])
    state = node_with(local, slice_of("web", endpoint("10.244.2.1", on="node2")))
    led = node_with(other, slice_of("dns", endpoint("10.244.2.9", on="node2")))
    state.servers |= led.servers
    state.attributes |= led.attributes
    state.vips |= led.vips
    state.elements |= led.elements
    balancer, theirs = key("203.0.113.1:80"), key("10.96.0.53:80")
    assert ask(state, balancer, POD).server.key == key("10.96.0.10:80")
    state.elements |= {
        ElementKey(AUDIENCES[4], POD): 7,
        element("by_audience4", "203.0.113.1 . tcp . 80"): "goto group_view",
        element("group_views4", "203.0.113.1 . tcp . 80 . 0:70"): theirs,
    }
    said = ask(state, balancer, POD)
    assert (said.outcome, said.server.key) == (PacketOutcome.ACCEPTED, theirs)
    assert elements_of(said)[1:3] == ["audiences4", "group_views4"]
    assert ask(state, balancer, parse_ip("10.244.1.77")).server.key == key("10.96.0.10:80")
    assert ask(state, balancer).server.key == key("10.96.0.10:80")


@pytest.mark.parametrize(("drops", "outcome"), [(False, PacketOutcome.REFUSED), (True, PacketOutcome.DROPPED)])
def test_pods_of_another_tenant_see_the_rule_that_decides(drops, outcome):
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    admitted = GroupAdmission((2,), drops=drops)
    state.elements |= elements(replace(node_frontend(state), admission=admitted)).own
    members = {"10.244.1.50": 2, "10.244.1.51": 3, "10.244.1.52": SHARED_GROUP}
    state.elements |= {ElementKey(AUDIENCES[4], parse_ip(address)): group for address, group in members.items()}
    pods = {address: ask(state, WEB, parse_ip(address), link="pods0") for address in (*members, "10.244.1.53")}
    assert [said.outcome for said in pods.values()] == [
        PacketOutcome.ACCEPTED, outcome, PacketOutcome.ACCEPTED, PacketOutcome.DROPPED,
    ]  # fmt: skip
    assert [said.admission.rule for said in pods.values()] == [
        Rule.ADMITTED, Rule.FOREIGN, Rule.SHARED_POD, Rule.UNKNOWN_POD,
    ]  # fmt: skip
    assert [said.admission.group for said in pods.values()] == [2, 3, SHARED_GROUP, None]
    assert "another tenant's" in pods["10.244.1.51"].reason
    assert "whose tenant is known" in pods["10.244.1.53"].reason
    for others in (ask(state, WEB, CLIENT), ask(state, WEB)):
        assert (others.outcome, others.admission.rule) == (PacketOutcome.ACCEPTED, Rule.NOT_JUDGED)


def test_a_service_that_is_open_to_all_names_the_group_of_the_pod():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    state.elements[ElementKey(AUDIENCES[4], POD)] = 3
    found = ask(state, WEB, POD, link="pods0").admission
    assert (found.rule, found.group) == (Rule.OPEN, 3)


def node_frontend(state):
    """The frontend WEB as a value, whatever its destinations."""
    return Frontend(WEB, state.attributes[WEB], {}, PacketVerdict.ACCEPT)


def test_a_node_process_that_leaves_with_a_vip_is_masqueraded_without_a_detector():
    state = node_with(service(), slice_of("web", "10.244.1.1"))
    state.elements = {slot: v for slot, v in state.elements.items() if slot.set.name != "masquerade4"}
    (target,) = ask(state, WEB).targets
    assert "a VIP" in target.masquerade
    assert target.source == HERE
    assert element("vips4", "10.96.0.10") in state.elements
