"""NodePorts on the loopback addresses of a node."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import Conversation, ProbeQuestion, probe_many, spread
from tests.lab.proxy import LabProxy
from tests.lab.published import PublishedServices
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ROUTE_LOCALNET = pathlib.Path("/proc/sys/net/ipv4/conf/all/route_localnet")


class LocalNodePorts:
    def __init__(self, lab: Lab, services: PublishedServices, proxy: LabProxy) -> None:
        self.lab, self.services, self.proxy = lab, services, proxy

    def question(self, family: int, number: int = PublishedServices.WEB, proto: str = "tcp") -> ProbeQuestion:
        _, port = self.services.ways(number, family, proto)["NodePort"]
        return ProbeQuestion(self.lab.nodes[0].netns, LOOPBACK[family], port, proto)


def outcome(question: ProbeQuestion) -> str:
    (result,) = probe_many([question])
    return result.outcome


@pytest.fixture(scope="module")
def local(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNodePorts]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("localhost")))
    services = PublishedServices(lab, folder)
    services.write()
    for name in ("p11", "p12", "p21", "p22"):
        lab.responder.listen(lab.host(name), 8080)
    arguments = [*DEFAULT_PROXY_ARGS, "--nodeport-addresses=primary,localhost"]
    made = LocalNodePorts(lab, services, lab.proxy(lab.nodes[0], folder.path, arguments))
    yield made
    made.proxy.kill()
    lab.clean_nodes()
    lab.responder.clear()


@pytest.mark.parametrize("family", [4, 6])
def test_processes_of_the_node_reach_endpoints_on_both_nodes(local: LocalNodePorts, family: int) -> None:
    eventually(lambda: set(spread(local.question(family), 12)) == {"p11", "p21"})
    with netns.inside(local.lab.nodes[0].netns):
        assert ROUTE_LOCALNET.read_text() == "0\n"


@pytest.mark.parametrize("family", [4, 6])
def test_policies_are_those_of_a_process_of_the_node(local: LocalNodePorts, family: int) -> None:
    # externalTrafficPolicy Local binds clients from outside only.
    eventually(lambda: set(spread(local.question(family, PublishedServices.LOCAL), 12)) == {"p21", "p22"})
    sticky = local.question(family, PublishedServices.STICKY)
    eventually(lambda: len(set(spread(sticky, 8))) == 1)


@pytest.mark.parametrize("family", [4, 6])
def test_a_service_without_endpoints_ends_connections(local: LocalNodePorts, family: int) -> None:
    question = local.question(family, PublishedServices.EMPTY)
    eventually(lambda: outcome(question) not in ("answered", "timeout"))


@pytest.mark.parametrize("family", [4, 6])
def test_no_one_else_reaches_what_listens_there(local: LocalNodePorts, family: int) -> None:
    listening = netns.run(local.lab.nodes[0].netns, ["ss", "-Htln"])
    _, port = local.services.ways(PublishedServices.WEB, family)["NodePort"]
    assert [line.split()[3] for line in listening.splitlines() if line.split()[3].endswith(f":{port}")] == [
        f"127.0.0.1:{port}",
        f"[::1]:{port}",
    ]


@pytest.mark.parametrize("family", [4, 6])
def test_many_short_connections(local: LocalNodePorts, family: int) -> None:
    answered: collections.Counter[str] = collections.Counter()
    for _ in range(10):
        answered.update(spread(local.question(family), 100, timeout=20))
    assert sum(answered.values()) == 1000
    assert answered.keys() == {"p11", "p21"}


@pytest.mark.parametrize("family", [4, 6])
def test_an_open_connection_outlives_changes_of_others(local: LocalNodePorts, family: int) -> None:
    with Conversation(local.question(family)) as kept:
        name = kept.ask().name
        local.services.put("more", 90, "p12")
        eventually(lambda: outcome(local.question(family, 90)) == "answered")
        local.services.folder.remove("more")
        eventually(lambda: outcome(local.question(family, 90)) != "answered")
        assert kept.ask().name == name
