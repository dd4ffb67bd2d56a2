"""Many netlink messages in few system calls, on a plain blocking socket.

pyroute2 makes the socket and looks up family numbers; its encoders and its batch call are not used here, since
they cost hundreds of times more per message and hang when acknowledgements overflow the receive buffer.

How a batch works (netlink(7), net/netlink/af_netlink.c): messages are packed into datagrams, each of which ends
with a message that does nothing and asks for an acknowledgement (NLMSG_NOOP). Successes are silent, errors arrive
all the same and name their message by sequence number, and the kernel goes on after an error. Each reply costs
768 bytes of receive buffer whatever its length, so a datagram holds no more messages than replies would fit.

A message is bytes: complete and aligned. What belongs together in a batch (a server and its destinations) is one
piece and carries its index as the sequence number of all its messages; the encoder puts it there, which is
cheaper than to do so later.
"""

import errno
import os
import socket
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate

from pyroute2 import netns
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.generic.ipvs import ipvsmsg

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_DUMP, NLM_F_DUMP_INTR = 0x300, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 12
HEADER = struct.Struct("=IHHII")
GENERIC = struct.Struct("=BBH")
NUMBER_MASK = 0x3FFF
"""Of an attribute's type, the bits that are its number; the others are flags."""
ERROR_CODE = struct.Struct("=i")
ERROR_REPLY = struct.Struct("=IHHIIi")
REPLY_BYTES = 4096
FLAGS_AT, SEQUENCE_AT = 6, 8
FLAGS, SEQUENCE = struct.Struct("=H"), struct.Struct("=I")
LAST_SEQUENCE = 0xFFFFFFFF
LAST = HEADER.pack(16, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, LAST_SEQUENCE, 0)
"""Ends every datagram of a batch."""

DATAGRAM_BYTES = 1 << 16
RECEIVE_BUFFER = 4 << 20
SO_SNDBUFFORCE, SPARE_BYTES = 32, 1 << 16
SEND_OVERHEAD = 32
"""Of the send buffer, what a datagram cannot have (netlink_sendmsg)."""
BYTES_PER_REPLY = 768
SHORTEST_MESSAGE = 36
"""Bytes of the shortest message that is sent in batches: the removal of an IPv4 route."""
TIMEVAL = struct.Struct("@ll")
TIMEOUT = TIMEVAL.pack(30, 0)
"""How long the kernel may take to reply: seconds and microseconds."""
DUMP_TRIES = 5


class KernelError(Exception):
    """The kernel refused an operation; `errno` states why."""

    def __init__(self, operation: str, code: int) -> None:
        super().__init__(f"{operation}: {os.strerror(code)}")
        self.operation = operation
        self.errno = code


class Lost(KernelError):
    """Replies were lost: what the kernel holds now is unknown and has to be read again."""


class Interrupted(KernelError):
    """The kernel reports that what it listed has changed meanwhile: some of it may be missing."""

    def __init__(self) -> None:
        super().__init__("netlink dump", errno.EINTR)


def message(kind: int, flags: int, body: bytes, sequence: int = 0) -> bytes:
    """Return a request: a netlink header and a body, a multiple of four bytes long."""
    return HEADER.pack(16 + len(body), kind, NLM_F_REQUEST | flags, sequence, 0) + body


def generic(family: int, command: int, attributes: bytes) -> bytes:
    """Return a generic netlink request of version 1."""
    return message(family, 0, GENERIC.pack(command, 1, 0) + attributes)


