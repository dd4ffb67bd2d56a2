"""The attributes of virtual servers that a Service asks for."""

import pytest

from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import ONE_PACKET, PERSISTENT, SCHED_1, SCHED_2, SCHED_3, ServerAttributes
from ipvsproxy.plan.tally import Tally
from tests.support.build import config, key, node, service, slice_of

FOUR, SIX = key("10.96.0.10:80"), key("[fd00:10:96::10]:80")


def planned(tally=None, **settings):
    svc = service(ips=("10.96.0.10", "fd00:10:96::10"), **settings)
    return plan_service(svc, [slice_of("web", "10.244.1.1")], node(), config(), tally)


@pytest.mark.parametrize(
    ("scheduler", "flags", "bits"),
    [
        ("mh", None, SCHED_1 | SCHED_2),
        ("mh", (), 0),
        ("mh", ("mh-port",), SCHED_2),
        ("sh", ("sh-port", "sh-fallback"), SCHED_1 | SCHED_2),
        ("sh", ("mh-port",), 0),
        ("rr", ("flag-1", "flag-3"), SCHED_1 | SCHED_3),
    ],
)
def test_flags_of_the_scheduler(scheduler, flags, bits):
    assert planned(scheduler=scheduler, scheduler_flags=flags)[FOUR].server == ServerAttributes(scheduler, bits, 0)


def test_a_flag_of_another_scheduler_is_reported():
    tally = Tally(10**6)
    planned(tally, scheduler="sh", scheduler_flags=("mh-port", "sh-port"))
    (complaint,) = tally.complaints
    assert complaint.startswith("mh-port has no effect")


def test_the_netmask_of_affinity_is_a_mask_for_ipv4_and_a_length_for_ipv6():
    found = planned(affinity_seconds=60, affinity_prefixes=(24, 64))
    assert found[FOUR].server == ServerAttributes("rr", PERSISTENT, 60, 0xFFFFFF00)
    assert found[SIX].server == ServerAttributes("rr", PERSISTENT, 60, 64)
    whole = planned(affinity_seconds=60, affinity_prefixes=(32, 128))
    assert {whole[FOUR].server, whole[SIX].server} == {ServerAttributes("rr", PERSISTENT, 60)}


def test_a_netmask_without_affinity_is_reported():
    tally = Tally(10**6)
    found = planned(tally, affinity_prefixes=(24, 0))
    assert found[FOUR].server == ServerAttributes("rr", 0, 0)
    assert tally.complaints == ["a netmask of affinity has no effect without sessionAffinity ClientIP"]


def test_a_persistence_engine_is_for_udp_with_affinity():
    ports = ((80, 0), (5060, 0, "UDP", "sip"))
    found = planned(affinity_engine="sip", affinity_seconds=60, ports=ports)
    assert found[FOUR].server == ServerAttributes("rr", PERSISTENT, 60)
    assert found[key("10.96.0.10:5060/UDP")].server == ServerAttributes("rr", PERSISTENT, 60, None, "sip")


@pytest.mark.parametrize("settings", [{"affinity_seconds": 60}, {"ports": ((5060, 0, "UDP"),)}])
def test_an_engine_that_has_no_effect_is_reported(settings):
    tally = Tally(10**6)
    found = planned(tally, affinity_engine="sip", **settings)
    assert {frontend.server.engine for frontend in found.values()} == {""}
    assert tally.complaints == [
        "an engine of affinity has no effect without sessionAffinity ClientIP and a UDP port"
    ]


def test_single_packets_are_for_udp():
    found = planned(one_packet=True, ports=((80, 0), (80, 0, "UDP", "udp")))
    assert found[FOUR].server.flags == 0
    assert found[key("10.96.0.10:80/UDP")].server.flags == ONE_PACKET
