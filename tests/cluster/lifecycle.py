"""A cluster from nothing to Ready, and away again."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator

from tests.cluster import (
    addons,
    certificates,
    control_plane,
    images,
    network,
    node_files,
    nodes,
    programs,
    proxies,
    store,
)
from tests.cluster.binaries import BinaryMissing, Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import CLUSTERS, REPO, Cluster
from tests.guest import usermode

STATE = "cluster.json"


def prepare() -> None:
    """Packages, the kernel of the nodes, the files of the image."""
    subprocess.run([REPO / "tools/cluster-setup"], check=True)
    usermode.prepare()


def up(cluster: Cluster, kube: Kube, proxy: str, mode: str) -> None:
    """Raises Missing, programs.Failed or CalledProcessError; what has come up so far then stays."""
    if network.exists(cluster):
        message = f"the cluster {cluster.name} runs already: make cluster-down NAME={cluster.name}"
        raise BinaryMissing(message)
    proxies.check(kube, proxy, mode)
    report = _Report()
    archives = images.make(kube, cluster.images)
    store.make(cluster.images, _in_use())
    report(f"images: {len(archives)}")
    shutil.rmtree(cluster.folder, ignore_errors=True)
    certificates.make(cluster)
    _remember(cluster, kube)
    network.make(cluster)
    control_plane.start(cluster, kube)
    report("control plane: ready")
    kubectl = Kubectl(cluster, kube)
    kubectl.apply(node_files.manifest(node) for node in cluster.nodes)
    for node in cluster.nodes:
        nodes.boot(cluster, kube, node)
    addons.start(cluster, kube, kubectl)
    _wait_for_nodes(cluster, kubectl)
    report(f"nodes: {cluster.size} Ready")
    proxies.install(cluster, kube, kubectl, proxy, mode)
    report(f"proxy: {proxy} {mode if proxy == proxies.THEIRS else ''}".rstrip())


def _in_use() -> str:
    """What nodes of all clusters were told, with the store that they use."""
    return "".join(file.read_text() for file in CLUSTERS.glob("*/node*/agent.json"))


def load(cluster: Cluster, kube: Kube) -> None:
    """Bring images that have changed to the nodes, and have our proxy started again from its own."""
    before = set(cluster.images.glob("*.tar"))
    for archive in sorted(set(images.make(kube, cluster.images)) - before):
        for node in cluster.nodes:
            print(
                nodes.run(
                    cluster, node, "ctr", "--namespace=k8s.io", "images", "import", archive, seconds=300
                ).stdout
            )
    kubectl = Kubectl(cluster, kube)
    kubectl("rollout", "restart", "daemonset", proxies.OURS, "--namespace=kube-system")
    kubectl("rollout", "status", "daemonset", proxies.OURS, "--namespace=kube-system", proxies.ROLLOUT)


def down(cluster: Cluster) -> None:
    network.remove(cluster)
    shutil.rmtree(cluster.folder, ignore_errors=True)


@contextlib.contextmanager
def temporary(cluster: Cluster, kube: Kube, proxy: str, mode: str) -> Iterator[None]:
    """A cluster as long as the context lasts; nothing of it stays, also when it does not come up."""
    if network.exists(cluster):
        message = f"the cluster {cluster.name} runs already: make cluster-down NAME={cluster.name}"
        raise BinaryMissing(message)
    prepare()
    try:
        up(cluster, kube, proxy, mode)
        yield
    finally:
        down(cluster)


def remembered(name: str) -> tuple[Cluster, Kube]:
    """A cluster that runs, and its programs; Missing if none of that name does."""
    cluster = Cluster(name)
    try:
        state = json.loads((cluster.folder / STATE).read_text())
    except FileNotFoundError:
        message = f"no cluster {name} runs: make cluster KUBE=DIR"
        raise BinaryMissing(message) from None
    return Cluster(name, state["size"], state["plugins"]), Kube(cluster.folder.__class__(state["kube"]))


def _remember(cluster: Cluster, kube: Kube) -> None:
    (cluster.folder / STATE).write_text(
        json.dumps({"size": cluster.size, "plugins": cluster.plugins, "kube": str(kube.folder)})
    )


def _wait_for_nodes(cluster: Cluster, kubectl: Kubectl) -> None:
    try:
        programs.wait("the nodes are not Ready", lambda: ready_nodes(kubectl) == cluster.size, nodes.BOOT_SECONDS)
    except programs.Failed:
        for node in cluster.nodes:
            print(nodes.last_words(cluster, node))
        raise


def ready_nodes(kubectl: Kubectl) -> int:
    conditions = [node["status"].get("conditions") or [] for node in kubectl.get("nodes")["items"]]
    return sum(any(c["type"] == "Ready" and c["status"] == "True" for c in each) for each in conditions)


class _Report:
    """One line for each step, with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:4.0f} s  {text}", flush=True)
