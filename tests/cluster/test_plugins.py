"""Network plugins beside us, each with host ports: what they do to packets, and what we do, do not meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import application, lifecycle, place, programs, proxies
from tests.cluster.application import HTTP, RunningApplication, daemonset
from tests.cluster.binaries import Kube
from tests.cluster.daemonset import DAEMONSET, SYSTEM, judge, ready
from tests.cluster.direct import SECONDS, DirectVideo
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster
from tests.cluster.traffic import Origin, flowing, run_at

NAME = "plugins"
SERVICE_PORT = 80
"""A host port of this number would take the connections to VIPs, which are addresses of the node."""
HOST_PORT = 8088
REQUESTS = 20


@pytest.fixture(params=place.PLUGINS, scope="module")
def beside(request: pytest.FixtureRequest, kube: Kube) -> Iterator[RunningApplication]:
    if request.param == place.FLANNEL and not kube.has(place.FLANNEL):
        pytest.skip(f"{kube.folder} has no program {place.FLANNEL} (docs/cluster.md)")
    cluster = Cluster(NAME, plugins=request.param)
    with lifecycle.temporary(cluster, kube, proxies.OURS, ""):
        kubectl = Kubectl(cluster, kube)
        kubectl.apply([ported()])
        running = RunningApplication(cluster, kube, kubectl, application.install(cluster, kubectl))
        kubectl("rollout", "status", "daemonset/ported", f"--timeout={application.READY_SECONDS}s")
        yield running


def ported() -> dict[str, Any]:
    """A pod with host ports on each node."""
    wanted = daemonset("ported", ["netexec", f"--http-port={HTTP}"], probe=True)
    container = wanted["spec"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"containerPort": HTTP, "hostPort": port} for port in (SERVICE_PORT, HOST_PORT)]
    return wanted


def test_host_ports_and_services_are_answered_while_the_proxy_restarts(beside: RunningApplication):
    cluster, targets = beside.cluster, beside.application.targets()
    for where, wanted in targets.items():
        wanted += [f"new:{each.ips[0]}:{HOST_PORT}" for each in cluster.nodes if each != where.node]
    with flowing(cluster, targets) as traffic:
        beside.kubectl("rollout", "restart", DAEMONSET, SYSTEM)
        ready(beside)
    judge(traffic)


def test_a_host_port_with_the_number_of_a_services_port_takes_none_of_its_connections(beside: RunningApplication):
    cluster, application = beside.cluster, beside.application
    vips = (application.ips["cluster"], application.balanced)
    for node in cluster.nodes:
        for where in (Origin(node), Origin(node, application.clients[node.name])):
            for vip in vips:
                assert {name.split("-")[0] for name in answers(cluster, where, vip)} == {"web"}, (str(where), vip)
            names = answers(cluster, where, next(each.ips[0] for each in cluster.nodes if each != node))
            assert {name.split("-")[0] for name in names} == {"ported"}, str(where)


@pytest.mark.parametrize("tunnel", ["ipip", "gue"])
def test_pods_answer_clients_directly_beside_the_plugins(beside: RunningApplication, tunnel: str):
    """The page's pods have the VIPs, which the plugins have not given them; the host port has their number."""
    video = DirectVideo(beside, tunnel)
    try:
        video.install()
        for node in beside.cluster.nodes:
            video.route_via(node)
            programs.wait(f"not direct through {node.name}", video.is_direct, SECONDS)
    finally:
        video.remove()


def answers(cluster: Cluster, where: Origin, ip: str) -> list[str]:
    """The names of the pods that answer."""
    script = (
        f"for i in $(seq {REQUESTS}); do curl -sS --max-time 20 http://{ip}:{SERVICE_PORT}/hostname; echo; done"
    )
    return run_at(cluster, where, "sh", "-c", script).stdout.split()
