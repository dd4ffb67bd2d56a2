"""The lab itself, without any proxy: who reaches whom, from which source, and how failures are judged."""

from __future__ import annotations

import pytest

from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.probe import Conversation, ProbeQuestion, probe_many, spread

PROTOS = ["tcp", "udp", pytest.param("sctp", marks=pytest.mark.needs("sctp"))]


@pytest.mark.parametrize("proto", PROTOS)
def test_everyone_reaches_every_pod_with_its_own_source(lab: Lab, proto: str) -> None:
    for pod in lab.pods:
        lab.responder.listen(pod, 8080, proto)
    askers = [lab.client, lab.nodes[0], lab.pods[0]]
    asked = [(asker, pod, family) for asker in askers for pod in lab.pods for family in (4, 6) if asker != pod]
    results = probe_many(
        ProbeQuestion(asker.netns, pod.address(family), 8080, proto) for asker, pod, family in asked
    )
    for (asker, pod, family), result in zip(asked, results, strict=True):
        assert (result.outcome, result.name) == ("answered", pod.name), (asker, pod, result)
        # A node speaks to its own pods from the bridge.
        own = asker is lab.nodes[0] and pod in lab.nodes[0].pods
        cni0 = {4: "10.244.1.1", 6: "fd00:10:244:1::1"}
        assert result.seen_source == (cni0[family] if own else asker.address(family))
        assert result.local_source == result.seen_source


@pytest.mark.parametrize("family", [4, 6])
def test_a_closed_port_is_refused(lab: Lab, family: int) -> None:
    address = lab.pods[0].address(family)
    results = probe_many(ProbeQuestion(lab.client.netns, address, 9, proto) for proto in ("tcp", "udp"))
    assert [result.outcome for result in results] == ["refused", "refused"]


@pytest.mark.needs("nf_tables")
def test_drops_time_out_and_rejects_are_refusals_also_on_the_node_itself(lab: Lab) -> None:
    node, pod = lab.nodes[0], lab.pods[2]
    rules = f"""table inet smoke {{
        chain forward {{ type filter hook forward priority 0; ip daddr {pod.ipv4} th dport 81 drop; }}
        chain output {{ type filter hook output priority 0; ip daddr {pod.ipv4} udp dport 82 reject; }}
    }}"""
    lab.run(node, ["nft", "-f", "-"], rules)
    try:
        asked = [
            ProbeQuestion(lab.client.netns, pod.ipv4, 81),
            ProbeQuestion(lab.client.netns, pod.ipv4, 81, "udp"),
        ]
        asked.append(ProbeQuestion(node.netns, pod.ipv4, 82, "udp"))
        results = probe_many(asked, timeout=2)
    finally:
        lab.run(node, ["nft", "delete table inet smoke"])
    assert [result.outcome for result in results] == ["timeout", "timeout", "refused"]


def test_an_address_without_a_route_is_unreachable(lab: Lab) -> None:
    lab.run(lab.client, ["ip", "route", "add", "unreachable", "198.51.100.9"])
    try:
        assert probe_many([ProbeQuestion(lab.client.netns, "198.51.100.9", 80)])[0].outcome == "unreachable"
    finally:
        lab.run(lab.client, ["ip", "route", "del", "unreachable", "198.51.100.9"])


def test_the_client_can_be_routed_through_another_node(lab: Lab) -> None:
    vips = {4: "203.0.113.99", 6: "2001:db8:113::99"}
    for family, vip in vips.items():
        length = 32 if family == 4 else 128
        lab.run(lab.nodes[1], ["ip", "address", "add", f"{vip}/{length}", "dev", "lo"])
        lab.route_client_via(lab.nodes[1], f"{vip}/{length}")
        assert probe_many([ProbeQuestion(lab.client.netns, vip, 9)])[0].outcome == "refused"
        lab.run(lab.nodes[1], ["ip", "address", "del", f"{vip}/{length}", "dev", "lo"])


def test_connections_stay_open_and_listeners_stop_and_start(lab: Lab) -> None:
    listener = lab.responder.listen(lab.pods[0], 8080)
    question = ProbeQuestion(lab.client.netns, lab.pods[0].ipv4, 8080)
    with Conversation(question) as talk:
        assert [talk.ask().name for _ in range(3)] == ["p11"] * 3
        listener.stop()
        assert talk.ask().outcome == "refused"
    assert spread(question, 3) == {"refused": 3}
    listener.start()
    assert spread(question, 3) == {"p11": 3}


def test_nodes_forward_and_filter_bridged_traffic(lab: Lab) -> None:
    for node in lab.nodes:
        for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
            assert netns.get_sysctl(node.netns, name) == "1"
