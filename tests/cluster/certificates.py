"""The keys and certificates of a cluster, and kubeconfigs for its programs: by openssl, valid for a month."""

from __future__ import annotations

import base64
import json
import pathlib
import subprocess

from tests.cluster.place import API_IP, API_URL, KUBERNETES_IP, SERVICE_CIDRS, Cluster

DAYS = "30"
API_NAMES = (
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
    "IP:127.0.0.1",
    f"IP:{API_IP}",
    f"IP:{KUBERNETES_IP}",
    f"IP:{SERVICE_CIDRS[1].partition('/')[0]}1",
)
# Who has a kubeconfig, and who it says they are.
USERS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
}
OTHERS = {
    "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "front-proxy": "/CN=front-proxy-client",
}


def subjects(cluster: Cluster) -> dict[str, str]:
    """The subject of each certificate by the name of its file."""
    nodes = {node.name: f"/O=system:nodes/CN=system:node:{node.name}" for node in cluster.nodes}
    return {"apiserver": "/CN=kube-apiserver", **USERS, **OTHERS, **nodes}


def make(cluster: Cluster) -> None:
    """Write them all below the cluster's pki."""
    pki = cluster.pki
    pki.mkdir(parents=True, exist_ok=True)
    _openssl(pki, "genrsa", "-out", "sa.key", "2048")
    _openssl(pki, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
    _openssl(pki, "ecparam", "-name", "prime256v1", "-out", "curve")
    authority = ["-x509", "-newkey", "ec:curve", "-nodes", "-days", DAYS, "-subj", "/CN=cluster"]
    _openssl(pki, "req", *authority, "-keyout", "ca.key", "-out", "ca.crt")
    for name, subject in subjects(cluster).items():
        _certificate(pki, name, subject, API_NAMES if name == "apiserver" else ())
    for name in (*USERS, *(node.name for node in cluster.nodes)):
        (pki / f"{name}.conf").write_text(json.dumps(kubeconfig(pki, name), indent=1))


def kubeconfig(pki: pathlib.Path, name: str) -> dict[str, object]:
    """A kubeconfig with its certificates inside, so that it may be copied anywhere."""
    data = {kind: _encoded(pki / file) for kind, file in _files(name).items()}
    user = {"client-certificate-data": data["certificate"], "client-key-data": data["key"]}
    cluster = {"certificate-authority-data": data["authority"], "server": API_URL}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": name}}],
        "current-context": "cluster",
    }


def _files(name: str) -> dict[str, str]:
    return {"authority": "ca.crt", "certificate": f"{name}.crt", "key": f"{name}.key"}


def _certificate(pki: pathlib.Path, name: str, subject: str, names: tuple[str, ...]) -> None:
    _openssl(
        pki, "req", "-newkey", "ec:curve", "-nodes", "-keyout", f"{name}.key", "-out", "request", "-subj", subject
    )
    lines = ["extendedKeyUsage=clientAuth,serverAuth"]
    if names:
        lines.append(f"subjectAltName={','.join(names)}")
    (pki / "extensions").write_text("\n".join(lines) + "\n")
    signer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", DAYS]
    _openssl(pki, "x509", "-req", "-in", "request", *signer, "-extfile", "extensions", "-out", f"{name}.crt")


def _openssl(folder: pathlib.Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, capture_output=True, check=True)


def _encoded(path: pathlib.Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
