"""Sockets in the network namespace of a pod, named by a path or by the number of one of its processes."""

import socket
from pathlib import Path

from pyroute2 import netns

NAMED = Path("/run/netns")


def path_of(name: str) -> Path:
    """Return the file of a namespace: a path as it is, a process number, or a name that `ip netns` knows."""
    if name.isdecimal():
        return Path("/proc", name, "ns/net")
    return Path(name) if "/" in name else NAMED / name


def socket_in(name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """Make a socket there, or here for an empty name. Raises OSError."""
    if not name:
        return socket.socket(family, kind, protocol)
    path = path_of(name)
    if not path.exists():
        raise FileNotFoundError(2, "no such network namespace", str(path))
    made: socket.socket = netns.create_socket(str(path), family, kind, protocol, flags=0)
    return made
