"""What this kernel can do, by trial: each check says what is missing, or nothing.

A test names what it needs with @pytest.mark.needs("ip_vs", "sctp"). Where that is missing the test is
skipped, as a laptop deserves; with IPVSPROXY_REQUIRE=1 it fails, so that a build server cannot pass by
skipping everything.
"""

from __future__ import annotations

import functools
import os
import pathlib
import socket
import subprocess
from collections.abc import Callable

from tests.lab import system_calls
from tests.lab.container import why_no_root
from tests.lab.netns import SCTP


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _ip_vs() -> str:
    subprocess.run(["modprobe", "-q", "ip_vs"], check=False)
    return "" if pathlib.Path("/proc/net/ip_vs").exists() else "the kernel has no IPVS"


def _nf_tables() -> str:
    try:
        import nftables
    except ImportError:
        return "python3-nftables is not installed"
    code, _, error = nftables.Nftables().cmd("list tables")
    return "" if code == 0 else f"nftables: {error}"


def _sctp() -> str:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError as error:
        return f"SCTP: {error}"
    return ""


def _namespaces() -> str:
    links = "ip link add probe0 type dummy && ip link add probe1 type veth peer name probe2"
    made = subprocess.run(["unshare", "--net", "sh", "-c", links], capture_output=True, text=True, check=False)
    return made.stderr.strip()


def _bridge_netfilter() -> str:
    subprocess.run(["modprobe", "-q", "br_netfilter"], check=False)
    return "" if pathlib.Path("/proc/sys/net/bridge").exists() else "the kernel has no br_netfilter"


CHECKS: dict[str, Callable[[], str]] = {
    "root": _root,
    "ip_vs": _ip_vs,
    "nf_tables": _nf_tables,
    "sctp": _sctp,
    "namespaces": _namespaces,
    "br_netfilter": _bridge_netfilter,
    "image_root": why_no_root,
    "seccomp": system_calls.why_not,
}


@functools.cache
def missing(capability: str) -> str:
    """Why the capability is missing; empty if it is there. `a program` by name: `tool:conntrack`."""
    if capability.startswith("tool:"):
        return _tool(capability.removeprefix("tool:"))
    return CHECKS[capability]()


def _tool(program: str) -> str:
    found = subprocess.run(["sh", "-c", f"command -v {program}"], capture_output=True, check=False)
    return "" if found.returncode == 0 else f"{program} is not installed"
