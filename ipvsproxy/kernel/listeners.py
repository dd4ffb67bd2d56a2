"""Ports on which something in this network namespace listens, over sock_diag.

As ss(8) lists them: TCP sockets that listen, and UDP sockets without a peer. Sockets on loopback addresses do not
count, since no packet from outside reaches them. A UDP port that the kernel may have chosen itself (a client that
waits for answers) does not count either: it would come and go with each DNS query.

Layouts: inet_diag_req_v2 and inet_diag_msg in include/uapi/linux/inet_diag.h, states in include/net/tcp_states.h.
A kernel without the module of a protocol (tcp_diag, udp_diag, sctp_diag) does not tell who listens.
"""

import errno
import socket
import struct
from collections.abc import Iterator

import structlog

from ipvsproxy.base.address import is_loopback
from ipvsproxy.kernel.local_ports import local_range
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, message
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.model import Protocol

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
REQUEST = struct.Struct("=BBBxI48x")
"""Family, protocol, extensions, states; no particular socket."""
SOCKET = struct.Struct("!BBBBHH16s")
"""Family, state, timer, retransmissions; source port, destination port, source address."""
TCP_CLOSE, TCP_LISTEN = 1 << 7, 1 << 10
STATES = {Protocol.TCP: TCP_LISTEN, Protocol.UDP: TCP_CLOSE, Protocol.SCTP: TCP_LISTEN}
UNKNOWN = (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP)
"""The error of a kernel for a protocol that it cannot list."""


log = structlog.get_logger()


class Listeners:
    """The listening sockets of this network namespace. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._wire = Wire(NETLINK_SOCK_DIAG)
        self._untold: set[Protocol] = set()

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()

    def ports(self) -> frozenset[Port]:
        """Return protocol and port of what listens on any address but loopback ones. Raises KernelError."""
        chosen = local_range()
        return frozenset(
            (protocol, port)
            for protocol in STATES
            for family in (socket.AF_INET, socket.AF_INET6)
            for port in self._of(protocol, family)
            if protocol != Protocol.UDP or port not in chosen
        )

    def _of(self, protocol: Protocol, family: int) -> Iterator[int]:
        request = message(SOCK_DIAG_BY_FAMILY, 0, REQUEST.pack(family, protocol, 0, STATES[protocol]))
        try:
            found = self._wire.dump(request)
        except KernelError as error:
            if error.errno not in UNKNOWN:
                raise
            self._cannot_tell(protocol)
            return
        for body in found:
            _, _, _, _, port, _, address = SOCKET.unpack_from(body)
            if port and not is_loopback(address[: 4 if family == socket.AF_INET else 16]):
                yield port

    def _cannot_tell(self, protocol: Protocol) -> None:
        """Warn once; not of SCTP, whose module hosts lack that do not use it."""
        if protocol not in self._untold and protocol != Protocol.SCTP:
            log.warning(
                "Could not list listening sockets, Services may take ports of this node's programs",
                protocol=protocol.name, hint=f"load the module {protocol.name.lower()}_diag",
            )  # fmt: skip
        self._untold.add(protocol)
