"""The way from kube-proxy and back, node by node, by the recipe of deploy/switch.md, under steady requests.

SERVICES is how many Services there are beside those that are asked; 500 if nothing is said.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.cluster import application, lifecycle, nodes, programs, proxies, switching
from tests.cluster.application import Application, RunningApplication
from tests.cluster.binaries import Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster
from tests.cluster.traffic import OriginResult, flowing

NAME = "switch"
SYNC_SECONDS = 900
SERVICES = int(os.environ.get("SERVICES") or 500)


@pytest.fixture(params=proxies.MODES, scope="module")
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def switching_from(mode: str, kube: Kube) -> Iterator[RunningApplication]:
    """A cluster with kube-proxy in each of its modes, and all that the recipe prepares.

    NAME is of one that is up; it stays, with kube-proxy in the end.
    """
    name = os.environ.get("NAME")
    cluster = lifecycle.remembered(name)[0] if name else Cluster(NAME)
    up = contextlib.nullcontext() if name else lifecycle.temporary(cluster, kube, proxies.THEIRS, mode)
    with up:
        kubectl = Kubectl(cluster, kube)
        if name:
            proxies.replace(cluster, kube, kubectl, proxies.THEIRS, mode)
        installed = application.install(cluster, kubectl)
        kubectl.apply(switching.kinds(SERVICES))
        switching.prepare(cluster, kubectl)
        programs.wait("kube-proxy does not serve", lambda: serves(cluster, installed), SYNC_SECONDS)
        yield RunningApplication(cluster, kube, kubectl, installed)


def serves(cluster: Cluster, installed: Application) -> bool:
    """Whether all is answered before anything happens: it takes kube-proxy a while to have so many Services."""
    with flowing(cluster, installed.targets()) as traffic:
        nodes.run(cluster, cluster.nodes[0], "sleep", "5")
    print(f"before\n{traffic}")
    return not traffic.failed() and not traffic.silent()


def is_cut(result: OriginResult) -> bool:
    """An open connection that is reset once, after which the next one goes on."""
    return result.target.startswith("kept:") and [
        "ConnectionResetError" in error for _, error in result.failures
    ] == [True]


@pytest.mark.parametrize("direction", ["to", "back"])
def test_no_request_fails_on_the_way(switching_from: RunningApplication, mode: str, direction: str):
    """Open connections stay open, but on the way back to the modes that do not know IPVS (switch.md)."""
    cluster, kube, _, installed = switching_from
    for node in cluster.nodes:
        with flowing(cluster, installed.targets()) as traffic:
            print(switching.move(cluster, kube, node, direction))
        print(f"{direction} {node.name}\n{traffic}")
        cut = [result for result in traffic.failed() if is_cut(result)]
        assert not cut or (direction == "back" and mode != "ipvs"), "\n".join(map(str, cut))
        failed = [result for result in traffic.failed() if result not in cut]
        assert not failed, "\n".join(map(str, failed))
        assert not traffic.silent()
