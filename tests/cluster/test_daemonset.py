"""The image and the DaemonSet of deploy/ under what happens to them in a cluster: no request fails meanwhile."""

from __future__ import annotations

import json

import pytest

from ipvsproxy.base.messages import SYNCED
from tests.cluster import control_plane, lifecycle, nodes, programs
from tests.cluster.application import Running
from tests.cluster.place import Node
from tests.cluster.traffic import Place, Traffic, flowing

SYSTEM = "--namespace=kube-system"
OURS = "--selector=app.kubernetes.io/name=ipvsproxy"
DAEMONSET = "daemonset/ipvsproxy"
READY_SECONDS = 900


def ready(running: Running) -> None:
    running.kubectl("rollout", "status", DAEMONSET, SYSTEM, f"--timeout={READY_SECONDS}s")


def pods(running: Running) -> dict[str, dict]:
    """Ours by node."""
    return {pod["spec"]["nodeName"]: pod for pod in running.kubectl.get("pods", SYSTEM, OURS)["items"]}


def restarts(running: Running, node: str) -> int:
    return pods(running)[node]["status"]["containerStatuses"][0]["restartCount"]


def judge(traffic: Traffic) -> None:
    print(traffic)
    assert not traffic.failed(), "\n".join(map(str, traffic.failed()))
    assert not traffic.silent()


def patch(running: Running, **spec: object) -> None:
    running.kubectl("patch", DAEMONSET, SYSTEM, "--type=merge", f"--patch={json.dumps({'spec': spec})}")


def test_the_container_has_the_rights_that_the_manifest_gives_it_and_no_more(running: Running):
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


def refused(running: Running, pod: str, *words: str) -> str:
    command = f"{' '.join(words)} 2>&1; true"
    return running.kubectl("exec", pod, SYSTEM, "--", "sh", "-c", command)


def test_requests_are_answered_while_nothing_happens(running: Running):
    """What fails here is the machine's doing."""
    with flowing(running.cluster, running.application.targets()) as traffic:
        nodes.run(running.cluster, running.cluster.nodes[0], "sleep", "10")
    judge(traffic)


@pytest.mark.parametrize(
    "strategy",
    [{"maxUnavailable": "10%", "maxSurge": 0}, {"maxUnavailable": 0, "maxSurge": 1}],
    ids=["without surge", "with surge"],
)
def test_a_rolling_update_of_the_daemonset_fails_no_request(running: Running, strategy: dict[str, object]):
    patch(running, updateStrategy={"type": "RollingUpdate", "rollingUpdate": strategy})
    before = {pod["metadata"]["uid"] for pod in pods(running).values()}
    with flowing(running.cluster, running.application.targets()) as traffic:
        running.kubectl("rollout", "restart", DAEMONSET, SYSTEM)
        ready(running)
    judge(traffic)
    assert not before & {pod["metadata"]["uid"] for pod in pods(running).values()}


def test_an_eviction_of_the_pod_fails_no_request(running: Running):
    name = pods(running)["node1"]["metadata"]["name"]
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": "kube-system"},
    }
    path = f"/api/v1/namespaces/kube-system/pods/{name}/eviction"
    with flowing(running.cluster, running.application.targets()) as traffic:
        running.kubectl("create", f"--raw={path}", "--filename=-", text=json.dumps(eviction))
        programs.wait(
            "no new pod", lambda: pods(running).get("node1", {}).get("metadata", {}).get("name") != name, 60
        )
        ready(running)
    judge(traffic)


def test_a_kill_for_want_of_memory_fails_no_request(running: Running):
    """The kernel kills what uses more than its cgroup may; the kubelet starts the container again."""
    before = restarts(running, "node2")
    node = running.cluster.node("node2")
    with flowing(running.cluster, running.application.targets()) as traffic:
        shrink(running, node)
        programs.wait("not restarted", lambda: restarts(running, "node2") > before, READY_SECONDS)
        ready(running)
    judge(traffic)
    last = pods(running)["node2"]["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert last["reason"] == "OOMKilled"


# A container of the pod that has more than that is the proxy's; the other one holds the namespaces.
_SHRINK = """
for group in /sys/fs/cgroup/kubepods/*/pod"$1"/*/; do
    [ "$(cat "$group/memory.current")" -lt 20000000 ] || echo 20M >"$group/memory.max"
done
"""


def shrink(running: Running, node: Node) -> None:
    """Leave our container less memory than it has."""
    uid = pods(running)[node.name]["metadata"]["uid"]
    done = nodes.run(running.cluster, node, "sh", "-c", _SHRINK, "sh", uid)
    assert done.returncode == 0, done.stdout


def test_an_api_server_that_restarts_fails_no_request(running: Running):
    with flowing(running.cluster, running.application.targets()) as traffic:
        programs.stop(running.cluster, "apiserver")
        control_plane.start_apiserver(running.cluster, running.kube)
        ready(running)
    judge(traffic)


def test_a_drained_node_goes_on_serving(running: Running):
    """What may leave the node leaves it; the proxy, of a DaemonSet, stays."""
    with flowing(running.cluster, running.application.targets()) as traffic:
        running.kubectl("drain", "node2", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
        running.kubectl("uncordon", "node2")
    judge(traffic)


def test_a_node_that_reboots_serves_again_and_others_do_not_notice(running: Running):
    """Of the requests in the other node, those for endpoints there are the ones that cannot fail."""
    cluster, node = running.cluster, running.cluster.node("node2")
    local = [f"new:{cluster.nodes[0].ips[0]}:30080"]
    running.kubectl(
        "patch", "service", "node", "--type=merge", '--patch={"spec":{"externalTrafficPolicy":"Local"}}'
    )
    try:
        with flowing(cluster, {Place(): local, Place(cluster.nodes[0]): local}) as traffic:
            programs.stop(cluster, node.name)
            nodes.boot(cluster, running.kube, node)
            programs.wait(
                "not Ready", lambda: lifecycle.ready_nodes(running.kubectl) == cluster.size, READY_SECONDS
            )
            ready(running)
    finally:
        running.kubectl(
            "patch", "service", "node", "--type=merge", '--patch={"spec":{"externalTrafficPolicy":"Cluster"}}'
        )
    judge(traffic)
    running.kubectl("rollout", "status", "daemonset/web", f"--timeout={READY_SECONDS}s")
    with flowing(cluster, {Place(): [f"new:{node.ips[0]}:30080"]}) as after:
        nodes.run(cluster, node, "sleep", "5")
    judge(after)
