"""Take away what a proxy left in a node's namespace, without asking the proxy to do it.

Tests must start from an empty node even when the proxy under test is broken, so this knows nothing of
ipvsproxy: it flushes all of IPVS (one generic netlink message), all of nftables, and deletes the link and the
routes.
"""

from __future__ import annotations

import socket
import struct
import subprocess

from tests.lab import netns

PROTOCOL = "118"
"""Of routes that make VIPs local."""
NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
ATTR_FAMILY_ID, ATTR_FAMILY_NAME = 1, 2
IPVS_CMD_FLUSH = 17
NLM_F_REQUEST, NLM_F_ACK = 1, 4
HEADER, GENERIC = struct.Struct("=IHHII"), struct.Struct("=BBH")


def wipe_node(where: str) -> None:
    """Empty IPVS and nftables in the namespace and delete kube-ipvs0 and our routes."""
    with netns.inside(where):
        wipe()


def wipe() -> None:
    """Do so in the namespace of the calling thread."""
    _flush_nftables()
    flush_ipvs()
    subprocess.run(["ip", "link", "del", "kube-ipvs0"], capture_output=True, check=False)
    for family in ("-4", "-6"):  # of which one without local addresses has no such table
        flush = ["ip", family, "route", "flush", "table", "local", "proto", PROTOCOL]
        subprocess.run(flush, capture_output=True, check=False)


def _flush_nftables() -> None:
    try:
        import nftables
    except ImportError:
        return
    status, _, said = nftables.Nftables().cmd("flush ruleset")
    if status != 0:
        raise RuntimeError(f"nftables was not emptied: {said}")


def flush_ipvs() -> None:
    """Do what `ipvsadm -C` does, in the namespace of the calling thread."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as channel:
        name = b"IPVS\0"
        attribute = struct.pack("=HH8s", 4 + len(name), ATTR_FAMILY_NAME, name)
        answer = _ask(channel, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, attribute)
        family = _family_id(answer)
        if family:
            _ask(channel, family, IPVS_CMD_FLUSH, b"", NLM_F_ACK)


def _ask(channel: socket.socket, kind: int, command: int, body: bytes, flags: int = 0) -> bytes:
    size = HEADER.size + GENERIC.size + len(body)
    header = HEADER.pack(size, kind, NLM_F_REQUEST | flags, 1, 0)
    channel.send(header + GENERIC.pack(command, 1, 0) + body)
    return channel.recv(65536)


def _family_id(answer: bytes) -> int:
    """Find the family's number in the answer; 0 when the kernel has no IPVS."""
    position = HEADER.size + GENERIC.size
    while position + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, position)
        if kind == ATTR_FAMILY_ID and size >= 6:
            return int(struct.unpack_from("=H", answer, position + 4)[0])
        position += max(4, (size + 3) & ~3)
    return 0
