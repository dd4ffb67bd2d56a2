"""Servers for several ports, ranges or all of a Service: where a Service gets them, and with which elements."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.plan.diff import Dirty, diff
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.rules import may_be_balanced_by_rules
from ipvsproxy.plan.stale import Sweep, SweepRule
from ipvsproxy.plan.state import PERSISTENT, KernelState, Path
from ipvsproxy.plan.tally import CLUSTER_IP, Tally
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.ruleset.codec import RawElement, key_text, unpack_one
from ipvsproxy.ruleset.elements import ElementKey, PortRange
from ipvsproxy.ruleset.schema import FRONTENDS, PORT_RANGES, RANGE_MASQUERADE
from tests.support.build import config, destination, key, node, service, slice_of

RTP = ((Protocol.TCP, 5060, 5060), (Protocol.UDP, 30000, 31000))
ALL_UDP, ALL_TCP = key("10.96.0.10:0/UDP"), key("10.96.0.10:0/TCP")
OUTSIDE = "203.0.113.1"


def planned(tally=None, on=None, **settings):
    svc = service(port_ranges=RTP, ports=((80, 30080),), load_balancer_ips=[OUTSIDE], **settings)
    return plan_service(svc, [slice_of("web", "10.244.1.1", "10.244.2.1")], on or node(), config(), tally)


def elements(frontends):
    ledger = Ledger(VipMode.ADDRESS)
    ledger.replace(RankedService("", "default/web"), frontends)
    return ledger.elements


def test_one_server_with_affinity_for_all_ranges_of_a_protocol():
    found = planned()
    assert {str(name) for name in found if name.port == 0} == {
        f"{address}:0/{protocol}" for address in ("10.96.0.10", OUTSIDE) for protocol in ("TCP", "UDP")
    }
    udp = found[ALL_UDP]
    assert (udp.server.flags & PERSISTENT, udp.server.timeout) == (PERSISTENT, 10800)
    assert set(udp.destinations) == {destination("10.244.1.1:0"), destination("10.244.2.1:0")}
    assert udp.port_ranges == (PortRange(30000, 31000),)
    assert planned(affinity_seconds=60)[ALL_UDP].server.timeout == 60


def test_single_ports_are_as_without_ranges():
    plain = plan_service(
        service(ports=((80, 30080),), load_balancer_ips=[OUTSIDE]),
        [slice_of("web", "10.244.1.1", "10.244.2.1")], node(), config(),
    )  # fmt: skip
    assert {name: found for name, found in planned().items() if name.port} == plain


def test_elements_are_ranges():
    found = elements(planned())
    texts = {
        (slot.set.name, key_text(slot)): value for slot, value in found.items() if slot.set in PORT_RANGES.values()
    }
    assert texts == {
        ("port_ranges4", f"{address} . {ports}"): "goto own"
        for address in ("10.96.0.10", OUTSIDE)
        for ports in ("tcp . 5060", "udp . 30000-31000")
    }
    masked = {slot.owner for slot in found if slot.set is RANGE_MASQUERADE[4]}
    assert key(f"{OUTSIDE}:0/UDP") in masked
    assert not [slot for slot in found if slot.set is FRONTENDS[4] and slot.frontend.port == 0]


def test_an_element_of_the_kernel_is_read_as_a_range():
    start = parse_ip("10.96.0.10") + bytes([17, 0, 0, 0]) + (30000).to_bytes(2) + b"\0\0"
    end = start[:8] + (31000).to_bytes(2) + b"\0\0"
    slot, value = unpack_one(PORT_RANGES[4], RawElement(start, end, code=-4, chain="own"))
    assert slot == ElementKey(PORT_RANGES[4], ALL_UDP, PortRange(30000, 31000))
    assert value == "goto own"


def test_old_and_new_ranges_change_at_once():
    """They may overlap, which the kernel refuses."""
    ledger, shadow = Ledger(VipMode.ADDRESS), KernelState()
    ledger.replace(RankedService("", "default/web"), planned())
    shadow.elements.update(ledger.elements)
    svc = service(port_ranges=((Protocol.UDP, 30500, 32000),), ports=((80, 30080),), load_balancer_ips=[OUTSIDE])
    touched = ledger.replace(
        RankedService("", "default/web"), plan_service(svc, [slice_of("web", "10.244.1.1")], node(), config())
    )
    steps = diff(Dirty(slots=touched.slots), ledger, shadow, lambda _: False)
    assert {step.slot.rest for step in steps.elements_before if step.slot.set is PORT_RANGES[4]} == {
        PortRange(30000, 31000), PortRange(30500, 32000), PortRange(5060, 5060),
    }  # fmt: skip
    assert not [step for step in steps.elements_after if step.slot.set is PORT_RANGES[4]]


def test_addresses_of_the_node_keep_all_their_ports():
    found = planned(external_ips=["192.0.2.1"])
    assert not [name for name in found if name.port == 0 and name.address == parse_ip("192.0.2.1")]


def test_source_ranges_and_two_local_policies_have_none():
    tally = Tally(10**6)
    found = planned(tally, source_ranges=["198.51.100.0/24"])
    assert {str(name) for name in found if name.port == 0} == {"10.96.0.10:0/TCP", "10.96.0.10:0/UDP"}
    (complaint,) = tally.complaints
    assert "load balancer addresses" in complaint
    tally = Tally(10**6)
    assert not [name for name in planned(tally, external_local=True, internal_local=True) if name.port == 0]
    assert any("both traffic policies are Local" in text for text in tally.complaints)


def test_a_local_policy_counts_for_ranges():
    found = planned(external_local=True)
    assert set(found[key(f"{OUTSIDE}:0/UDP")].destinations) == {destination("10.244.1.1:0")}
    assert found[key(f"{OUTSIDE}:0/UDP")].views == ()
    assert len(found[ALL_UDP].destinations) == 2


def test_tracked_connections_to_a_port_of_a_range_are_swept():
    kept = SweepRule(endpoints=frozenset([destination("10.244.1.1:0")]))
    sweep = Sweep(4, 17, {ALL_UDP: kept})
    port, others = key("10.96.0.10:30500/UDP"), key("10.96.0.10:53/UDP")
    assert (sweep.address, sweep.port) == (ALL_UDP.address, None)
    assert sweep.concerns(port)
    assert not sweep.forbids(port, b"", destination("10.244.1.1:30500"), replied=True)
    assert sweep.forbids(port, b"", destination("10.244.2.1:30500"), replied=True)
    # A port with a frontend of its own, perhaps another Service's, is not judged by the one for ranges.
    served = Sweep(4, 17, {ALL_UDP: kept}, served={ALL_UDP, others})
    assert served.forbids(port, b"", destination("10.244.2.1:30500"), replied=True)
    assert not served.forbids(others, b"", destination("10.244.2.1:53"), replied=True)


def test_rules_do_not_balance_ranges_for_a_moment():
    """While a new process makes the servers, the ruleset serves single ports only."""
    found = planned()
    assert not may_be_balanced_by_rules(found[ALL_UDP])
    assert may_be_balanced_by_rules(found[key("10.96.0.10:80/TCP")])


def test_the_reason_why_ranges_take_no_short_path():
    svc = service(port_ranges=RTP, data_path="auto")
    found = plan_service(svc, [slice_of("web", "10.244.1.1")], node(), config())
    assert found[key("10.96.0.10:80/TCP")].path is Path.SHORT
    assert (found[ALL_UDP].path, found[ALL_UDP].path_reason) == (Path.IPVS, "ranges of ports: only with IPVS")


FTP = ((21, 0, "TCP", "control"), (990, 0, "TCP", "secure"), (69, 0, "UDP", "tftp"))
NUMBERS = ((21, "TCP", "control"), (990, "TCP", "secure"), (69, "UDP", "tftp"))


def of_one_affinity(tally=None, numbers=NUMBERS, *, by_default=False, **settings):
    asked = {"affinity_seconds": 300, "load_balancer_ips": [OUTSIDE], "affinity_scope": "service"} | settings
    if by_default:
        scope = {"affinity_scope": asked.pop("affinity_scope")}
    svc = service(ports=FTP, **asked)
    svc = svc.with_defaults(scope) if by_default else svc
    pods = [slice_of("web", "10.244.1.1", "10.244.2.1", ports=numbers)]
    return plan_service(svc, pods, node(), config(), tally)


def names(frontends):
    return {str(name) for name in frontends if name.address in (parse_ip("10.96.0.10"), parse_ip(OUTSIDE))}


def test_one_affinity_for_all_ports_of_a_protocol():
    tally = Tally(10**6)
    found = of_one_affinity(tally)
    assert names(found) == {
        f"{address}:{port}" for address in ("10.96.0.10", OUTSIDE) for port in ("0/TCP", "69/UDP")
    }
    made = found[ALL_TCP]
    assert (made.port_ranges, made.server.timeout) == ((PortRange(21, 21), PortRange(990, 990)), 300)
    assert set(made.destinations) == {destination("10.244.1.1:0"), destination("10.244.2.1:0")}
    assert tally.complaints == []
    # In the order of tiers, so that a quota cuts the same as without.
    assert [name.port for name in found][:2] == [69, 0]
    assert tally.end(CLUSTER_IP) == 2


def test_node_ports_and_addresses_with_source_ranges_keep_an_affinity_for_each_port():
    ports = ((21, 30021, "TCP", "control"), (990, 30990, "TCP", "secure"))
    addresses = {"load_balancer_ips": [OUTSIDE], "source_ranges": ["0.0.0.0/0"]}
    svc = service(ports=ports, affinity_seconds=300, affinity_scope="service", **addresses)
    found = plan_service(svc, [slice_of("web", "10.244.1.1", ports=NUMBERS)], node(), config())
    assert names(found) == {"10.96.0.10:0/TCP", f"{OUTSIDE}:21/TCP", f"{OUTSIDE}:990/TCP"}
    assert {name.port for name in found} == {0, 21, 990, 30021, 30990}


def test_ports_within_a_range_are_part_of_it():
    found = of_one_affinity(port_ranges=((Protocol.TCP, 900, 999), (Protocol.UDP, 5000, 5009)))
    assert found[ALL_TCP].port_ranges == (PortRange(21, 21), PortRange(900, 999))
    assert names(found) >= {"10.96.0.10:0/UDP", "10.96.0.10:69/UDP"}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"affinity_seconds": 0}, "without sessionAffinity"),
        ({"external_local": True}, "policy is Local"),
        ({"internal_local": True}, "policy is Local"),
        ({"numbers": ((2121, "TCP", "control"), (990, "TCP", "secure"))}, "endpoints do not have all ports"),
        ({"numbers": ((21, "TCP", "control"),)}, "endpoints do not have all ports"),
    ],
)
def test_where_each_port_keeps_an_affinity_of_its_own(settings, complaint):
    tally = Tally(10**6)
    found = of_one_affinity(tally, **settings)
    assert names(found) >= {"10.96.0.10:21/TCP", "10.96.0.10:990/TCP", f"{OUTSIDE}:21/TCP"}
    assert not [name for name in found if name.port == 0]
    (said,) = tally.complaints
    assert complaint in said
    # A default of the node that means nothing for a Service is passed over.
    tally = Tally(10**6)
    of_one_affinity(tally, **settings, by_default=True)
    assert tally.complaints == []


def test_ftp_is_served_by_the_server_for_ranges():
    """Else IPVS takes that with port 21 for connections to other ports, too."""
    svc = service(ports=FTP, port_ranges=((Protocol.TCP, 30000, 31000),), data_path="auto", external_local=True)
    tally = Tally(10**6)
    found = plan_service(svc, [slice_of("web", "10.244.1.1", ports=NUMBERS)], node(), config(), tally)
    assert names(found) == {"10.96.0.10:0/TCP", "10.96.0.10:990/TCP", "10.96.0.10:69/UDP"}
    assert found[ALL_TCP].port_ranges == (PortRange(21, 21), PortRange(30000, 31000))
    assert tally.complaints == []


def test_no_ranges_of_tcp_ports_where_ftp_is_remapped():
    ranges = ((Protocol.TCP, 30000, 31000), (Protocol.UDP, 30000, 31000))
    svc, tally = service(ports=FTP, port_ranges=ranges), Tally(10**6)
    pods = slice_of("web", "10.244.1.1", ports=((2121, "TCP", "control"), *NUMBERS[1:]))
    found = plan_service(svc, [pods], node(), config(), tally)
    assert {name.port for name in found if name.protocol == Protocol.TCP} == {21, 990}
    assert found[ALL_UDP].port_ranges == (PortRange(30000, 31000),)
    (complaint,) = tally.complaints
    assert "endpoints do not have port 21" in complaint
