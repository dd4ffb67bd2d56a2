"""Which Services may take the short path, and why others may not."""

import pytest

from ipvsproxy.config import DataPath, DetectLocalMode
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import Path
from ipvsproxy.ruleset.schema import MOST_ENDPOINTS
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
        ({"max_connections": (100, 80)}, {}, "weights and limits of endpoints"),
        ({"slow_start_seconds": 30.0}, {}, "slow start of endpoints"),
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
    assert found[WEB].internal == ()
    assert [str(d) for d in found[WEB].destinations] == ["10.244.1.1:8080"]