def attribute(number: int, payload: bytes) -> bytes:
    """Encode one attribute, padded to four bytes."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + bytes(-length % 4)


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Yield (number, payload) of the attributes in a message."""
    view = memoryview(data)
    while offset + 4 <= len(view):
        length, number = struct.unpack_from("=HH", view, offset)
        if length < 4:
            return
        yield number & NUMBER_MASK, view[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def text(payload: bytes | memoryview) -> str:
    """Return a name, which ends with a zero byte where the kernel sends it."""
    return bytes(payload).rstrip(b"\0").decode(errors="replace")


def generic_family(name: str) -> int:
    """Return the number of a generic netlink family; asking makes the kernel load its module.

    Raises KernelError(ENOENT) when there is none.
    """
    try:
        with GenericNetlinkSocket() as lookup:
            lookup.bind(name, ipvsmsg)
            return int(lookup.prid)
    except NetlinkError as error:
        raise KernelError(f"looking up netlink family {name}", error.code) from error


class Wire:
    """A netlink socket for batches and dumps. Not thread-safe; `receive` bytes are read at once.

    `strict`: rtnetlink lists only what is like the header of the request, and refuses one that makes no sense.
    """

    def __init__(self, protocol: int, receive: int = 1 << 16, *, strict: bool = False) -> None:
        self._protocol = protocol
        self._strict = strict
        self._receive = receive
        self._sequence = 0
        self._socket = self._open()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def batch(self, pieces: Sequence[bytes]) -> dict[int, int]:
        """Send all pieces in order and return {index: first errno} of those in which something failed.

        The sequence number of all messages in a piece must be its index. Raises Lost when replies did not
        arrive; the socket is then a new one.
        """
        failures: dict[int, int] = {}
        first = 0
        try:
            for end in self._cuts(pieces):
                self._socket.send(b"".join((*pieces[first:end], LAST)))
                self._collect(failures)
                first = end
        except OSError as error:
            raise self._lost("netlink batch", error) from error
        return failures

    def transaction(self, pieces: Sequence[bytes]) -> tuple[int, int] | None:
        """Send messages that take effect together or not at all, in one datagram.

        The sequence number of each piece must be its index. The kernel is done with them when it has taken the
        datagram, and replies to those that fail, and to the one which asks for it (NLM_F_ACK). Returns index and
        errno of the first failure, None without any. Raises KernelError (EMSGSIZE) where they are too many for a
        datagram, Lost where there is no reply at all.
        """
        data, failure, replied = b"".join(pieces), None, False
        try:
            if len(data) > self._send_most:
                self._widen(len(data))
            if len(data) > self._send_most:
                raise KernelError("netlink transaction", errno.EMSGSIZE)
            self._socket.send(data)
            with suppress(BlockingIOError):
                while True:
                    reply = self._socket.recv(REPLY_BYTES, socket.MSG_DONTWAIT)
                    _, kind, _, sequence, _, code = ERROR_REPLY.unpack_from(reply)
                    replied = replied or kind == NLMSG_ERROR
                    if kind == NLMSG_ERROR and code and failure is None:
                        failure = sequence, -code
        except OSError as error:
            raise self._lost("netlink transaction", error) from error
        if not replied:
            raise Lost("netlink transaction", errno.ENOBUFS)
        return failure

    def _widen(self, size: int) -> None:
        """Let datagrams of a size pass, as far as a process without the right to exceed the limit may."""
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            with suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, option, size + SPARE_BYTES)
        self._send_most = _largest_datagram(self._socket)

    def _cuts(self, pieces: Sequence[bytes]) -> Iterator[int]:
        """Yield where datagrams end: as many pieces as fit, one at least."""
        count, first = len(pieces), 0
        ends = list(accumulate(map(len, pieces), initial=0))
        while first < count:
            first = max(bisect_right(ends, ends[first] + self._most) - 1, first + 1)
            yield first

    def dump(self, request: bytes) -> list[bytes]:
        """Return the messages of a dump, without their netlink headers; repeated when the kernel interrupts it.

        Raises KernelError when the kernel refuses it, Lost when it is cut short.
        """
        for _ in range(DUMP_TRIES):
            with suppress(Interrupted):
                return list(self.stream(request))
        raise Lost("netlink dump", errno.EINTR)

    def stream(self, request: bytes) -> Iterator[bytes]:
        """Yield the messages of a dump as they arrive, without their netlink headers: never all are held at once.

        Raises KernelError when the kernel refuses it, Lost when it is cut short, Interrupted after the last one.
        """
        try:
            yield from self._stream(request)
        except OSError as error:
            raise self._lost("netlink dump", error) from error
        except GeneratorExit:
            # The rest of the replies would stand in the way of the next request.
            self._renew()
            raise

    def request(self, request: bytes) -> bytes:
        """Return the one message that replies to a request, without its netlink header.

        Raises KernelError when the kernel refuses it, Lost when no reply arrives.
        """
        try:
            return self._reply(request)
        except OSError as error:
            raise self._lost("netlink request", error) from error

    def _reply(self, request: bytes) -> bytes:
        self._send_request(request, NLM_F_REQUEST)
        while True:
            for kind, _, sequence, body in self._read():
                if sequence == self._sequence and kind == NLMSG_ERROR:
                    raise KernelError("netlink request", -ERROR_CODE.unpack_from(body)[0])
                if sequence == self._sequence:
                    return body

    def _open(self) -> socket.socket:
        sock: socket.socket = netns.create_socket(
            None, family=socket.AF_NETLINK, socket_type=socket.SOCK_RAW, proto=self._protocol
        )
        sock.bind((0, 0))
        # Not settimeout(), with which Python asks poll(2) before every call: twice as many system calls.
        for direction in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, direction, TIMEOUT)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        if self._strict:
            sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        for option in (socket.SO_RCVBUF, getattr(socket, "SO_RCVBUFFORCE", 33)):
            # Without the right to exceed the limit the plain option has set what it may.
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
        replies = int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) * 0.9) // BYTES_PER_REPLY
        self._most = min(DATAGRAM_BYTES, replies * SHORTEST_MESSAGE)
        self._send_most = _largest_datagram(sock)
        return sock

    def _lost(self, operation: str, error: OSError) -> Lost:
        """Take a new socket, since late replies must not count for later requests; return what to raise."""
        self._renew()
        return Lost(operation, errno.ETIMEDOUT if isinstance(error, BlockingIOError) else error.errno or errno.EIO)

    def _renew(self) -> None:
        with suppress(OSError):
            self._socket.close()
        # Without one (no memory, no descriptor) the closed one fails at once next time, and brings us here again.
        with suppress(OSError):
            self._socket = self._open()

    def _collect(self, failures: dict[int, int]) -> None:
        """Read replies until the last one; each comes alone and is short."""
        while True:
            _, kind, _, sequence, _, code = ERROR_REPLY.unpack_from(self._socket.recv(REPLY_BYTES))
            if kind != NLMSG_ERROR:
                continue
            if sequence == LAST_SEQUENCE:
                return
            failures.setdefault(sequence, -code)

    def _send_request(self, request: bytes, flags: int) -> None:
        self._sequence += 1
        data = bytearray(request)
        FLAGS.pack_into(data, FLAGS_AT, flags | FLAGS.unpack_from(data, FLAGS_AT)[0])
        SEQUENCE.pack_into(data, SEQUENCE_AT, self._sequence)
        self._socket.send(data)

    def _stream(self, request: bytes) -> Iterator[bytes]:
        self._send_request(request, NLM_F_DUMP)
        interrupted = False
        while True:
            for kind, flags, sequence, body in self._read():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    code = ERROR_CODE.unpack_from(body)[0] if len(body) >= ERROR_CODE.size else 0
                    if code < 0:
                        raise KernelError("netlink dump", -code)  # what failed half way ends like this, too
                    if interrupted:
                        raise Interrupted
                    return
                if kind == NLMSG_ERROR:
                    raise KernelError("netlink dump", -ERROR_CODE.unpack_from(body)[0])
                yield body

    def _read(self) -> Iterator[tuple[int, int, int, bytes]]:
        data, _, flags, _ = self._socket.recvmsg(self._receive)
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "truncated netlink message")
        return messages_in(data)


def _largest_datagram(sock: socket.socket) -> int:
    return int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)) - SEND_OVERHEAD


def messages_in(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence number, body) of the messages in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def listen(protocol: int, groups: int) -> socket.socket:
    """Return a socket that receives the notifications of some multicast groups (a bit mask)."""
    sock: socket.socket = netns.create_socket(
        None, family=socket.AF_NETLINK, socket_type=socket.SOCK_RAW, proto=protocol
    )
    sock.bind((0, groups))
    return sock
