"""flows.json against the planner alone: where each packet should go, and the side tables, without a kernel.

The same file is asked with real packets by tests/integration/test_conformance.py. Here every flow of every
scenario, the topology and terminating ones among them, is a row of a table that runs in milliseconds.
"""

import json
from pathlib import Path

import pytest

from ipvsproxy.base.address import format_ip, is_loopback, is_node_address, parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.commandline import parse
from ipvsproxy.config.settle import settle
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.node import facts
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import ServerAttributes, ServerState
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.ruleset.elements import PacketVerdict
from ipvsproxy.ruleset.schema import LOCAL
from tests.conformance import objects as flow_objects
from tests.conformance import scenario_file
from tests.support.build import config, destination, key, service, slice_of, weights
from tests.support.memory_kernel import MemoryNode

PATH = Path(__file__).parents[2] / "conformance" / "flows.json"
TABLES = json.loads(PATH.read_text())
SCENARIOS = {scenario.id: scenario for scenario in scenario_file.load(PATH)}
RAW = {scenario["id"]: scenario for scenario in TABLES["scenarios"]}
ROWS = [(name, flow["id"], flow) for name, scenario in RAW.items() for flow in scenario["flows"]]


class PlannedScenario:
    """A scenario as the planner sees it."""

    def __init__(self, scenario):
        flags = [flag for flag in flow_objects.flags(scenario) if not flag.startswith("--manifests")]
        settings = assembled(settle(parse(flags).values, {}), scenario.node_name)
        store = Store(scenario.node_name)
        for tree in flow_objects.objects(scenario):
            kind = Kind(tree["kind"])
            value = decode_mapping(kind, tree).object
            if value is not None:
                store.apply(Changed(kind, value.key, value))
        links = map(parse_ip, scenario.node_addresses)
        self.node = facts(settings, store.node, links)
        self.ledger = Ledger(VipMode.ADDRESS)
        for name, svc in store.services.items():
            self.ledger.replace(
                RankedService(svc.created, name), plan_service(svc, store.slices(name), self.node, settings)
            )

    def fate(self, flow):
        """Return the outcome and the endpoints of a packet's connection."""
        name = key(f"{bracketed(flow['dst_ip'])}:{flow['dst_port']}/{flow['proto']}")
        frontend = self.ledger.frontends.get(name)
        if frontend is None:
            return ("reject" if self.ledger.vip(name.address) else "untouched"), set()
        if frontend.ranges and not any(self.source(flow) in cidr for cidr in frontend.ranges):
            return "drop", set()
        inside = frontend.server_for(LOCAL)
        if inside and self.is_inside(flow, len(name.address)):
            frontend = self.ledger.frontends[inside]
        if frontend.verdict in (PacketVerdict.ACCEPT, PacketVerdict.INSIDE_ONLY):
            return "endpoints", {str(d) for d in frontend.destinations}
        return {PacketVerdict.REFUSE: "reject", PacketVerdict.DROP: "drop"}[frontend.verdict], set()

    def is_inside(self, flow, length):
        return flow["from"] == "node" or (flow["from"] == "pod" and (4 if length == 4 else 6) in self.node.detects)

    def source(self, flow):
        return parse_ip(flow.get("ipvs_src_ip") or flow["src_ip"])


def bracketed(text):
    return f"[{text}]" if ":" in text else text


@pytest.fixture(scope="module")
def planned():
    return {name: PlannedScenario(scenario) for name, scenario in SCENARIOS.items()}


@pytest.mark.parametrize(("scenario", "name", "flow"), ROWS, ids=[row[1] for row in ROWS])
def test_where_a_packet_goes(planned, scenario, name, flow):
    outcome, endpoints = planned[scenario].fate(flow)
    if is_loopback(parse_ip(flow["dst_ip"])):  # what our relay may answer is no frontend
        assert outcome == "untouched"
    elif outcome == "untouched":  # what is no frontend and no VIP of ours goes its own way
        assert flow["expect"] in ("passes-through", "drop")
        assert flow["endpoints"] == []
    else:
        assert (outcome, endpoints) == (
            flow["expect"],
            {scenario_file.parse_endpoint_name(e) for e in flow["endpoints"]},
        )


@pytest.mark.parametrize("case", TABLES["node_address_filter"]["cases"], ids=lambda c: f"{c['family']}-{c['ip']}")
def test_node_address_filter(case):
    address = parse_ip(case["ip"])
    right_family = (len(address) == 4) == (case["family"] == "IPv4")
    assert (right_family and is_node_address(address)) is case["kept"]


