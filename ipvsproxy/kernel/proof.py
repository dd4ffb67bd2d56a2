"""Proof that a process may change this network namespace: a netlink socket that only CAP_NET_ADMIN can make.

The kernel lets a socket join a group of NETLINK_NETFILTER only if its maker has CAP_NET_ADMIN in the user
namespace that owns the network namespace (`netlink_bind` of net/netlink/af_netlink.c: nfnetlink, unlike
rtnetlink, has no NL_CFG_F_NONROOT_RECV), and it lists all sockets of the namespace with their groups in
/proc/net/netlink. `Proof` is a socket that has joined GROUPS. To learn whether a peer has one, a process sends a
number that no other process can guess to all such sockets, and the peer repeats it on the connection between the
two: only the owner of the socket can have read it. The kernel passes the number on, within the namespace.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from ipvsproxy.kernel.process import PROC
from ipvsproxy.kernel.wire.netlink import HEADER, listen, messages_in
from ipvsproxy.kernel.wire.nfnetlink import NETLINK_NETFILTER

GROUPS = 1 << 3 | 1 << 5
"""NFNLGRP_CONNTRACK_EXP_NEW and NFNLGRP_CONNTRACK_EXP_DESTROY: hardly ever used, and never together."""
RULE_GROUPS = 1 << 6
"""NFNLGRP_NFTABLES, which every version of ipvsproxy follows."""
NUMBER_BYTES = 16
CHALLENGE = 0x10
"""NLMSG_MIN_TYPE: of no meaning to the kernel, which only passes it on."""
LARGEST = 1 << 16
MOST_ASKED = 16
PROTOCOL, PORT, JOINED, INODE = 1, 2, 3, 9
"""Columns of /proc/net/netlink (`netlink_seq_show`)."""


class Proof:
    """The socket of a holder. Raises OSError, EPERM without CAP_NET_ADMIN."""

    def __init__(self) -> None:
        self._socket = listen(NETLINK_NETFILTER, GROUPS)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor, -1 when it is closed."""
        return self._socket.fileno()

    def numbers(self) -> Iterator[bytes]:
        """Yield the numbers that have been sent to it."""
        while True:
            try:
                data = self._socket.recv(LARGEST)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                return
            for kind, _, _, body in messages_in(data):
                if kind == CHALLENGE and len(body) == NUMBER_BYTES:
                    yield body

    def close(self) -> None:
        """End the proof."""
        self._socket.close()


def challenge(number: bytes) -> bool:
    """Send a number to all proofs of this network namespace, and tell whether there are any.

    Raises PermissionError without CAP_NET_ADMIN.
    """
    message = HEADER.pack(HEADER.size + len(number), CHALLENGE, 0, 0, 0) + number
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sender:
        sender.setblocking(False)
        ports = [found.port for found in _sockets() if found.groups == GROUPS]
        for port in ports[:MOST_ASKED]:
            try:
                sender.sendto(message, (port, 0))
            except PermissionError:
                raise
            except OSError:
                continue  # it has gone, or has no room
    return bool(ports)


def others_follow_rules() -> bool:
    """Whether another process of this network namespace is notified of changes of nftables, as each proxy is."""
    mine = set(_own_inodes())
    return any(found.groups & RULE_GROUPS and found.inode not in mine for found in _sockets())


class _Socket(NamedTuple):
    port: int
    groups: int
    inode: int


def _sockets() -> Iterator[_Socket]:
    """Yield the sockets of NETLINK_NETFILTER; none where they cannot be seen."""
    with suppress(OSError), (PROC / "thread-self/net/netlink").open() as lines:
        next(lines, None)
        for words in map(str.split, lines):
            if int(words[PROTOCOL]) == NETLINK_NETFILTER:
                yield _Socket(int(words[PORT]), int(words[JOINED], 16), int(words[INODE]))


def _own_inodes() -> Iterator[int]:
    for path in (PROC / "self/fd").iterdir():
        with suppress(OSError):
            yield os.fstat(int(path.name)).st_ino
