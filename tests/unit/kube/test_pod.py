"""Pods and Namespaces of the API: which addresses count, and which do not."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_json, decode_mapping, key_of
from ipvsproxy.plan.model import Namespace, Pod

FOUR, SIX = parse_ip("10.244.1.7"), parse_ip("fd00::7")


def pod(spec=None, **status):
    tree = {"metadata": {"name": "web-0", "namespace": "blue"}, "spec": {"nodeName": "node1", **(spec or {})}}
    return decode_mapping(Kind.POD, tree | {"status": status})


def test_both_addresses_of_a_pod():
    both = pod(phase="Running", podIP="10.244.1.7", podIPs=[{"ip": "10.244.1.7"}, {"ip": "fd00::7"}])
    assert both.object == Pod("blue", "web-0", "node1", (FOUR, SIX))
    assert pod(podIP="10.244.1.7").object.addresses == (FOUR,)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (pod({"hostNetwork": True}, podIP="192.0.2.1"), "hostNetwork"),
        (pod(phase="Succeeded", podIP="10.244.1.7"), "ended"),
        (pod(phase="Failed", podIP="10.244.1.7"), "ended"),
        (pod(phase="Pending"), "no address yet"),
        (pod(podIP=""), "no address yet"),
    ],
)
def test_pods_without_an_address_of_their_own(made, reason):
    assert made.object is None
    assert reason in made.skipped


def test_an_address_that_is_none_is_left_out():
    made = pod(podIPs=[{"ip": "10.244.1.7"}, {"ip": "none"}])
    assert made.object.addresses == (FOUR,)
    assert "status.podIPs" in made.complaints[0]


def test_a_namespace_is_its_labels():
    text = b'{"metadata": {"name": "blue", "labels": {"a": "b"}}, "spec": {"finalizers": ["kubernetes"]}}'
    made = decode_json(Kind.NAMESPACE, text).object
    assert made == Namespace("blue", {"a": "b"})
    assert made.key == "blue"
    assert decode_mapping(Kind.NAMESPACE, {"metadata": {"name": "blue"}}).object.labels == {}


def test_namespaces_are_named_without_a_namespace():
    found = decode_mapping(Kind.NAMESPACE, {"metadata": {"name": "blue"}}).object
    assert key_of(Kind.NAMESPACE, type("Meta", (), {"name": found.name, "namespace": None})) == "blue"
