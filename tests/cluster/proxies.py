"""The service proxy of a cluster: ours by deploy/, or kube-proxy as kubeadm installs it."""

from __future__ import annotations

import pathlib
import shutil
import sys
from typing import Any

import yaml

from tests.cluster import nodes, programs
from tests.cluster.binaries import BinaryMissing, Kube
from tests.cluster.images import REGISTRY
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import API_URL, POD_CIDRS, REPO, Cluster

MODES = ("ipvs", "iptables", "nftables")
OURS, THEIRS, NONE = "ipvsproxy", "kube-proxy", "none"
CLEANUP = "ipvsproxy-cleanup"
CLEANUP_SECONDS = 300
PROXIES = (OURS, THEIRS, NONE)
ROLLOUT = "--timeout=900s"
EXAMPLE_URL = "https://192.0.2.10:6443"
KUBEADM = REPO / "tests/unit/deploy/kubeadm-kube-proxy.yaml"
_SYSTEM = "--namespace=kube-system"


def install(cluster: Cluster, kube: Kube, kubectl: Kubectl, proxy: str, mode: str) -> None:
    """Return when each node's proxy is ready."""
    if proxy == NONE:
        return
    if proxy == OURS:
        kubectl("apply", kubectl.validation, "--kustomize", kustomization(cluster.folder))
    else:
        kubectl.apply(kube_proxy(kube.version("kube-proxy"), mode))
    kubectl("rollout", "status", "daemonset", proxy, _SYSTEM, ROLLOUT)


def replace(cluster: Cluster, kube: Kube, kubectl: Kubectl, proxy: str, mode: str) -> None:
    """Install a proxy in place of those that a cluster has, on nodes without anything of them."""
    names = [f"daemonset/{name}" for name in (OURS, THEIRS, CLEANUP)]
    kubectl("delete", *names, _SYSTEM, "--ignore-not-found", "--cascade=foreground", ROLLOUT)
    kubectl("label", "nodes", "--all", "ipvsproxy-")
    for node in cluster.nodes:
        command = [sys.executable, "-m", "ipvsproxy", "cleanup", "--cleanup-kube-proxy"]
        done = nodes.run(cluster, node, *command, seconds=CLEANUP_SECONDS)
        if done.returncode:
            message = f"{node.name} is not clean: {done.stdout}"
            raise programs.Failed(message)
    install(cluster, kube, kubectl, proxy, mode)


def check(kube: Kube, proxy: str, mode: str) -> None:
    """Raises Missing where the proxy is not to be had."""
    if proxy == THEIRS:
        kube["kube-proxy"]
        if mode not in MODES:
            message = f"MODE must be one of {', '.join(MODES)}: {mode!r}"
            raise BinaryMissing(message)


def kustomization(folder: pathlib.Path, source: pathlib.Path = REPO) -> pathlib.Path:
    """deploy/kustomize of a version as its README says: a copy, in whose example the server's address stands."""
    copy = folder / "kustomize"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source / "deploy/kustomize", copy)
    example = copy / "example/cluster.yaml"
    text = example.read_text()
    if EXAMPLE_URL not in text or ",".join(POD_CIDRS) not in text:
        message = f"{example} has another server or other ranges of pods than this cluster expects"
        raise BinaryMissing(message)
    example.write_text(text.replace(EXAMPLE_URL, API_URL))
    return copy / "example"


def kube_proxy(version: str, mode: str) -> list[dict[str, Any]]:
    """What kubeadm installs: account, rights, configuration and DaemonSet."""
    meta = {"name": "kube-proxy", "namespace": "kube-system"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubeadm:node-proxier"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"},
        "subjects": [{"kind": "ServiceAccount", **meta}],
    }
    data = {"config.conf": yaml.safe_dump(configuration(mode)), "kubeconfig.conf": _kubeconfig()}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
    daemonset = yaml.safe_load(KUBEADM.read_text())
    pod = daemonset["spec"]["template"]["spec"]
    pod["containers"][0]["image"] = f"{REGISTRY}/kube-proxy:{version}"
    return [account, binding, config, daemonset]


def configuration(mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0",
        "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"},
        "clusterCIDR": ",".join(POD_CIDRS),
        "mode": mode,
    }


def _kubeconfig() -> str:
    """As in the ConfigMap of the example, whose server is the same."""
    for document in yaml.safe_load_all((REPO / "deploy/kustomize/example/cluster.yaml").read_text()):
        if document["kind"] == "ConfigMap":
            return document["data"]["kubeconfig.conf"].replace(EXAMPLE_URL, API_URL)
    raise AssertionError
