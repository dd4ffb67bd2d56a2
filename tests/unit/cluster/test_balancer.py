"""The stand-in for a load balancer controller: whom it serves, with which address, over which nodes."""

from __future__ import annotations

import pytest

from tests.cluster import balancer


def service(**spec: object) -> dict:
    return {"metadata": {"name": "a", "namespace": "b"}, "spec": {"type": "LoadBalancer", **spec}}


NODES = [
    {
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": f"172.31.0.1{n}"},
                {"type": "Hostname", "address": "x"},
            ]
        }
    }
    for n in (2, 1)
]


def test_services_of_its_type_and_without_a_class_are_served_until_they_go():
    assert balancer.wants(service())
    assert not balancer.wants(service(loadBalancerClass="other"))
    assert not balancer.wants(service(type="NodePort"))
    gone = service()
    gone["metadata"]["deletionTimestamp"] = "2026-11-29T00:00:00Z"
    assert not balancer.wants(gone)


def test_a_service_has_the_first_address_that_nobody_has():
    assert balancer.free_address([]) == "172.31.100.1"
    assert balancer.free_address(["172.31.100.1", "172.31.100.3"]) == "172.31.100.2"
    with pytest.raises(StopIteration):
        balancer.free_address(f"172.31.100.{n}" for n in range(256))


def never(*_: object) -> bool:
    return False


def second(ip: str, port: int) -> bool:
    return ip.endswith("2") and port == 30999


def test_all_nodes_get_traffic_or_with_the_local_policy_those_that_are_healthy():
    local = service(externalTrafficPolicy="Local", healthCheckNodePort=30999)
    assert balancer.next_hops(service(), NODES, never) == ["172.31.0.11", "172.31.0.12"]
    assert balancer.next_hops(local, NODES, second) == ["172.31.0.12"]
    assert balancer.next_hops(service(), [{}], second) == []


def test_a_client_with_affinity_keeps_to_one_node():
    sticky = service(sessionAffinity="ClientIP")
    assert balancer.next_hops(sticky, NODES, never) == ["172.31.0.11"]
    local = service(sessionAffinity="ClientIP", externalTrafficPolicy="Local", healthCheckNodePort=30999)
    assert balancer.next_hops(local, NODES, second) == ["172.31.0.12"]


def test_a_route_goes_over_all_hops_and_without_one_nowhere():
    assert balancer.route("172.31.100.1", []) == ["route", "replace", "blackhole", "172.31.100.1"]
    words = "route replace 172.31.100.1 src 198.51.100.9 nexthop via 172.31.0.11 nexthop via 172.31.0.12"
    assert balancer.route("172.31.100.1", ["172.31.0.11", "172.31.0.12"]) == words.split()


def test_an_answer_of_a_health_check_counts_at_once_and_silence_the_third_time():
    answers = iter([True, None, None, True, None, None, None, False, True, False])
    health = balancer.Health(lambda *_: next(answers))
    said = [health("172.31.0.11", 30999) for _ in range(10)]
    assert said == [True, True, True, True, True, True, False, False, True, False]