class FlowLoop:
    """The loop on a kernel in memory."""

    def __init__(self, kernel_node, **settings):
        self.now = 1000.0
        self.node = kernel_node
        self.loop = make_loop(config(**settings), Inbox(), kernel_node.kernel(), lambda: self.now)

    def list(self, services=(), slices=()):
        self.loop.reconcile(
            [
                Listed(Kind.SERVICE, {s.key: s for s in services}),
                Listed(Kind.ENDPOINT_SLICE, {s.key: s for s in slices}),
                Listed(Kind.NODE, {}),
            ]
        )
        return self

    def later(self, seconds):
        self.now += seconds
        self.loop.reconcile([])


def frontends(texts):
    return {key(text) for text in texts}


@pytest.mark.parametrize("case", TABLES["legacy_virtual_server_cleanup"]["cases"], ids=lambda c: c["kernel"][-1])
def test_legacy_virtual_servers(case):
    kernel_node = MemoryNode()
    for name in frontends(case["kernel"]):
        kernel_node.ipvs.table[name] = ServerState(ServerAttributes("rr", 0, 0), {})
    wanted = [
        service(f"s{index}", [format_ip(name.address)], ((name.port, 0, "UDP"),))
        for index, name in enumerate(map(key, case["wanted"]))
    ]
    FlowLoop(kernel_node, exclude_cidrs=tuple(case["excludeCIDRs"])).list(wanted)
    assert kernel_node.ipvs.table.keys() == frontends(case["kept"])


GRACEFUL = [c for c in TABLES["graceful_termination"]["cases"] if "event" not in c and c["present"]]


@pytest.mark.parametrize("case", GRACEFUL, ids=lambda c: f"{c['proto']}-{c['active']}-{c['inactive']}")
def test_graceful_termination(case):
    """An idle TCP destination is weight 0 for a second before it goes: looking at its connections takes a read."""
    kernel_node = MemoryNode()
    ports = ((53, case["proto"], ""),)
    svc = service(ports=((53, 0, case["proto"]),))
    process = FlowLoop(kernel_node).list([svc], [slice_of("web", "10.244.1.1", "10.244.1.2", ports=ports)])
    name, leaving = key(f"10.96.0.10:53/{case['proto']}"), destination("10.244.1.2:53")
    kernel_node.ipvs.busy[name, leaving] = case["active"] + case["inactive"]
    piece = slice_of("web", "10.244.1.1", ports=ports)
    process.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, piece.key, piece)])
    process.later(2)
    weight = weights(kernel_node.ipvs.table[name]).get(leaving)
    assert weight == (0 if "kept" in case["result"] else None)


def test_incremental_sync():
    """Work follows the size of the change: the operations of the table, and two for what the address is.

    One keeps quiet about the VIP, one tells packets to it from those of no Service.
    """
    kernel_node = MemoryNode()
    others = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(1, 200)]
    process = FlowLoop(kernel_node, cluster_cidrs=("10.244.0.0/16",)).list(others)

    def step(*events):
        """Return (IPVS and link writes, nft element operations) of some events."""
        writes, transactions = kernel_node.writes, len(kernel_node.nft.transactions)
        process.loop.reconcile(list(events))
        texts = kernel_node.nft.transactions[transactions:]
        operations = sum(len(line.partition("{ ")[2].split(", ")) for text in texts for line in text.splitlines())
        return kernel_node.writes - writes, operations

    def put(item):
        kind = Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE
        return Changed(kind, item.key, item)

    svc, one, two = service(), slice_of("web", "10.244.2.1"), slice_of("web", "10.244.2.1", "10.244.2.2")
    assert step(put(one), put(svc)) == (3, 5)  # server, destination, VIP; verdict, masquerade, the address thrice
    assert step(Removed(Kind.SERVICE, svc.key), Removed(Kind.ENDPOINT_SLICE, one.key)) == (2, 5)
    assert step(put(svc)) == (2, 5)
    assert step(put(one)) == (1, 2)  # the verdict changes from refuse to accept: out and in
    assert step(put(slice_of("web", "10.244.2.9"))) == (2, 0)
    assert step(put(two)) == (3, 0)  # one is new, one comes back from draining, one drains
    assert step(put(slice_of("web"))) == (2, 2)
    assert step(put(slice_of("web"))) == (0, 0)
