"""The stand-in for a load balancer controller: whom it serves, with which address, over which nodes."""

from __future__ import annotations

import pytest

from tests.cluster import balancer, spreading


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


def test_a_service_has_the_first_address_that_no_one_has():
    assert balancer.free_address([]) == "172.31.100.1"
    assert balancer.free_address(["172.31.100.1", "172.31.100.3"]) == "172.31.100.2"
    with pytest.raises(StopIteration):
        balancer.free_address(f"172.31.100.{n}" for n in range(256))


def test_a_service_has_the_address_that_it_asks_for():
    first = {**service(), "status": {"loadBalancer": {"ingress": [{"ip": "172.31.100.1"}]}}}
    assert balancer.address_for(service(loadBalancerIP="172.31.100.77"), [first]) == "172.31.100.77"
    assert balancer.address_for(service(), [first]) == "172.31.100.2"


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


def test_where_no_health_check_port_answers_those_that_are_silent_get_traffic():
    local = service(externalTrafficPolicy="Local", healthCheckNodePort=30999)
    assert balancer.next_hops(local, NODES, never) == []
    assert balancer.next_hops(local, NODES, lambda ip, _: None if ip.endswith("2") else False) == ["172.31.0.12"]


def test_packets_are_marked_for_a_node_and_without_one_dropped():
    text = spreading.ruleset({"172.31.100.1": ["172.31.0.11", "172.31.0.12"], "172.31.100.2": []})
    assert "ip daddr 172.31.100.1 meta mark set jhash" in text
    assert "mod 2 map { 0 : 11, 1 : 12 }" in text
    assert "ip daddr 172.31.100.2 drop" in text
    assert "ct state established ct mark != 0 meta mark set ct mark accept" in text
    assert spreading.routes("172.31.0.12") == [
        ["rule", "add", "fwmark", "12", "lookup", "1012"],
        ["route", "add", "default", "via", "172.31.0.12", "table", "1012"],
    ]


def test_an_answer_of_a_health_check_counts_at_once_and_silence_the_third_time():
    answers = iter([True, None, None, True, None, None, None, False, True, False])
    health = balancer.HealthProbes(lambda *_: next(answers))
    said = [health("172.31.0.11", 30999) for _ in range(10)]
    assert said == [True, True, True, True, True, True, None, False, True, False]
