"""The image and the DaemonSet of deploy/ under what happens to them in a cluster: no request fails meanwhile."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ipvsproxy.base.messages import SYNCED
from tests.cluster import control_plane, lifecycle, nodes, programs
from tests.cluster.application import HTTP, NODE_PORT, UDP, RunningApplication, daemonset, service
from tests.cluster.daemonset import DAEMONSET, OURS, READY_SECONDS, SYSTEM, is_served, judge, pods, ready
from tests.cluster.place import ClusterNode
from tests.cluster.traffic import Origin, flowing


def restarts(running: RunningApplication, node: str) -> int:
    return pods(running)[node]["status"]["containerStatuses"][0]["restartCount"]


def patch(running: RunningApplication, **spec: object) -> None:
    running.kubectl("patch", DAEMONSET, SYSTEM, "--type=merge", f"--patch={json.dumps({'spec': spec})}")


@contextlib.contextmanager
def rolling_by(running: RunningApplication, strategy: dict[str, object]) -> Iterator[None]:
    """With other limits of a rolling update; put back, since `apply` of the manifests merges its own into them."""
    before = running.kubectl.get(DAEMONSET, SYSTEM)["spec"]["updateStrategy"]
    patch(running, updateStrategy={"type": "RollingUpdate", "rollingUpdate": strategy})
    try:
        yield
    finally:
        patch(running, updateStrategy=before)


def test_the_container_has_the_rights_that_the_manifest_gives_it_and_no_more(running: RunningApplication):
    ready(running)
    for pod in pods(running).values():
        name = pod["metadata"]["name"]
        status = running.kubectl("exec", name, SYSTEM, "--", "cat", "/proc/1/status")
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert int(fields["CapEff"], 16) == 1 << 12  # NET_ADMIN
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        assert "Read-only file system" in refused(running, name, "touch", "/etc/x")
        assert SYNCED in running.kubectl("logs", name, SYSTEM)


def refused(running: RunningApplication, pod: str, *words: str) -> str:
    command = f"{' '.join(words)} 2>&1; true"
    return running.kubectl("exec", pod, SYSTEM, "--", "sh", "-c", command)


def test_requests_are_answered_while_nothing_happens(running: RunningApplication):
    """What fails here is the machine's doing."""
    with flowing(running.cluster, running.application.targets()) as traffic:
        nodes.run(running.cluster, running.cluster.nodes[0], "sleep", "10")
    judge(traffic)


@pytest.mark.parametrize(
    "strategy",
    [{"maxUnavailable": "10%", "maxSurge": 0}, {"maxUnavailable": 0, "maxSurge": 1}],
    ids=["without surge", "with surge"],
)
def test_a_rolling_update_of_the_daemonset_fails_no_request(
    running: RunningApplication, strategy: dict[str, object]
):
    before = {pod["metadata"]["uid"] for pod in pods(running).values()}
    with (
        rolling_by(running, strategy),
        flowing(running.cluster, running.application.targets()) as traffic,
    ):
        running.kubectl("rollout", "restart", DAEMONSET, SYSTEM)
        ready(running)
    judge(traffic)
    assert not before & {pod["metadata"]["uid"] for pod in pods(running).values()}


def test_an_eviction_of_the_pod_fails_no_request(running: RunningApplication):
    name = pods(running)["node1"]["metadata"]["name"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": "kube-system"},
    }
    path = f"/api/v1/namespaces/kube-system/pods/{name}/eviction"
    with flowing(running.cluster, running.application.targets()) as traffic:
        running.kubectl("create", f"--raw={path}", "--filename=-", text=json.dumps(eviction))
        programs.wait("no new pod", lambda: is_served(running, "node1", other_than=name), READY_SECONDS)
    judge(traffic)


@pytest.mark.parametrize("grace", [{}, {"--grace-period": "0", "--force": "true"}], ids=["ended", "killed"])
def test_pods_of_all_nodes_deleted_at_once_fail_no_request(running: RunningApplication, grace: dict[str, str]):
    before = {node: pod["metadata"]["name"] for node, pod in pods(running).items()}
    with flowing(running.cluster, running.application.targets()) as traffic:
        running.kubectl("delete", "pods", SYSTEM, OURS, *(f"{flag}={value}" for flag, value in grace.items()))
        programs.wait(
            "no new pods", lambda: all(is_served(running, *each) for each in before.items()), READY_SECONDS
        )
    judge(traffic)


