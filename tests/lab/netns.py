"""Network namespaces for the lab: enter one with a thread, make a socket there, come back.

A socket stays in the namespace it was made in, and a child process starts in the namespace of the
thread that forked it. So one test process can serve, ask and start programs in every namespace of a
lab without helper processes, which are slow under emulation. Python 3.11 has no os.setns: ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import socket
import subprocess
from collections.abc import Iterator, Sequence

NETNS_FOLDER = pathlib.Path("/run/netns")
CLONE_NEWNET = 0x40000000
SCTP = 132
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """Have the calling thread in the namespace for the length of the block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(NETNS_FOLDER / netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(there)
        yield
    finally:
        _setns(home)
        os.close(there)
        os.close(home)


def open_socket(netns: str, address: str, proto: str) -> socket.socket:
    """Make a non-blocking socket in the namespace, of the address's family; proto is tcp, udp or sctp."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM
    with inside(netns):
        made = socket.socket(family, kind | socket.SOCK_NONBLOCK, SCTP if proto == "sctp" else 0)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def run(netns: str, argv: Sequence[str], stdin: str = "", *, check: bool = True) -> str:
    """Run a program in the namespace and return its standard output; a failure tells what it said."""
    with inside(netns):
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{argv} in {netns}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def ip(netns: str | None, *lines: str) -> None:
    """Have one `ip -batch` carry out lines in a namespace (None: here), until one fails."""
    argv = ["ip", *(["-n", netns] if netns else []), "-batch", "-"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip -batch in {netns}: exit code {done.returncode}\n{done.stdout}{done.stderr}{text}")


def set_sysctls(netns: str, values: dict[str, str | int]) -> None:
    """Write /proc/sys/net entries; the kernel resolves them for the namespace of the writing thread."""
    with inside(netns):
        for name, value in values.items():
            path = pathlib.Path("/proc/sys") / name
            if path.exists():
                path.write_text(f"{value}\n")  # an empty text alone would write nothing


def get_sysctl(netns: str, name: str) -> str:
    """Read one entry, named like net/ipv4/ip_forward."""
    with inside(netns):
        return (pathlib.Path("/proc/sys") / name).read_text().strip()
