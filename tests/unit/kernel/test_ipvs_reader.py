"""Requests that read IPVS: what does not exist is no error, everything else is."""

import errno

import pytest

from ipvsproxy.kernel import ipvs_reader
from ipvsproxy.kernel.ipvs_reader import IpvsReader
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.state import FrontendKey

KEY = FrontendKey(bytes((10, 96, 0, 1)), 6, 80)


@pytest.fixture
def reader(monkeypatch):
    """A reader whose kernel answers as `Socket.answer` says."""

    class Socket:
        answer = staticmethod(lambda: None)

        def __init__(self, _, receive=0):
            self.receive = receive

        def dump(self, _):
            return Socket.answer()

        def request(self, _):
            return Socket.answer()

        def close(self):
            Socket.closed += 1

        closed = 0

    monkeypatch.setattr(ipvs_reader, "generic_family", lambda _: 30)
    monkeypatch.setattr(ipvs_reader, "Wire", Socket)
    made = IpvsReader()
    made.socket = Socket
    return made


def fail(code):
    def answer():
        raise KernelError("netlink request", code)

    return answer


@pytest.mark.parametrize("code", [errno.ESRCH, errno.ENOENT])
def test_a_server_that_does_not_exist_is_none_and_has_no_destinations(reader, code):
    reader.socket.answer = staticmethod(fail(code))
    assert reader.service(KEY) is None
    assert reader.destinations(KEY) == []


@pytest.mark.parametrize("ask", [IpvsReader.service, IpvsReader.destinations])
def test_another_refusal_is_an_error(reader, ask):
    reader.socket.answer = staticmethod(fail(errno.EPERM))
    with pytest.raises(KernelError):
        ask(reader, KEY)


def test_a_list_of_servers_that_fails_is_no_empty_list(reader):
    reader.socket.answer = staticmethod(fail(errno.ENOENT))
    with pytest.raises(KernelError):
        reader.services()


def test_destinations_are_read_in_small_pieces_and_both_sockets_are_closed(reader):
    assert (reader._small.receive, reader._wire.receive) == (ipvs_reader.SMALL_READ, 0)
    reader.close()
    assert reader.socket.closed == 2
