"""The network namespace of a cluster: a bridge with one tap for each node, and routes to the pods of each."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time

from tests.cluster.place import BALANCER_CIDR, BRIDGE_CIDRS, OUTSIDE_IP, Cluster

GRACE_SECONDS = 5
SYSCTLS = (
    "net.ipv4.ip_forward=1",
    "net.ipv6.conf.all.forwarding=1",
)


def make(cluster: Cluster) -> None:
    """Raises CalledProcessError where one of that name exists."""
    _run("ip", "netns", "add", cluster.namespace)
    _run("ip", "-n", cluster.namespace, "-batch", "-", text="\n".join(commands(cluster)) + "\n")
    _run(*cluster.inside("sysctl", "-q", "-w", *SYSCTLS))


def commands(cluster: Cluster) -> list[str]:
    """The lines for `ip -batch`."""
    lines = ["link set lo up", f"address add {OUTSIDE_IP}/32 dev lo", "link add br0 type bridge"]
    lines += [
        f"address add {cidr} dev br0 nodad" if ":" in cidr else f"address add {cidr} dev br0"
        for cidr in BRIDGE_CIDRS
    ]
    lines.append("link set br0 up")
    for node in cluster.nodes:
        lines += [f"tuntap add {node.tap} mode tap", f"link set {node.tap} master br0 up"]
        lines += [f"route add {cidr} via {ip}" for cidr, ip in zip(node.pod_cidrs, node.ips, strict=True)]
    # Which node it is, a mark says (spreading.py).
    lines.append(f"route add {BALANCER_CIDR} via {cluster.nodes[0].ips[0]} src {OUTSIDE_IP}")
    return lines


def exists(cluster: Cluster) -> bool:
    return pathlib.Path("/run/netns", cluster.namespace).exists()


def remove(cluster: Cluster) -> None:
    """End all that runs in the namespace, and the namespace."""
    if not exists(cluster):
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_all(cluster, number)
    _run("ip", "netns", "delete", cluster.namespace)


def processes(cluster: Cluster) -> list[int]:
    said = subprocess.run(["ip", "netns", "pids", cluster.namespace], capture_output=True, text=True, check=True)
    return [int(word) for word in said.stdout.split() if int(word) != os.getpid()]


def _signal_all(cluster: Cluster, number: signal.Signals) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while (running := processes(cluster)) and time.monotonic() < deadline:
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(0.2)


def _run(*words: str, text: str | None = None) -> None:
    subprocess.run(words, input=text, text=True, check=True)
