"""The schedulers mh and sh: endpoints that are removed, or drain, never cost a new connection.

Both look a client up in a table of endpoints. Without their flags they would refuse a connection whose place in
the table is an endpoint of weight 0.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.probe import Conversation, ProbeQuestion, Result, probe_many
from tests.lab.published import cluster_ip
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

ALL = ("p11", "p12", "p21", "p22")


class HashedService:
    """One Service, the proxy of node1, and a client of every kind."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder

    def put(self, *pods: str) -> None:
        ports = [port(80, 8080)]
        slices = dual_slices(self.lab, "web", ports, map(self.lab.host, pods))
        self.folder.write("web", service("web", ports, [cluster_ip(95, f) for f in (4, 6)]), *slices)

    def question(self, asker: str, family: int) -> ProbeQuestion:
        return ProbeQuestion(self.lab.host(asker).netns, cluster_ip(95, family), 80)

    def ask(self, times: int = 8) -> list[Result]:
        """Ask from everywhere through node1, many times each."""
        places = [host for host in ("client", "node1", "p11", "p12") for _ in range(times)]
        return probe_many([self.question(host, family) for host in places for family in (4, 6)])


@pytest.fixture(scope="module", params=["mh", "sh"])
def hashed(
    request: pytest.FixtureRequest, session_lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HashedService]:
    lab = session_lab
    hashed = HashedService(lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("hashing"))))
    hashed.folder.write_nodes(lab)
    hashed.put(*ALL)
    for pod in lab.pods:
        lab.responder.listen(pod, 8080)
    lab.proxy(lab.nodes[0], hashed.folder.path, [*DEFAULT_PROXY_ARGS, f"--ipvs-scheduler={request.param}"])
    yield hashed
    lab.take_back()


def names(results: list[Result]) -> set[str]:
    return {result.name or result.outcome for result in results}


def test_no_connection_is_refused_while_endpoints_drain_and_go(hashed: HashedService) -> None:
    assert names(hashed.ask()) <= set(ALL)
    talks = [Conversation(hashed.question(host, family)) for host in ("client", "p12") for family in (4, 6)]
    held = [talk.ask().name for talk in talks]
    left = list(ALL)
    for gone in sorted(set(held)):
        left.remove(gone)
        if not left:
            break
        hashed.put(*left)
        eventually(lambda: gone not in names(hashed.ask(2)), 60)  # noqa: B023
        assert names(hashed.ask()) <= set(left)
    assert [talk.ask().name for talk in talks] == held
    for talk in talks:
        talk.socket.close()
    hashed.put(*ALL)
    eventually(lambda: names(hashed.ask(2)) <= set(ALL), 60)
