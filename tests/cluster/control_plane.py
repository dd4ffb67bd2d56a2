"""The control plane, on this machine: etcd, kube-apiserver, kube-controller-manager, kube-scheduler."""

from __future__ import annotations

import subprocess

from tests.cluster import programs
from tests.cluster.binaries import Kube
from tests.cluster.place import API_IP, POD_CIDRS, SERVICE_CIDRS, Cluster

ETCD_URL = "http://127.0.0.1:2379"
PEER_URL = "http://127.0.0.1:2380"
READY_SECONDS = 180


def etcd(cluster: Cluster) -> list[object]:
    """Without fsync: nothing outlives the cluster."""
    words: list[object] = [
        "etcd",
        "--data-dir",
        cluster.folder / "etcd",
        "--unsafe-no-fsync",
        "--log-level",
        "warn",
    ]
    words += ["--logger", "zap", "--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL]
    return [*words, "--listen-peer-urls", PEER_URL]


def apiserver(cluster: Cluster, kube: Kube) -> list[object]:
    pki = cluster.pki
    flags = {
        "etcd-servers": ETCD_URL,
        "advertise-address": API_IP,
        "bind-address": "0.0.0.0",
        "secure-port": 6443,
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "kubelet-client-certificate": pki / "kubelet-client.crt",
        "kubelet-client-key": pki / "kubelet-client.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-cluster-ip-range": ",".join(SERVICE_CIDRS),
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "requestheader-client-ca-file": pki / "ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / "front-proxy.crt",
        "proxy-client-key-file": pki / "front-proxy.key",
        "profiling": "false",
    }
    return [kube["kube-apiserver"], *_flags(flags)]


def controller_manager(cluster: Cluster, kube: Kube) -> list[object]:
    pki = cluster.pki
    flags = {
        **_kubeconfigs(cluster, "controller-manager"),
        "service-account-private-key-file": pki / "sa.key",
        "root-ca-file": pki / "ca.crt",
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "use-service-account-credentials": "true",
        # Nodes are made with theirs (nodes.py), so that routes are known before.
        "allocate-node-cidrs": "false",
        "cluster-cidr": ",".join(POD_CIDRS),
        # A slow kernel on a busy machine may be late.
        "node-monitor-grace-period": "2m",
        "kube-api-qps": 100,
        "kube-api-burst": 200,
    }
    return [kube["kube-controller-manager"], *_flags(flags)]


def scheduler(cluster: Cluster, kube: Kube) -> list[object]:
    return [kube["kube-scheduler"], *_flags(_kubeconfigs(cluster, "scheduler"))]


def start(cluster: Cluster, kube: Kube) -> None:
    """Return when the API server is ready."""
    start_etcd(cluster)
    start_apiserver(cluster, kube)
    programs.start(cluster, "controller-manager", controller_manager(cluster, kube))
    programs.start(cluster, "scheduler", scheduler(cluster, kube))


def start_etcd(cluster: Cluster) -> None:
    programs.start(cluster, "etcd", etcd(cluster))


def start_apiserver(cluster: Cluster, kube: Kube) -> None:
    programs.start(cluster, "apiserver", apiserver(cluster, kube))
    what = f"kube-apiserver is not ready ({cluster.log('apiserver')})"
    programs.wait(what, lambda: _is_ready(cluster, kube), READY_SECONDS)


def _is_ready(cluster: Cluster, kube: Kube) -> bool:
    words = cluster.inside(kube["kubectl"], "--kubeconfig", cluster.admin, "get", "--raw", "/readyz")
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _kubeconfigs(cluster: Cluster, user: str) -> dict[str, object]:
    path = cluster.pki / f"{user}.conf"
    flags = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
    return {**dict.fromkeys(flags, path), "leader-elect": "false"}


def _flags(values: dict[str, object]) -> list[object]:
    return [f"--{name}={value}" for name, value in values.items()]
