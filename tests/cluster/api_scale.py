"""What many nodes cost an API server: measured for as many as fit, to be multiplied (docs/performance.md).

    python -m tests.cluster.api_scale --kube DIR [--services 1000] [--watchers 200] [--changes 200] [--nodes 200]

An etcd and a kube-apiserver alone, with Services and one EndpointSlice of five endpoints for each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from tests.cluster import binaries, certificates, control_plane, lifecycle, network, programs
from tests.cluster.binaries import Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import REPO, Cluster

NAME = "scale"
BATCH = 250


def objects(number: int) -> list[dict[str, Any]]:
    """A Service, and its slice of five endpoints, as controllers write them."""
    name, labels = f"scale-{number}", {"kubernetes.io/service-name": f"scale-{number}"}
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "metrics", "port": 9090}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": ports},
    }
    endpoints = [
        {
            "addresses": [f"10.244.{number % 200}.{each + 2}"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": f"node{number % 200}",
            "zone": "zone-a",
            "targetRef": {"kind": "Pod", "name": f"{name}-{each}", "namespace": "default"},
        }
        for each in range(5)
    ]
    slice_ = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}, {"name": "metrics", "port": 9090}],
        "endpoints": endpoints,
    }
    return [service, slice_]


def run(kube: Kube, services: int, watchers: int, changes: int, nodes: int) -> int:
    """Measure all of it; the first exit code that is no success."""
    cluster = Cluster(NAME)
    try:
        certificates.make(cluster)
        network.make(cluster)
        control_plane.start_etcd(cluster)
        control_plane.start_apiserver(cluster, kube)
        kubectl = Kubectl(cluster, kube)
        for first in range(0, services, BATCH):
            last = min(first + BATCH, services)
            kubectl.create(each for number in range(first, last) for each in objects(number))
        clients = ["api_clients", cluster.pki, programs.pid(cluster, "apiserver"), watchers, changes]
        return _measure(cluster, clients) or _measure(cluster, ["api_restart", cluster.name, kube.folder, nodes])
    finally:
        lifecycle.down(cluster)


def _measure(cluster: Cluster, words: list[object]) -> int:
    command = cluster.inside(sys.executable, "-m", f"tests.cluster.{words[0]}", *words[1:])
    return subprocess.run(command, cwd=REPO, check=False).returncode


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.api_scale", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--kube", default=os.environ.get("KUBE"))
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=200, help="whose proxies see the API server restart")
    options = parser.parse_args(argv)
    if not options.kube:
        print(binaries.NO_KUBE)
        return 0
    lifecycle.prepare()
    kube = binaries.open_folder(options.kube, binaries.CONTROL)
    return run(kube, options.services, options.watchers, options.changes, options.nodes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
