"""A socket of a process that may not exceed the limits of buffers, as in a user namespace of its own."""

from __future__ import annotations

import errno
import os
import socket

from ipvsproxy.kernel.wire.netlink import SO_SNDBUFFORCE


class LimitedSocket:
    """A real socket that counts what is sent."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.sent = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if option == SO_SNDBUFFORCE:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        self._real.setsockopt(level, option, value)

    def send(self, data: bytes) -> int:
        self.sent += 1
        return self._real.send(data)
