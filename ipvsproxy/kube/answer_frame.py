"""The frame of an answer is bounded in size and time: status line, headers, sizes of chunks, trailers.

`http.client` bounds the length of a line and the number of headers, but not how long they take, nor how many lines
an HTTP proxy sends before a tunnel is open, nor how many trailers there are. Below the buffer everything can be
counted.
"""

import http.client
import io
import socket
import time
from typing import Any

FRAME_BYTES = 1 << 16
"""Before content comes: the head of an API server's answer has about 500."""
FRAME_SECONDS = 60.0
"""From its first byte; how long that may take to come is the time limit of the request."""


class FrameTooLarge(http.client.HTTPException):
    """The frame is larger, or takes longer, than it may."""


class _Arriving(io.RawIOBase):
    """The bytes of a socket, of which so many may arrive until `allow` is called again."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__()
        self._raw = raw
        self._name = "headers of the answer"
        self.allow()

    def allow(self, name: str = "") -> None:
        """Begin to count, and have what is counted now named otherwise."""
        self._name = name or self._name
        self._left = FRAME_BYTES
        self._until = 0.0

    def readable(self) -> bool:
        """Yes, as the buffer asks."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read from the socket. Raises FrameTooLarge."""
        if self._left <= 0:
            raise FrameTooLarge(f"the {self._name} are larger than {FRAME_BYTES} bytes")
        if self._until and time.monotonic() > self._until:
            raise FrameTooLarge(f"the {self._name} were not complete within {FRAME_SECONDS:g} s")
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        self._until = self._until or time.monotonic() + FRAME_SECONDS
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        if not self.closed:
            self._raw.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer whose frame is bounded. Its content can be read by `read1` only."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self._arriving = _Arriving(self.fp.detach())
        self.fp = io.BufferedReader(self._arriving)

    def read1(self, n: int = -1) -> bytes:
        """Read content, of which one piece arrives behind its frame. Raises FrameTooLarge."""
        self._arriving.allow("chunk sizes or trailers of the answer")
        return super().read1(n)
