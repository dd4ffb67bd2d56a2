"""The nodes of a cluster: user-mode kernels with this machine's files as their root, on taps of its bridge."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

from tests.cluster import node_files, programs
from tests.cluster.binaries import Kube
from tests.cluster.place import FLANNEL, HERE, REPO, Cluster, ClusterNode, processors
from tests.guest import usermode

NODE_INIT = REPO / HERE / "node-init"
DEFAULT_MEMORY = "3G"
BOOT_SECONDS = 900
# Runs in the cluster's namespace, which has the only way to a node.
_ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as sock:
    sock.sendall(sys.stdin.buffer.read())
    sys.stdout.buffer.write(sock.makefile("rb").readline())
"""


def boot(cluster: Cluster, kube: Kube, node: ClusterNode) -> None:
    """Start a node, also one that was there before; it takes some time until it is Ready."""
    folder = cluster.node_folder(node)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, text in node_files.files(cluster, node).items():
        file = folder / f"files{path}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    if cluster.plugins == FLANNEL:
        program = folder / "files/usr/lib/cni" / FLANNEL
        program.parent.mkdir(parents=True)
        program.symlink_to(kube[FLANNEL])
    agent = node_files.agent(cluster, node, kube["kubelet"])
    (folder / "agent.json").write_text(json.dumps(agent, indent=1))
    # struct rand_pool_info of RNDADDENTROPY (linux/random.h): bits, bytes, and these.
    (folder / "seed").write_bytes(struct.pack("=ii", 512, 64) + os.urandom(64))
    programs.start(cluster, node.name, kernel(cluster, node), cwd=folder)


def kernel(cluster: Cluster, node: ClusterNode) -> list[object]:
    """The words that boot it, on one processor: its processes would wake each other across several."""
    folder = cluster.node_folder(node)
    cpus = processors()
    words: list[object] = ["taskset", "--cpu-list", cpus[node.number % len(cpus)], usermode.kernel()]
    words += [
        "root=/dev/root",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"mem={memory()}",
        "con=null",
        "con0=null,fd:2",
        # Newer kernels run programs twice as fast in this way; older ones do not know the word.
        "seccomp=auto",
    ]
    words += [f"uml_dir={folder}", f"umid={node.name}", "quiet", f"vec0:transport=tap,ifname={node.tap},depth=128"]
    return [*words, f"init={NODE_INIT}", "--", folder, REPO, sys.executable]


def memory() -> str:
    """What a node may have, as the kernel's parameter mem= wants it; it takes only what it uses."""
    return os.environ.get("IPVSPROXY_VM_MEMORY") or DEFAULT_MEMORY


def run(
    cluster: Cluster, node: ClusterNode, *argv: object, text: str = "", seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Run a command on a node; both its outputs are one.

    Raises programs.Failed when the node does not answer.
    """
    request = json.dumps({"argv": [*map(str, argv)], "text": text, "seconds": seconds}) + "\n"
    host, port = node.ips[0], node_files.AGENT_PORT
    words = cluster.inside(sys.executable, "-S", "-c", _ASK, host, port, seconds + 30)
    said = subprocess.run(words, input=request, capture_output=True, text=True, check=False)
    if said.returncode or not said.stdout:
        message = f"{node.name} does not answer: {said.stderr.strip().splitlines()[-1:]}"
        raise programs.Failed(message)
    answer = json.loads(said.stdout)
    return subprocess.CompletedProcess(argv, answer["code"], answer["output"])


def last_words(cluster: Cluster, node: ClusterNode) -> str:
    """Where to look, and the end of what a node that did not come up has said."""
    logs = [cluster.log(node.name), *sorted(pathlib.Path(cluster.node_folder(node)).glob("*.log"))]
    return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs if log.exists())
