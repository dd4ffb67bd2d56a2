"""Steady requests: no source port comes back, nor has another target it."""

from __future__ import annotations

import itertools

import pytest

from tests.cluster import steady
from tests.cluster.application import Application
from tests.cluster.place import Cluster
from tests.cluster.traffic import Origin, numbers


def ports(index: int, count: int) -> list[int]:
    return list(itertools.islice(steady.source_ports(index), count))


def test_a_port_comes_back_after_all_others_and_is_of_one_target(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "monotonic", lambda: 12345.0)
    assert len(set(ports(0, steady.PORTS))) == steady.PORTS
    assert not set(ports(0, steady.PORTS)) & set(ports(1, steady.PORTS))


def test_a_process_that_follows_another_one_has_other_ports(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "monotonic", lambda: 1000.9)
    before = ports(3, 4)  # in 3.1 seconds, the last one a moment ago
    monkeypatch.setattr(steady.time, "monotonic", lambda: 1004.0)
    assert not set(before) & set(ports(3, 120))


def test_a_node_and_its_pods_share_no_port_and_none_that_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "monotonic", lambda: 12345.0)
    cluster = Cluster("lab", 2)
    clients = {node.name: f"10.244.{index}.9" for index, node in enumerate(cluster.nodes, 1)}
    wanted = Application(cluster, {"cluster": "10.96.0.1", "sticky": "10.96.0.2"}, "a", "b", clients).targets()
    first = numbers(wanted)
    for node in cluster.nodes:
        places = [place for place in wanted if place.node == node]
        assert {bool(place.pod_ip) for place in places} == {False, True}
        of_targets = [
            set(ports(first[place] + index, steady.PORTS))
            for place in places
            for index in range(len(wanted[place]))
        ]
        all_ports = set().union(*of_targets)
        assert len(all_ports) == sum(map(len, of_targets))
        assert max(all_ports) + 5 * steady.PORTS < 30000  # further ones of trials, below node ports
    assert first[Origin()] == 0
