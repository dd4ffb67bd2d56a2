"""Sockets that fail: answers are reported as lost, and the next call has a new socket.

On rtnetlink, which needs no root for reading.
"""

import errno
import os
import socket

import pytest

from ipvsproxy.kernel.wire import netlink
from ipvsproxy.kernel.wire.netlink import Interrupted, KernelError, Lost, Wire, message
from tests.support.limited_socket import LimitedSocket

RTM_GETLINK, RTM_GETADDR = 18, 22
ALL_ADDRESSES = message(RTM_GETADDR, 0, bytes(8))
LOOPBACK = message(RTM_GETLINK, 0, bytes(4) + (1).to_bytes(4, "little") + bytes(8))
NO_LINK = message(RTM_GETLINK, 0, bytes(4) + (0x7FFFFFF).to_bytes(4, "little") + bytes(8))
CALLS = {
    "batch": lambda wire: wire.batch([message(0x7FFF, 0, bytes(8))]),
    "dump": lambda wire: wire.dump(ALL_ADDRESSES),
    "request": lambda wire: wire.request(LOOPBACK),
}
CODES = [errno.ENOBUFS, errno.ENOMEM, errno.EBADF, errno.EINTR, errno.EBUSY]


class FailingSocket:
    """A socket of which one call fails, a number of times."""

    def __init__(self, real, call, code, times):
        self._real, self._call, self._code, self._times = real, call, code, times

    def __getattr__(self, name):
        if name == self._call and self._times:
            self._times -= 1
            return self._fail
        return getattr(self._real, name)

    def _fail(self, *_, **__):
        if self._code == errno.ETIMEDOUT:
            raise BlockingIOError(errno.EAGAIN, "no answer in time")
        raise OSError(self._code, os.strerror(self._code))


