"""Which Services may take the short path, and why others may not."""

import pytest

from ipvsproxy.config import DataPath, DetectLocalMode
from ipvsproxy.plan.places import places
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.rules import balanced_by_rules, elements, may_be_balanced_by_rules
from ipvsproxy.plan.state import Path
from ipvsproxy.ruleset.elements import ElementKey, PacketVerdict
from ipvsproxy.ruleset.schema import ENDPOINTS, FRONTENDS, MOST_ENDPOINTS, SHORT_VIEWS
from tests.support.build import config, endpoint, key, node, service, slice_of

WEB = key("10.96.0.10:80")


def plan(svc, *pods, **settings):
    pods = pods or ("10.244.1.1", "10.244.2.2")
    slices = [slice_of(svc.name, *pods, ports=((8080, svc.ports[0].protocol.name, ""),))]
    return plan_service(svc, slices, node(), config(**settings))


def path(svc, *pods, **settings):
    (first, *_) = plan(svc, *pods, **{"data_path": DataPath.AUTO, **settings}).values()
    return first.path, first.path_reason


def test_ipvs_is_the_default():
    assert path(service(), data_path=DataPath.IPVS) == (Path.IPVS, "")


def test_a_service_that_wants_nothing_special_takes_the_short_path():
    assert path(service()) == (Path.SHORT, "")
    assert path(service(ports=((53, 0, "UDP"),))) == (Path.SHORT, "")


def test_a_service_chooses_for_itself():
    assert path(service(data_path="ipvs")) == (Path.IPVS, "")
    assert path(service(data_path="auto"), data_path=DataPath.IPVS) == (Path.SHORT, "")


@pytest.mark.parametrize(
    ("wishes", "settings", "reason"),
    [
        ({}, {"scheduler": "lc"}, "the scheduler lc"),
        ({"scheduler": "mh"}, {}, "the scheduler mh"),
        ({"scheduler_flags": ("flag-1",)}, {}, "flags of the scheduler"),
        ({"affinity_seconds": 60}, {}, "session affinity"),
        ({"max_connections": (100, 80)}, {}, "limits of endpoints"),
        ({"slow_start_seconds": 30.0, "scheduler": "wrr"}, {}, "slow start of endpoints"),
        (
            {},
            {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE},
            "local pods that are recognised by their link",
        ),
        ({"one_packet": True, "ports": ((80, 0, "UDP"),)}, {}, "UDP packets balanced one by one"),
    ],
)
def test_what_only_ipvs_has_keeps_a_service_there(wishes, settings, reason):
    assert path(service(**wishes), **settings) == (Path.IPVS, f"{reason}: only with IPVS")


ONE, TWO = endpoint("10.244.1.1", name="web-1"), endpoint("10.244.2.2", name="web-2")
TOO_LARGE = f"weights that, in lowest terms, add up to more than {MOST_ENDPOINTS}"


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ((1, 1), ["1", "2"]),
        ((3, 2), ["1", "1", "1", "2", "2"]),
        ((300, 200), ["1", "1", "1", "2", "2"]),
        ((5, 0), ["1"]),
        ((63, 1), ["1"] * 63 + ["2"]),
        ((64, 1), None),
        ((65535, 65534), None),
        ((65535, 0), ["1"]),
    ],
)
def test_weights_are_places(weights, chosen):
    wishes = {"scheduler": "wrr", "weights": tuple(zip(("web-1", "web-2"), weights, strict=True))}
    (frontend,) = plan(service(**wishes), ONE, TWO, data_path=DataPath.AUTO).values()
    own = elements(frontend).own
    found = sorted(str(to)[7] for slot, to in own.items() if slot.set in ENDPOINTS.values())
    if chosen is None:
        assert (frontend.path, frontend.path_reason) == (Path.IPVS, f"{TOO_LARGE}: only with IPVS")
        assert not found
    else:
        assert (frontend.path, found) == (Path.SHORT, chosen)
        assert own[ElementKey(FRONTENDS[4], WEB)] == f"goto endpoints_{len(chosen)}"
        assert {slot.rest for slot in own if slot.set in ENDPOINTS.values()} == set(range(len(chosen)))


