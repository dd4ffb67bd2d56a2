"""Requests that read IPVS, each written once; the records are returned undecoded.

The proxy takes attributes out of them (`kernel.ipvs`), commands the counters as well (`kernel.read.reader`).
Destinations have a socket of their own with a small receive buffer: the kernel sizes its reply by the largest read
a socket ever made, and small replies cost half the time.
"""

import errno
from collections.abc import Iterator

from ipvsproxy.kernel.wire.ipvs import IPVS_CMD_GET_DEST, IPVS_CMD_GET_SERVICE, key_attribute
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, generic, generic_family
from ipvsproxy.plan.state import FrontendKey

NETLINK_GENERIC = 16
SMALL_READ = 4096
NOT_THERE = (errno.ESRCH, errno.ENOENT)
"""The kernel's errors for a virtual server that does not exist."""


class IpvsReader:
    """The virtual servers of this network namespace, as netlink messages."""

    def __init__(self) -> None:
        """Open the sockets; raises KernelError(ENOENT) when the kernel has no IPVS."""
        self._family = generic_family("IPVS")
        self._wire = Wire(NETLINK_GENERIC)
        self._small = Wire(NETLINK_GENERIC, receive=SMALL_READ)

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._small.close()

    def services(self) -> list[bytes]:
        """Return the records of all virtual servers, also firewall-mark ones, in one dump. Raises Lost."""
        return self._wire.dump(generic(self._family, IPVS_CMD_GET_SERVICE, b""))

    def service(self, key: FrontendKey) -> bytes | None:
        """Return the record of one virtual server, None when it does not exist. Raises KernelError."""
        try:
            return self._wire.request(generic(self._family, IPVS_CMD_GET_SERVICE, key_attribute(key)))
        except KernelError as error:
            if error.errno in NOT_THERE:
                return None
            raise

    def destinations(self, key: FrontendKey) -> list[bytes]:
        """Return the records of a server's destinations; none for a server that does not exist. Raises Lost."""
        try:
            return self._small.dump(generic(self._family, IPVS_CMD_GET_DEST, key_attribute(key)))
        except KernelError as error:
            if error.errno in NOT_THERE:
                return []
            raise

    def stream(self, key: FrontendKey) -> Iterator[bytes]:
        """Yield the same for a server with very many, as they arrive, while other requests go on.

        The kernel goes through the list from its beginning for each reply, so these are large. Raises KernelError.
        """
        wire = Wire(NETLINK_GENERIC)
        try:
            yield from wire.stream(generic(self._family, IPVS_CMD_GET_DEST, key_attribute(key)))
        except KernelError as error:
            if error.errno not in NOT_THERE:
                raise
        finally:
            wire.close()