class Unheard:
    """A socket whose questions do not arrive."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def send(self, data):
        return len(data)


@pytest.fixture
def wire():
    opened = Wire(socket.NETLINK_ROUTE)
    yield opened
    opened.close()


@pytest.mark.parametrize("code", [*CODES, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("name", "call"),
    [("batch", "send"), ("batch", "recv"), ("dump", "send"), ("dump", "recvmsg"), ("request", "recvmsg")],
)
def test_what_fails_is_lost_and_the_next_call_works(wire, name, call, code):
    first = wire._socket
    wire._socket = FailingSocket(first, call, code, 1)
    with pytest.raises(Lost) as lost:
        CALLS[name](wire)
    assert lost.value.errno == code
    assert first.fileno() == -1
    assert wire.dump(ALL_ADDRESSES)
    assert wire.request(LOOPBACK)


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_that_does_not_answer(monkeypatch, name):
    monkeypatch.setattr(netlink, "TIMEOUT", netlink.TIMEVAL.pack(0, 10_000))
    wire = Wire(socket.NETLINK_ROUTE)
    wire._socket = Unheard(wire._socket)
    with pytest.raises(Lost) as lost:
        CALLS[name](wire)
    assert lost.value.errno == errno.ETIMEDOUT
    wire.close()


@pytest.mark.parametrize("name", CALLS)
def test_a_socket_that_was_closed_under_us(wire, name):
    wire._socket.close()
    with pytest.raises(Lost):
        CALLS[name](wire)
    assert wire.request(LOOPBACK)


def test_a_descriptor_that_other_code_closed(wire):
    os.close(wire._socket.fileno())
    with pytest.raises(Lost):
        wire.request(LOOPBACK)
    assert wire.request(LOOPBACK)


@pytest.mark.parametrize("name", CALLS)
def test_no_new_socket_can_be_had_for_a_while(wire, name, monkeypatch):
    real = netlink.netns.create_socket
    monkeypatch.setattr(
        netlink.netns, "create_socket", FailingSocket(None, "create_socket", errno.EMFILE, 9)._fail
    )
    wire._socket.close()
    for _ in range(3):
        with pytest.raises(Lost):
            CALLS[name](wire)
    monkeypatch.setattr(netlink.netns, "create_socket", real)
    with pytest.raises(Lost):
        CALLS[name](wire)
    assert wire.request(LOOPBACK)


def test_refusals_are_no_losses(wire):
    before = wire._socket
    with pytest.raises(KernelError) as refused:
        wire.request(NO_LINK)
    assert not isinstance(refused.value, Lost)
    assert refused.value.errno == errno.ENODEV
    assert wire._socket is before
    assert wire.request(LOOPBACK)


def test_interrupted_dumps_are_repeated_and_given_up_at_last(wire, monkeypatch):
    real, left = wire.stream, [2]

    def interrupted(question):
        left[0] -= 1
        yield from real(question)
        if left[0] >= 0:
            raise Interrupted

    monkeypatch.setattr(wire, "stream", interrupted)
    assert wire.dump(ALL_ADDRESSES)
    left[0] = 99
    with pytest.raises(Lost) as lost:
        wire.dump(ALL_ADDRESSES)
    assert lost.value.errno == errno.EINTR


class Scripted:
    """A socket that answers with these messages, whatever it is asked."""

    def __init__(self, *answers):
        self._answers = list(answers)

    def send(self, data):
        (self._sequence,) = netlink.SEQUENCE.unpack_from(data, netlink.SEQUENCE_AT)

    def close(self):
        pass

    def recvmsg(self, _):
        kind, body = self._answers.pop(0)
        return netlink.HEADER.pack(16 + len(body), kind, 2, self._sequence, 0) + body, [], 0, None


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EINTR, errno.EOPNOTSUPP])
def test_a_dump_that_ends_with_an_error_is_not_taken_for_a_whole_one(wire, code):
    part = (20, bytes(8))
    wire._socket.close()
    wire._socket = Scripted(part, (netlink.NLMSG_DONE, netlink.ERROR_CODE.pack(-code)))
    with pytest.raises(KernelError) as refused:
        wire.dump(ALL_ADDRESSES)
    assert refused.value.errno == code
    wire._socket = Scripted(part, (netlink.NLMSG_DONE, netlink.ERROR_CODE.pack(0)))
    assert wire.dump(ALL_ADDRESSES) == [bytes(8)]
    wire._socket = Scripted(part, (netlink.NLMSG_DONE, b""))
    assert wire.dump(ALL_ADDRESSES) == [bytes(8)]
    wire._renew()


def test_of_what_fails_in_a_piece_the_first_counts(wire):
    """The later ones often fail since the first did."""
    answers = [(1, errno.ENOENT), (1, errno.ESRCH), (netlink.LAST_SEQUENCE, 0)]

    class ScriptedReplies(Scripted):
        def recv(self, _):
            sequence, code = answers.pop(0)
            return netlink.ERROR_REPLY.pack(36, netlink.NLMSG_ERROR, 0, sequence, 0, -code) + bytes(16)

    wire._socket.close()
    wire._socket = ScriptedReplies()
    assert wire.batch([message(1, 0, bytes(8), n) for n in range(3)]) == {1: errno.ENOENT}
    wire._renew()


def test_a_transaction_too_large_for_the_send_buffer_is_refused_unsent(wire):
    first = wire._socket = LimitedSocket(wire._socket)
    with pytest.raises(KernelError) as refused:
        wire.transaction([bytes(64 << 20)])
    assert refused.value.errno == errno.EMSGSIZE
    assert not isinstance(refused.value, Lost)
    assert (first.sent, wire._socket) == (0, first)


def test_a_datagram_may_have_all_of_the_send_buffer_but_a_few_bytes(wire):
    size = wire._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    wire._socket = LimitedSocket(wire._socket)
    most = wire._send_most
    assert size - most == 32
    last = message(0x7FFF, netlink.NLM_F_ACK, bytes(most - 16))
    assert wire.transaction([last]) == (0, errno.EOPNOTSUPP)
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        wire._socket.send(bytes(most + 1))
