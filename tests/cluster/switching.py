"""The recipe of deploy/switch.md for kubeadm, step by step, in a cluster with kube-proxy."""

from __future__ import annotations

import os
import re
import subprocess
from typing import Any

from tests.cluster import programs, proxies
from tests.cluster.binaries import Kube
from tests.cluster.images import OURS
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import REPO, Cluster, ClusterNode
from tests.support import deploy_tools

SYSTEM = "--namespace=kube-system"
SWITCH = REPO / "deploy/switch"
CONFIG = "ipvsproxy-config"
NODE_SECONDS = 1800


def prepare(cluster: Cluster, kubectl: Kubectl) -> None:
    """Steps 1 to 4: the configuration, kube-proxy off marked nodes, ours on marked nodes, what cleans up."""
    kubectl.apply([configuration(kubectl.get("configmap", "kube-proxy", SYSTEM))])
    patch = SWITCH / "kube-proxy.yaml"
    kubectl("patch", "daemonset", "kube-proxy", SYSTEM, "--type=merge", f"--patch-file={patch}")
    kubectl.apply(chart())
    folder = proxies.kustomization(cluster.folder).parent / "handover"
    kubectl("apply", kubectl.validation, "--kustomize", folder)
    kubectl("rollout", "status", "daemonset", "ipvsproxy-cleanup", SYSTEM, proxies.ROLLOUT)


def configuration(theirs: dict[str, Any]) -> dict[str, Any]:
    """kube-proxy's ConfigMap with mode ipvs, under a name of its own."""
    data = dict(theirs["data"])
    data["config.conf"] = re.sub(r"^mode:.*$", "mode: ipvs", data["config.conf"], flags=re.MULTILINE)
    meta = {"name": CONFIG, "namespace": "kube-system"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}


def chart() -> list[dict[str, Any]]:
    """What `helm install` of step 3 makes."""
    repository, _, tag = OURS[1].rpartition(":")
    values = {
        "existingConfigMap": CONFIG,
        "image": {"repository": repository, "tag": tag},
        "nodeSelector": {"ipvsproxy": "yes"},
    }
    return [each for each in deploy_tools.render(values) if not deploy_tools.is_hook(each)]


def move(cluster: Cluster, kube: Kube, node: ClusterNode, direction: str) -> str:
    """Step 5 for one node, `to` or `back`: what node.sh prints. programs.Failed when it fails."""
    words = ["sh", SWITCH / "node.sh", *(["to", node.name] if direction == "to" else ["back", node.name])]
    env = {
        **os.environ,
        "TIMEOUT": "10m",
        "KUBECONFIG": str(cluster.admin),
        "PATH": f"{kube.folder}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        cluster.inside(*words), env=env, capture_output=True, text=True, check=False, timeout=NODE_SECONDS
    )
    if done.returncode:
        message = f"node.sh {direction} {node.name}: {done.stdout}{done.stderr}"
        raise programs.Failed(message)
    return done.stdout


def kinds(number: int) -> list[dict[str, Any]]:
    """So many Services of all kinds, beside those of the application; its pods are behind each."""
    return [_service(index) for index in range(number)]


def _service(index: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    }
    match index % 5:
        case 1:
            spec["type"] = "NodePort"
        case 2:
            spec["sessionAffinity"] = "ClientIP"
        case 3:
            spec["ports"].append({"name": "udp", "port": 81, "targetPort": 8081, "protocol": "UDP"})
        case 4:
            spec["internalTrafficPolicy"] = "Local"
    meta = {"name": f"more-{index}", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
