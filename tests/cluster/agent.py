"""Runs on a node: makes its network, starts containerd and the kubelet, and then runs commands that it is sent.

    python -m tests.cluster.agent FILE     (node_files.agent says what is in it)

One command a connection: a line of JSON goes in (`argv`, `text` for its input, `seconds` until it is killed), one
comes back (`code`, `output`). Only the machine that runs the cluster reaches the address.
"""

from __future__ import annotations

import json
import pathlib
import resource
import shutil
import socket
import socketserver
import subprocess
import sys
import time
from typing import Any

ROOT, STORE = pathlib.Path("/var/lib/containerd"), pathlib.Path("/run/store")
METADATA = "io.containerd.metadata.v1.bolt"
SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs"
CONTENT = "io.containerd.content.v1.content/blobs"
CGROUP = pathlib.Path("/sys/fs/cgroup")
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
    "net.bridge.bridge-nf-call-iptables=1",
    "net.bridge.bridge-nf-call-ip6tables=1",
    "fs.inotify.max_user_instances=8192",
    "fs.inotify.max_user_watches=524288",
    "kernel.pid_max=65536",
)
FILES = 262144
RUNTIME_SECONDS = 120
KILLED = 124


def main(path: str) -> None:
    settings = json.loads(pathlib.Path(path).read_text())
    folder = pathlib.Path(path).parent
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    socket.sethostname(settings["name"])
    subprocess.run(["ip", "-batch", "-"], input="\n".join(settings["network"]) + "\n", text=True, check=True)
    subprocess.run(["sysctl", "-q", "-w", *SYSCTLS], check=False)
    for program, cidr in zip(("iptables", "ip6tables"), settings["forwarded"], strict=False):
        be_strict(program, cidr)
    delegate_cgroups()
    server = AgentServer(tuple(settings["address"]), AgentRequest)
    start_runtime(folder, settings)
    print("serving", flush=True)
    server.serve_forever()


def be_strict(program: str, pods: str) -> None:
    """Forward nothing but what is of pods, as flannel has it on hosts whose policy is DROP."""
    subprocess.run([program, "--policy", "FORWARD", "DROP"], check=True)
    for side in ("--source", "--destination"):
        subprocess.run([program, "--append", "FORWARD", side, pods, "--jump", "ACCEPT"], check=True)


def delegate_cgroups() -> None:
    """Controllers can be given away only by a group without processes: these go into one of their own."""
    own = CGROUP / "init"
    own.mkdir()
    for pid in (CGROUP / "cgroup.procs").read_text().split():
        try:
            (own / "cgroup.procs").write_text(pid)
        except OSError:
            continue  # a thread of the kernel
    for controller in (CGROUP / "cgroup.controllers").read_text().split():
        (CGROUP / "cgroup.subtree_control").write_text(f"+{controller}")


def use_store(source: str) -> None:
    """Have containerd find the images of a store (store.py): its files stay where they are, unchanged."""
    mount("-t", "hostfs", "-o", source, "none", STORE)
    mount("-o", "remount,ro", STORE)
    for name in (METADATA, SNAPSHOTS):
        (ROOT / name).mkdir()
    shutil.copy(STORE / METADATA / "meta.db", ROOT / METADATA)
    shutil.copy(STORE / SNAPSHOTS / "metadata.db", ROOT / SNAPSHOTS)
    for layer in (STORE / SNAPSHOTS / "snapshots").iterdir():
        mount("--bind", layer, ROOT / SNAPSHOTS / "snapshots" / layer.name)
    # What is imported later is written beside them.
    for name in ("upper", "work"):
        (ROOT / "blobs" / name).mkdir(parents=True)
    layers = f"lowerdir={STORE / CONTENT},upperdir={ROOT / 'blobs/upper'},workdir={ROOT / 'blobs/work'}"
    mount("-t", "overlay", "-o", layers, "none", ROOT / CONTENT)


def mount(*words: object) -> None:
    """Mount something on the last of the words, a folder that is made if need be."""
    pathlib.Path(str(words[-1])).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *map(str, words)], check=True)


def start_runtime(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """containerd with its images, and the kubelet."""
    use_store(settings["store"])
    background(folder / "containerd.log", "containerd", "--log-level", "warn")
    deadline = time.monotonic() + RUNTIME_SECONDS
    while subprocess.run(["ctr", "version"], capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            sys.exit("containerd does not answer")
        time.sleep(0.5)
    background(folder / "kubelet.log", *settings["kubelet"])


def background(log: pathlib.Path, *argv: str) -> None:
    with log.open("ab") as output:
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


class AgentServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class AgentRequest(socketserver.StreamRequestHandler):
    """One command."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if line:
            self.wfile.write(json.dumps(run(**json.loads(line))).encode() + b"\n")


def run(argv: list[str], text: str = "", seconds: float = 60) -> dict[str, Any]:
    """Its exit code, 124 where it was killed, and what it wrote to both of its outputs."""
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    try:
        output, _ = process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return {"code": KILLED, "output": process.communicate()[0]}
    return {"code": process.returncode, "output": output}


if __name__ == "__main__":
    main(sys.argv[1])
