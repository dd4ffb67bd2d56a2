"""Direct server return: which frontends have it, with which destinations, views and elements."""

import pytest

from ipvsproxy.config import DataPath, VipMode
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import GUE, IPIP, MASQUERADING, TUNNEL, Path
from ipvsproxy.plan.tally import Tally
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.ruleset.elements import ElementKey, Masquerade, PacketVerdict
from ipvsproxy.ruleset.schema import DIRECT, LOCAL
from tests.support.build import config, destination, key, node, service, slice_of

OUTSIDE, EXTERNAL, CLUSTER_IP = "203.0.113.1", "198.51.100.1", "10.96.0.10"
DIRECT_ONES = (key(f"{OUTSIDE}:80/TCP"), key(f"{EXTERNAL}:80/TCP"))
PODS = ("10.244.1.10", "10.244.2.10")


def planned(*, tally=None, on=None, pods=PODS, target=80, settings=None, forwarding="ipip", **spec):
    spec = {"ports": ((80, 30080),), "load_balancer_ips": [OUTSIDE], "external_ips": [EXTERNAL]} | spec
    slices = [slice_of("web", *pods, ports=((target, "TCP", ""),))]
    return plan_service(service(forwarding=forwarding, **spec), slices, on or node(), settings or config(), tally)


def methods(frontends):
    """Return the forwarding methods of the destinations of each frontend."""
    return {
        name: {attributes.forwarding_method for attributes in frontend.destinations.values()}
        for name, frontend in frontends.items()
    }


@pytest.mark.parametrize(("forwarding", "kind", "port"), [("ipip", IPIP, 0), ("gue", GUE, 6080)])
def test_external_addresses_lead_into_tunnels_and_no_others(forwarding, kind, port):
    found = planned(forwarding=forwarding)
    assert methods(found) == {name: {TUNNEL if name in DIRECT_ONES else MASQUERADING} for name in found}
    for name in DIRECT_ONES:
        frontend = found[name]
        assert {(d.tunnel_type, d.tunnel_port) for d in frontend.destinations.values()} == {(kind, port)}
        assert frontend.masquerade is Masquerade.NEVER
        assert frontend.server_for(LOCAL) == key(f"{CLUSTER_IP}:80/TCP")


def test_only_direct_frontends_have_an_element():
    ledger = Ledger(VipMode.ADDRESS)
    ledger.replace(RankedService("", "default/web"), planned())
    assert {slot for slot in ledger.elements if slot.set in DIRECT.values()} == {
        ElementKey(DIRECT[4], name) for name in DIRECT_ONES
    }


def test_without_the_annotation_nothing_is_direct():
    assert set.union(*methods(planned(forwarding="")).values()) == {MASQUERADING}


def test_attributes_of_endpoints_are_kept():
    found = planned(max_connections=(100, 80))[DIRECT_ONES[0]]
    assert {(d.upper_threshold, d.lower_threshold) for d in found.destinations.values()} == {(100, 80)}


def test_a_local_policy_has_local_endpoints():
    found = planned(external_local=True)[DIRECT_ONES[0]]
    assert [*found.destinations] == [destination("10.244.1.10:80")]
    assert found.direct_return


@pytest.mark.parametrize("external_local", [True, False])
def test_pods_reach_all_endpoints_where_the_cluster_ip_has_local_ones(external_local):
    found = planned(external_local=external_local, internal_local=True)
    view = found[DIRECT_ONES[0]].server_for(LOCAL)
    assert view == key(f"{CLUSTER_IP}:{80 ^ 0x8000}/TCP")
    assert {*found[view].destinations} == {destination("10.244.1.10:80"), destination("10.244.2.10:80")}
    assert set(methods(found)[view]) == {MASQUERADING}


def test_no_endpoint_is_refused_as_ever():
    found = planned(pods=())[DIRECT_ONES[0]]
    assert (found.verdict, found.direct_return) == (PacketVerdict.REFUSE, False)


def test_an_address_of_the_node_is_none_of_a_pod():
    found = planned(on=node(links=["192.0.2.1", OUTSIDE]))
    assert [found[name].direct_return for name in DIRECT_ONES] == [False, True]
    assert found[DIRECT_ONES[0]].masquerade is Masquerade.ALWAYS


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": 8080}, "port 80/TCP has no direct server return: targetPort is another number, 8080"),
        ({"on": node(links=["192.0.2.1", "10.244.1.10"])}, "endpoint 10.244.1.10:80 is the node itself"),
    ],
)
def test_what_cannot_be_direct_is_masqueraded_and_reported_once(settings, words):
    tally = Tally(1000)
    found = planned(tally=tally, **settings)
    assert set.union(*methods(found).values()) == {MASQUERADING}
    assert not any(frontend.direct_return for frontend in found.values())
    (complaint,) = tally.complaints
    assert words in complaint


def test_it_takes_ipvs():
    found = planned(settings=config(data_path=DataPath.AUTO))
    assert {frontend.path for frontend in found.values()} == {Path.IPVS}
    assert "direct server return" in found[DIRECT_ONES[0]].path_reason


@pytest.mark.parametrize(
    ("forwarding", "text"), [("ipip", "weight 1, tunnel ipip"), ("gue", "weight 1, tunnel gue, port 6080")]
)
def test_plan_and_diff_show_the_tunnel(forwarding, text):
    found = planned(forwarding=forwarding)[DIRECT_ONES[0]]
    assert set(map(str, found.destinations.values())) == {text}
