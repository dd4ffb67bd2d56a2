"""The head of an answer, that is its status line and headers, is bounded in size and time.

`http.client` bounds the length of a line and the number of headers, but not how long they take, nor how many lines
an HTTP proxy sends before a tunnel is open. Below the buffer everything can be counted.
"""

import http.client
import io
import socket
import time
from typing import Any

HEAD_BYTES = 1 << 16
"""Of an API server it has about 500."""
HEAD_SECONDS = 60.0
"""From its first byte; how long that may take to come is the time limit of the request."""


class HeadTooLarge(http.client.HTTPException):
    """The head is larger, or takes longer, than it may."""


class _Arriving(io.RawIOBase):
    """The bytes of a socket, counted until `is_over` is set."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self._left = HEAD_BYTES
        self._until = 0.0
        self.is_over = False

    def readable(self) -> bool:
        """Yes, as the buffer asks."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read from the socket. Raises HeadTooLarge."""
        if self.is_over:
            return self._raw.readinto(buffer)
        if self._left <= 0:
            raise HeadTooLarge(f"the headers of the answer are larger than {HEAD_BYTES} bytes")
        if self._until and time.monotonic() > self._until:
            raise HeadTooLarge(f"the headers of the answer were not complete within {HEAD_SECONDS:g} s")
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        self._until = self._until or time.monotonic() + HEAD_SECONDS
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        if not self.closed:
            self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer whose head is bounded."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self._arriving = _Arriving(self.fp.detach())
        self.fp = io.BufferedReader(self._arriving)

    def begin(self) -> None:
        """Read the head. Raises HeadTooLarge, and what HTTPResponse raises."""
        super().begin()
        self._arriving.is_over = True
