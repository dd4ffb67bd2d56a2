"""Back to kube-proxy, away altogether, and beside programs with virtual servers of their own."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipvsproxy.base import messages
from tests.lab.kube_proxy_state import LEAVE, TOOLS, Served, finish_ipvs_mode
from tests.lab.lab import Lab, LabNode
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.probe import Conversation, ProbeQuestion, Result, probe
from tests.lab.proxy import LabProxy
from tests.lab.published import balancer, cluster_ip, published
from tests.lab.takeover import (
    ARGUMENTS,
    CLEANUP,
    ask,
    asking,
    leftovers,
    listings,
    questions,
)
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", *TOOLS)

JSON = "--logging-format=json"
HANDOVER = [*CLEANUP, "--cleanup-handover", JSON]
REMOVED = messages.FOREIGN_REMOVED
RANGED, LAST_OF_RANGE = 91, 30010
ADDRESSES = (cluster_ip, balancer)


@contextlib.contextmanager
def asking_all(asked: list[ProbeQuestion]) -> Iterator[list[list[Result]]]:
    """Open new connections all the time, one after the other to each; yields what becomes of them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(asking(question)) for question in asked]


@contextlib.contextmanager
def talking(asked: list[ProbeQuestion]) -> Iterator[list[Conversation]]:
    """Keep a connection open to each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Conversation(question, timeout=20)) for question in asked]


def lost(results: list[Result]) -> list[str]:
    return [result.outcome for result in results if result.outcome != "answered"]


def begin_nftables_mode(lab: Lab, node: LabNode) -> None:
    """What a kube-proxy in this mode does first (contract 1.15)."""
    lab.run(node, ["ipvsadm", "-C"])
    lab.run(node, ["ip", "link", "delete", "kube-ipvs0"])


def begin_handover(lab: Lab, node: LabNode, proxy: LabProxy, log: pathlib.Path) -> LabProxy:
    """Stop the proxy beside a cleanup that waits for a kube-proxy, and return that one."""
    handover = LabProxy(node.netns, HANDOVER, log)
    lab.proxies.append(handover)
    handover.start()
    handover.wait_for(messages.WAITING_FOR_PROXY)
    proxy.stop()
    handover.wait_for(messages.WAITING_FOR_RULES)
    return handover


def rules_are_gone(lab: Lab, node: LabNode) -> bool:
    return "ipvsproxy" not in lab.run(node, ["nft", "list", "tables"])


@pytest.mark.parametrize(("mode", "form"), [*((mode, "address") for mode in LEAVE), ("nftables", "route")])
def test_a_handover_to_kube_proxy_loses_no_new_connection(
    lab: Lab,
    node: LabNode,
    manifests: ManifestFolder,
    served: tuple[Served, ...],
    mode: str,
    form: str,
    tmp_path: pathlib.Path,
) -> None:
    proxy = lab.proxy(node, manifests.path, [*ARGUMENTS, f"--vip-mode={form}"])
    asked = questions(lab, node, served)
    others = [question for question in asked if question.netns != node.netns]
    own = [question for question in asked if question.netns == node.netns]
    assert ask(asked) == ["answered"]
    with asking_all(others) as results, asking_all(own) as of_node, Conversation(others[0], timeout=20) as talk:
        served_by = talk.ask().name
        handover = begin_handover(lab, node, proxy, tmp_path / "handover.log")
        assert ask(asked) == ["answered"]
        if mode == "nftables":
            begin_nftables_mode(lab, node)
            assert ask(asked) == ["answered"]
        (finish_ipvs_mode if mode == "ipvs" else LEAVE[mode])(lab, node, served)
        eventually(lambda: rules_are_gone(lab, node))
        with talking(own) as late:  # while the VIPs are still there, and longer than these
            late_served_by = [each.ask().name for each in late]
            assert set(late_served_by) <= {"p11", "p21"}
            assert handover.end() == 0, handover.text()
            assert [each.ask().name for each in late] == late_served_by
        assert ask(asked) == ["answered"]
        # Open connections through IPVS go on only where the servers stay.
        assert talk.ask().name == (served_by if mode == "ipvs" else "")
        eventually(lambda: min(map(len, [*results, *of_node])) > 10)
    assert [lost(one) for one in (*results, *of_node)] == [[]] * len(asked)
    assert "ipvsproxy" not in lab.run(node, ["nft", "list", "ruleset"])
    # A kube-proxy of mode ipvs owns it now.
    has_link = "kube-ipvs0" in lab.run(node, ["ip", "-o", "link"])
    assert has_link is (mode == "ipvs")
    assert leftovers(lab, node)


def test_open_connections_wait_while_a_kube_proxy_has_taken_the_servers_away(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], tmp_path: pathlib.Path
) -> None:
    """Without any server IPVS is off the hooks: their packets must not come to the host, which resets them."""
    proxy = lab.proxy(node, manifests.path, ARGUMENTS)
    asked = questions(lab, node, served)
    with talking(asked) as talks, ThreadPoolExecutor(len(asked)) as pool:
        before = [talk.ask().name for talk in talks]
        handover = begin_handover(lab, node, proxy, tmp_path / "handover.log")
        handover.process.send_signal(signal.SIGSTOP)  # so that all of them meet the node without servers
        begin_nftables_mode(lab, node)
        answers = [pool.submit(talk.ask) for talk in talks]
        time.sleep(2)
        assert not any(answer.done() for answer in answers)
        handover.process.send_signal(signal.SIGCONT)
        handover.wait_for(messages.PUT_BACK)
        assert [answer.result().name for answer in answers] == before
        LEAVE["nftables"](lab, node, served)
        assert handover.end() == 0, handover.text()


@pytest.mark.parametrize("form", ["address", "route"])
def test_after_a_handover_that_was_ended_a_proxy_puts_back_what_it_changed(
    lab: Lab,
    node: LabNode,
    manifests: ManifestFolder,
    served: tuple[Served, ...],
    form: str,
    tmp_path: pathlib.Path,
) -> None:
    arguments = [*ARGUMENTS, f"--vip-mode={form}"]
    proxy = lab.proxy(node, manifests.path, arguments)
    before = listings(lab, node)
    handover = begin_handover(lab, node, proxy, tmp_path / "handover.log")
    eventually(lambda: all(has_own_source(lab, node, one) for one in served))
    handover.stop()
    asked = questions(lab, node, served)
    assert ask(asked) == ["answered"]
    with talking(asked) as talks:
        names = [talk.ask().name for talk in talks]
        lab.proxy(node, manifests.path, arguments)
        assert [talk.ask().name for talk in talks] == names
    assert listings(lab, node) == before
    assert "handover" not in lab.run(node, ["nft", "list", "chains"])
    assert lab.run(node, ["sysctl", "-n", "net.ipv4.vs.expire_nodest_conn"]).strip() == "1"
    assert ask(asked) == ["answered"]


def has_own_source(lab: Lab, node: LabNode, served: Served) -> bool:
    """Whether connections of the node to the ClusterIP begin at an address of the node."""
    route = lab.run(node, ["ip", f"-{served.family}", "route", "show", "table", "local", served.cluster_ip])
    return any(f"src {address} " in route for address in served.node_addresses)


@pytest.mark.parametrize("family", [4, 6])
def test_connections_to_ranges_of_ports_wait_while_a_kube_proxy_has_taken_the_servers_away(
    lab: Lab,
    node: LabNode,
    manifests: ManifestFolder,
    served: tuple[Served, ...],
    family: int,
    tmp_path: pathlib.Path,
) -> None:
    """New ones, and open ones: one server with port 0 has all these ports."""
    put_ranged(lab, manifests)
    proxy = lab.proxy(node, manifests.path, ARGUMENTS)
    ways = [(host, address(RANGED, family)) for host in (lab.client.netns, node.netns) for address in ADDRESSES]
    asked = [ProbeQuestion(host, address, LAST_OF_RANGE) for host, address in ways]
    with talking(asked) as talks, ThreadPoolExecutor(2 * len(asked)) as pool:
        before = [talk.ask().name for talk in talks]
        handover = begin_handover(lab, node, proxy, tmp_path / "handover.log")
        assert [talk.ask().name for talk in talks] == before
        handover.process.send_signal(signal.SIGSTOP)
        begin_nftables_mode(lab, node)
        answers = [pool.submit(talk.ask) for talk in talks]
        new = [pool.submit(probe, one.netns, one.address, one.port, timeout=20) for one in asked]
        time.sleep(2)
        assert not any(answer.done() for answer in (*answers, *new))
        handover.process.send_signal(signal.SIGCONT)
        handover.wait_for(messages.PUT_BACK)
        assert [answer.result().name for answer in answers] == before
        assert {answer.result().outcome for answer in new} == {"answered"}


def put_ranged(lab: Lab, manifests: ManifestFolder) -> None:
    """Serve a range of ports at the addresses of one Service."""
    pods, ports = [lab.host(name) for name in ("p11", "p21")], [port(80, 8080)]
    made = published("ranged", RANGED, ports)
    made["metadata"]["annotations"] = {"ipvsproxy.io/port-range": f"30000-{LAST_OF_RANGE}"}
    manifests.write("ranged", made, *dual_slices(lab, "ranged", ports, pods))
    for pod in pods:
        lab.responder.listen(pod, LAST_OF_RANGE)


def test_after_an_uninstall_that_waited_for_the_proxy_the_node_is_as_before(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...], tmp_path: pathlib.Path
) -> None:
    before = listings(lab, node)
    proxy = lab.proxy(node, manifests.path, ARGUMENTS)
    cleanup = LabProxy(node.netns, [*CLEANUP, "--cleanup-wait", JSON], tmp_path / "cleanup.log")
    lab.proxies.append(cleanup)
    cleanup.start()
    cleanup.wait_for(messages.WAITING_FOR_PROXY)
    assert ask(questions(lab, node, served)) == ["answered"]
    proxy.stop()
    assert cleanup.end() == 0, cleanup.text()
    assert listings(lab, node) == before
    # A kube-proxy that comes later finds nothing that refuses its Services.
    LEAVE["nftables"](lab, node, served)
    assert ask(questions(lab, node, served)) == ["answered"]


def test_a_handover_leaves_a_node_alone_that_never_had_an_ipvsproxy(
    lab: Lab, node: LabNode, served: tuple[Served, ...]
) -> None:
    LEAVE["nftables"](lab, node, served)
    lab.run(node, ["ipvsadm", "-A", "-t", "192.0.2.50:6443", "-s", "wlc"])
    before = listings(lab, node)
    said = lab.run(node, ["sh", "-c", f"{' '.join(HANDOVER)} 2>&1"])
    assert messages.NOTHING_FOUND in said
    assert listings(lab, node) == before


def test_a_virtual_server_of_another_program_is_removed_by_name_unless_it_is_excluded(
    lab: Lab, node: LabNode, manifests: ManifestFolder, served: tuple[Served, ...]
) -> None:
    proxy = lab.proxy(node, manifests.path, ARGUMENTS)
    # What stands on the node beforehand is excluded, or belongs to a firewall mark.
    assert not proxy.events(REMOVED)
    for times in (1, 2):
        lab.run(node, ["ipvsadm", "-A", "-t", "192.0.2.50:6443", "-s", "wlc"])
        line = proxy.wait_for(REMOVED, times)
        told = [line[key] for key in ("address", "port", "protocol", "scheduler", "times")]
        assert told == ["192.0.2.50", 6443, "TCP", "wlc", times]
        assert "--ipvs-exclude-cidrs=192.0.2.50/32" in str(line["keptBy"])
    left = lab.run(node, ["ipvsadm", "-Sn"])
    assert "192.0.2.50" not in left
    assert "10.98.0.1:80" in left
    assert ask(questions(lab, node, served)) == ["answered"]