def test_rr_knows_of_weights_only_that_0_is_none():
    weights = (("web-1", 3), ("web-2", 200))
    (frontend,) = plan(service(weights=weights), ONE, TWO, data_path=DataPath.AUTO).values()
    assert places(frontend.destinations, frontend.server.scheduler) == tuple(frontend.destinations)
    (frontend,) = plan(service(weights=(("web-1", 0),)), ONE, TWO, data_path=DataPath.AUTO).values()
    assert list(map(str, places(frontend.destinations, "rr"))) == ["10.244.2.2:8080"]


def test_where_all_endpoints_are_in_maintenance_new_connections_are_refused():
    svc = service(
        weights=(("web-1", 0),), external_local=True, load_balancer_ips=["203.0.113.5"], internal_local=True
    )
    found = plan(svc, ONE, TWO, data_path=DataPath.AUTO)
    balancer = elements(found[key("203.0.113.5:80")]).own
    assert found[WEB].verdict is found[key("203.0.113.5:80")].verdict is PacketVerdict.REFUSE
    assert balancer[ElementKey(SHORT_VIEWS[4], key("203.0.113.5:80"))] == "goto internal_endpoints_1"
    by_ipvs = plan(svc, ONE, TWO)
    assert by_ipvs[WEB].verdict is PacketVerdict.ACCEPT  # IPVS refuses itself


def test_a_moment_without_server_has_each_endpoint_once_where_weights_are_large():
    wishes = {"scheduler": "wrr", "weights": (("web-1", 64),)}
    (frontend,) = plan(service(**wishes), ONE, TWO).values()
    assert may_be_balanced_by_rules(frontend)
    assert dict(balanced_by_rules(frontend))[ElementKey(FRONTENDS[4], WEB)] == "goto endpoints_2"
    (frontend,) = plan(service(weights=(("web-1", 0), ("web-2", 0))), ONE, TWO).values()
    assert not may_be_balanced_by_rules(frontend)


def test_so_many_endpoints_have_a_chain():
    pods = [f"10.244.1.{number}" for number in range(1, MOST_ENDPOINTS + 2)]
    assert path(service(), *pods[:-1])[0] is Path.SHORT
    assert path(service(), *pods) == (Path.IPVS, f"more than {MOST_ENDPOINTS} endpoints: only with IPVS")


def test_as_many_endpoints_of_this_node_have_one_as_well():
    pods = [f"10.244.1.{number}" for number in range(1, MOST_ENDPOINTS + 2)]
    ended = [endpoint(pod, "node1", ready=False, serving=True, terminating=True) for pod in pods]
    assert path(service(internal_local=True), "10.244.2.2", *ended)[0] is Path.IPVS


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
@pytest.mark.parametrize("policy", [{}, {"source_ranges": ["10.0.0.0/8"]}, {"external_local": True}])
def test_all_addresses_of_a_service_take_the_same_path(protocol, policy):
    more = {"load_balancer_ips": ["203.0.113.5"], "external_ips": ["198.51.100.9"], **policy}
    svc = service(ports=((80, 30080, protocol),), **more)
    found = plan(svc, data_path=DataPath.AUTO)
    assert len(found) == 4 + len(node().nodeport_addresses) - 1
    assert {(f.path, f.path_reason) for f in found.values()} == {(Path.SHORT, "")}
    assert {f.path for f in plan(svc).values()} == {Path.IPVS}


def test_the_internal_view_has_endpoints_and_no_server():
    more = {"load_balancer_ips": ["203.0.113.5"], "external_local": True, "internal_local": True}
    found = plan(service(**more), data_path=DataPath.AUTO)
    assert len(found) == 2  # no server on a synthetic port
    balancer = found[key("203.0.113.5:80")]
    assert [str(d) for d in balancer.destinations] == ["10.244.1.1:8080"]
    assert sorted(map(str, balancer.internal)) == ["10.244.1.1:8080", "10.244.2.2:8080"]
    assert balancer.views == ()
    assert found[WEB].internal == {}
    assert [str(d) for d in found[WEB].destinations] == ["10.244.1.1:8080"]
