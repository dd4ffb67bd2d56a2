"""The two forms of VIPs on a live node: what each changes, and that switching loses no connection."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab.cases import OWN, ask_everything, wrong
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import Conversation, ProbeQuestion, probe
from tests.lab.published import PublishedServices, cluster_ip
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

TABLE = f"""
    p12    | ClusterIP                                  | p11 p21 | {OWN}
    p12    | NodePort LoadBalancer externalIP           | p11 p21 | node1
    client | ClusterIP NodePort LoadBalancer externalIP | p11 p21 | node1
    node1  | ClusterIP NodePort LoadBalancer externalIP | p11 p21 | node1
"""


@pytest.fixture(scope="module")
def services(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedServices]:
    services = PublishedServices(session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("vips"))))
    services.folder.write_nodes(session_lab)
    services.put("web", PublishedServices.WEB, "p11 p21")
    for pod in session_lab.pods:
        session_lab.responder.listen(pod, 8080)
    yield services
    session_lab.take_back()


def served_with(services: PublishedServices, mode: str, data_path: str = "ipvs") -> None:
    """Start a proxy on node1 in a mode, after whatever ran before it."""
    for proxy in services.lab.proxies:
        proxy.kill()
    node = services.lab.nodes[0]
    args = [*DEFAULT_PROXY_ARGS, f"--vip-mode={mode}", f"--data-path={data_path}", "--ipvs-sync-period=3s"]
    started = services.lab.proxy(node, services.folder.path, args, wait=False)
    started.wait_for(messages.SYNCED)


def addresses_of_the_link(services: PublishedServices) -> str:
    return services.lab.run(services.lab.nodes[0], ["ip", "-o", "address", "show", "kube-ipvs0"])


def local_routes(services: PublishedServices, family: int) -> str:
    return services.lab.run(
        services.lab.nodes[0], ["ip", f"-{family}", "route", "show", "table", "local", "proto", "118"]
    )


def test_switching_forms_loses_no_connection(services: PublishedServices) -> None:
    lab = services.lab
    served_with(services, "address")
    questions = [
        ProbeQuestion(asker.netns, *services.ways(PublishedServices.WEB, family)[way])
        for family in (4, 6)
        for way in ("ClusterIP", "LoadBalancer")
        for asker in (lab.client, lab.host("p12"), lab.nodes[0])
    ]
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(question, timeout=10)) for question in questions]
        served_by = [talk.ask().name for talk in talks]
        assert set(served_by) == {"p11", "p21"}
        for mode in ("route", "address"):
            served_with(services, mode)
            assert [talk.ask().name for talk in talks] == served_by, mode


@pytest.mark.parametrize("data_path", ["ipvs", "auto"])
@pytest.mark.parametrize("mode", ["address", "route"])
def test_both_forms_serve_every_way_in(services: PublishedServices, mode: str, data_path: str) -> None:
    served_with(services, mode, data_path)
    for family in (4, 6):
        assert wrong(ask_everything(services.lab, services.cases(PublishedServices.WEB, family, TABLE))) == []
        address = cluster_ip(PublishedServices.WEB, family)
        assert (f"{address}/" in addresses_of_the_link(services)) is (mode == "address")
        assert (address in local_routes(services, family)) is (mode == "route")


@pytest.mark.parametrize("mode", ["address", "route"])
def test_the_link_may_be_set_up_and_down(services: PublishedServices, mode: str) -> None:
    """A link that goes down loses its IPv6 addresses; the next verification puts them back."""
    served_with(services, mode)
    client = services.lab.client.netns
    for state in ("up", "down"):
        services.lab.run(services.lab.nodes[0], ["ip", "link", "set", "kube-ipvs0", state])
        for family in (4, 6):
            address = cluster_ip(PublishedServices.WEB, family)
            if (state, family, mode) == ("down", 6, "address"):
                eventually(lambda address=address: probe(client, address, 80).outcome == "answered")
            else:
                assert probe(client, address, 80, timeout=6).outcome == "answered", (state, family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("mode", ["address", "route"])
def test_the_source_that_a_process_of_the_node_takes(services: PublishedServices, mode: str, family: int) -> None:
    """With an address, and with any IPv4 route of ours, it is the VIP; an IPv6 route leaves the node's own."""
    served_with(services, mode)
    result = probe(services.lab.nodes[0].netns, cluster_ip(PublishedServices.WEB, family), 80)
    is_vip = result.local_source == cluster_ip(PublishedServices.WEB, family)
    assert is_vip is (mode == "address" or family == 4)
