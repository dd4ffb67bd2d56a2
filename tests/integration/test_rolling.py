"""All endpoints of a Service replaced one by one under load: no request is lost, long connections finish."""

from __future__ import annotations

import pathlib
import sys
import warnings
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.conformance.forked import ForkedProxy
from tests.conformance.proxy import Zygote
from tests.lab.apiservers import LabApiServer, open_server
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.load import Load
from tests.lab.manifests import ManifestFolder, node_object
from tests.lab.proxy import LabProxy
from tests.lab.rolling import Deployment, only, ways
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")


def roll_under_load(lab: Lab, deployment: Deployment, rounds: int, *, surge: bool, reset: bool = True) -> Load:
    with Load(ways(lab), reset=reset) as load:
        for number in range(rounds):
            load.mark(f"round {number}")
            deployment.replace_all(surge=surge)
        deployment.wait_until_used()
    return load


def judge(load: Load, lab: Lab) -> None:
    print(load.report())
    assert load.failures == [], load.report()
    assert set(load.answered) == set(ways(lab))
    assert load.finished


@pytest.mark.parametrize(
    ("surge", "data_path"),
    [(True, "ipvs"), (False, "ipvs"), (True, "auto"), pytest.param(False, "auto", marks=pytest.mark.slow)],
)
def test_no_request_is_lost(
    spacious_lab: Lab, folder: ManifestFolder, zygote: Zygote, surge: bool, data_path: str
) -> None:
    with Deployment(spacious_lab, lambda *objects: folder.write("rolling", *objects)) as deployment:
        deployment.publish()
        path = f"--data-path={data_path}"
        ForkedProxy(zygote, spacious_lab, spacious_lab.nodes[0], folder.path, path).started()
        load = roll_under_load(spacious_lab, deployment, 5, surge=surge)
    judge(load, spacious_lab)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_request_is_lost_for_long(spacious_lab: Lab, folder: ManifestFolder, zygote: Zygote) -> None:
    """Long enough for connections that were closed in peace to be forgotten and addresses to come back."""
    with Deployment(spacious_lab, lambda *objects: folder.write("rolling", *objects)) as deployment:
        deployment.publish()
        ForkedProxy(zygote, spacious_lab, spacious_lab.nodes[0], folder.path).started()
        load = roll_under_load(spacious_lab, deployment, 60, surge=True, reset=False)
    judge(load, spacious_lab)


LOCAL_WAYS = ("client -> LoadBalancer", "client -> NodePort", "pod -> ClusterIP", "node -> LoadBalancer")


@pytest.mark.parametrize("data_path", ["ipvs", pytest.param("auto", marks=pytest.mark.slow)])
def test_no_request_is_lost_with_local_policies(
    spacious_lab: Lab, folder: ManifestFolder, zygote: Zygote, data_path: str
) -> None:
    """With one endpoint on the node, only one that starts before the old one goes can save outside clients."""
    policies = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    publish = lambda *objects: folder.write("rolling", *objects)  # noqa: E731
    with Deployment(spacious_lab, publish, size=2, **policies) as deployment:
        deployment.publish()
        path = f"--data-path={data_path}"
        ForkedProxy(zygote, spacious_lab, spacious_lab.nodes[0], folder.path, path).started()
        with Load(only(ways(spacious_lab), LOCAL_WAYS)) as load:
            for _ in range(4):
                deployment.replace_all()
    assert load.failures == [], load.report()
    assert load.finished


@pytest.fixture
def server(spacious_lab: Lab, tmp_path: pathlib.Path) -> Iterator[LabApiServer]:
    # What these servers do with connections of a proxy that is killed is none of this test's business.
    warnings.simplefilter("ignore", ResourceWarning)
    opened = open_server(spacious_lab.nodes[0].netns, tmp_path)
    yield opened
    opened.close()


def test_no_request_is_lost_while_the_api_server_is_away(
    spacious_lab: Lab, server: LabApiServer, tmp_path: pathlib.Path
) -> None:
    lab, node = spacious_lab, spacious_lab.nodes[0]

    def publish(*objects: ApiObject) -> None:
        for item in objects:
            server.put(item)

    server.put(node_object(node))
    with Deployment(lab, publish) as deployment:
        deployment.publish()
        flags = [f"--kubeconfig={server.kubeconfig}", "--hostname-override=node1", "--logging-format=json",
                 "--ipvs-min-sync-period=0s", *DEFAULT_PROXY_ARGS]  # fmt: skip
        proxy = LabProxy(node.netns, [sys.executable, "-m", "ipvsproxy", "run", *flags], tmp_path / "proxy.log")
        lab.proxies.append(proxy)
        proxy.start()
        proxy.wait_for(messages.SYNCED)
        with Load(ways(lab)) as load:
            deployment.replace_all()
            load.mark("API server goes away")
            server.go_away()
            proxy.wait_for(messages.WATCH_FAILED)
            load.mark("API server comes back")
            server.come_back()
            deployment.replace_all()
            deployment.wait_until_used()
    proxy.kill()
    judge(load, lab)
