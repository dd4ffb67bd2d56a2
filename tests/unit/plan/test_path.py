"""Which Services may take the short path, and why others may not."""

import pytest

from ipvsproxy.config import DataPath, DetectLocalMode
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import Path
from ipvsproxy.ruleset.schema import MOST_ENDPOINTS
from tests.support.build import config, key, node, service, slice_of

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
        ({"drain_seconds": 30.0}, {}, "a drain timeout"),
        ({}, {"drain_timeout": 30.0}, "a drain timeout"),
        ({"ports": ((80, 0, "SCTP"),)}, {}, "SCTP"),
        ({"internal_local": True}, {}, "internalTrafficPolicy Local"),
        (
            {},
            {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE},
            "local pods that are recognised by their link",
        ),
        ({"external_local": True, "external_ips": ["198.51.100.9"]}, {}, "externalTrafficPolicy Local"),
        ({"one_packet": True, "ports": ((80, 0, "UDP"),)}, {}, "UDP packets balanced one by one"),
    ],
)
def test_what_only_ipvs_has_keeps_a_service_there(wishes, settings, reason):
    assert path(service(**wishes), **settings) == (Path.IPVS, f"{reason}: only with IPVS")


def test_so_many_endpoints_have_a_chain():
    pods = [f"10.244.1.{number}" for number in range(1, MOST_ENDPOINTS + 2)]
    assert path(service(), *pods[:-1])[0] is Path.SHORT
    assert path(service(), *pods) == (Path.IPVS, f"more than {MOST_ENDPOINTS} endpoints: only with IPVS")


def test_other_addresses_of_the_service_stay_with_ipvs():
    svc = service(ports=((80, 30080),), load_balancer_ips=["203.0.113.5"])
    found = {str(frontend.key): frontend.path for frontend in plan(svc, data_path=DataPath.AUTO).values()}
    assert {name for name, way in found.items() if way is Path.SHORT} == {"10.96.0.10:80/TCP"}
    assert len(found) > 1
    reasons = {f.path_reason for f in plan(svc, data_path=DataPath.AUTO).values() if f.path is Path.IPVS}
    assert reasons == {"NodePorts, external and load balancer addresses: only with IPVS"}
    assert {f.path_reason for f in plan(svc).values()} == {""}