def test_a_kill_for_want_of_memory_fails_no_request(running: RunningApplication):
    """The kernel kills what uses more than its cgroup may; the kubelet starts the container again."""
    before = restarts(running, "node2")
    node = running.cluster.node("node2")
    with flowing(running.cluster, running.application.targets()) as traffic:
        shrink(running, node)
        programs.wait("not restarted", lambda: restarts(running, "node2") > before, READY_SECONDS)
        programs.wait("not ready", lambda: is_served(running, "node2"), READY_SECONDS)
    judge(traffic)
    last = pods(running)["node2"]["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["reason"] == "OOMKilled"


# A container of the pod that has more than that is the proxy's; the other one holds the namespaces.
_SHRINK = """
for group in /sys/fs/cgroup/kubepods/*/pod"$1"/*/; do
    [ "$(cat "$group/memory.current")" -lt 20000000 ] || echo 20M >"$group/memory.max"
done
"""


def shrink(running: RunningApplication, node: ClusterNode) -> None:
    """Leave our container less memory than it has."""
    uid = pods(running)[node.name]["metadata"]["uid"]
    done = nodes.run(running.cluster, node, "sh", "-c", _SHRINK, "sh", uid)
    assert done.returncode == 0, done.stdout


def test_an_api_server_that_restarts_fails_no_request(running: RunningApplication):
    with flowing(running.cluster, running.application.targets()) as traffic:
        programs.stop(running.cluster, "apiserver")
        control_plane.start_apiserver(running.cluster, running.kube)
        ready(running)
    judge(traffic)


def test_a_drained_node_goes_on_serving(running: RunningApplication):
    """What may leave the node leaves it, and its Service goes on; the proxy, of a DaemonSet, stays."""
    cluster, application = running.cluster, running.application
    with movable(running) as ip:
        targets = {
            place: [*wanted, f"new:{ip}:80"] if place.pod_ip else wanted
            for place, wanted in application.targets().items()
        }
        with flowing(cluster, targets) as traffic:
            running.kubectl("drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=300s")
            running.kubectl("uncordon", "node2")
            running.kubectl("rollout", "status", "deployment/movable", f"--timeout={READY_SECONDS}s")
    judge(traffic)


@contextlib.contextmanager
def movable(running: RunningApplication) -> Iterator[str]:
    """The ClusterIP of pods on both nodes that a drain evicts, and that still answer for a while then."""
    deployment = movable_pods()
    selector = deployment["spec"]["selector"]["matchLabels"]
    running.kubectl.apply([deployment, service("movable", "ClusterIP", selector=selector)])
    try:
        running.kubectl("rollout", "status", "deployment/movable", f"--timeout={READY_SECONDS}s")
        yield running.kubectl.get("service", "movable")["spec"]["clusterIP"]
    finally:
        running.kubectl("delete", "deployment/movable", "service/movable", "--timeout=300s")


def movable_pods() -> dict[str, Any]:
    args = ["netexec", f"--http-port={HTTP}", f"--udp-port={UDP}", "--delay-shutdown=20"]
    deployment = daemonset("movable", args, probe=True)
    pod = deployment["spec"]["template"]["spec"]
    labels = deployment["spec"]["selector"]
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    pod.update(topologySpreadConstraints=[{**apart, "labelSelector": labels}], terminationGracePeriodSeconds=30)
    del pod["tolerations"]
    return {**deployment, "kind": "Deployment", "spec": {**deployment["spec"], "replicas": 2}}


def test_a_node_that_reboots_serves_again_and_others_do_not_notice(running: RunningApplication):
    """Requests in the other node to endpoints there are the ones that cannot fail: with Local policies."""
    cluster, application, node = running.cluster, running.application, running.cluster.node("node2")
    other = cluster.nodes[0]
    with near(running) as (port, ip):
        inner = [f"{kind}:{ip}:80" for kind in ("new", "kept")]
        outer = [f"{kind}:{other.ips[0]}:{port}" for kind in ("new", "kept")]
        places = {Origin(): outer, Origin(other): inner, Origin(other, application.clients[other.name]): inner}
        with flowing(cluster, places) as traffic:
            reboot(running, node)
    judge(traffic)
    with flowing(cluster, {Origin(): [f"new:{node.ips[0]}:{NODE_PORT}"]}) as after:
        nodes.run(cluster, node, "sleep", "5")
    judge(after)


@contextlib.contextmanager
def near(running: RunningApplication) -> Iterator[tuple[int, str]]:
    """NodePort and ClusterIP of a Service that leads to a node's own endpoints only, from inside and outside."""
    policies = {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}
    wanted = service("near", "NodePort", **policies)
    for each in wanted["spec"]["ports"]:
        del each["nodePort"]
    running.kubectl.apply([wanted])
    spec = running.kubectl.get("service", "near")["spec"]
    try:
        yield spec["ports"][0]["nodePort"], spec["clusterIP"]
    finally:
        running.kubectl("delete", "service/near")


def reboot(running: RunningApplication, node: ClusterNode) -> None:
    """As after a power failure; return when all pods of the node run anew and are ready.

    Until the kubelet has written it, the API has the state from before: containers of other names say that it has.
    """
    before = containers(running, node)
    programs.stop(running.cluster, node.name, signal.SIGKILL)
    nodes.boot(running.cluster, running.kube, node)
    programs.wait("not up", lambda: not before & containers(running, node), READY_SECONDS)
    programs.wait(
        "not Ready", lambda: lifecycle.ready_nodes(running.kubectl) == running.cluster.size, READY_SECONDS
    )
    there = ("--all-namespaces", f"--field-selector=spec.nodeName={node.name}")
    running.kubectl("wait", "pods", *there, "--for=condition=Ready", f"--timeout={READY_SECONDS}s")


def containers(running: RunningApplication, node: ClusterNode) -> set[str]:
    """The names that containerd gave them; a pod whose container does not run has none."""
    found = running.kubectl.get("pods", "--all-namespaces", f"--field-selector=spec.nodeName={node.name}")["items"]
    return {each.get("containerID", "") for pod in found for each in pod["status"].get("containerStatuses", [])}
