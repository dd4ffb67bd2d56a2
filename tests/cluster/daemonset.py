"""Our DaemonSet in a cluster, as trials see it, and how they judge the requests meanwhile."""

from __future__ import annotations

from typing import Any

from tests.cluster.application import RunningApplication
from tests.cluster.traffic import RunningTraffic

SYSTEM = "--namespace=kube-system"
OURS = "--selector=app.kubernetes.io/name=ipvsproxy"
DAEMONSET = "daemonset/ipvsproxy"
READY_SECONDS = 900


def ready(running: RunningApplication) -> None:
    running.kubectl("rollout", "status", DAEMONSET, SYSTEM, f"--timeout={READY_SECONDS}s")


def pods(running: RunningApplication) -> dict[str, Any]:
    """Ours by node, without those that are ending: with a surge, these are still there beside the new ones."""
    found = running.kubectl.get("pods", SYSTEM, OURS)["items"]
    return {pod["spec"]["nodeName"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}


def is_served(running: RunningApplication, node: str, other_than: str = "") -> bool:
    """Whether a pod of ours is ready on the node, by its own status: the DaemonSet's may be late."""
    pod = pods(running).get(node)
    if pod is None or pod["metadata"]["name"] == other_than:
        return False
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


def judge(traffic: RunningTraffic) -> None:
    print(traffic)
    assert not traffic.failed(), "\n".join(map(str, traffic.failed()))
    assert not traffic.silent()
