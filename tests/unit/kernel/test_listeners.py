"""What listens is read from the running kernel: real sockets, which need no rights."""

import errno
import socket
from contextlib import ExitStack, closing

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import listeners
from ipvsproxy.kernel.listeners import Listeners
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.model import Protocol

SIX = pytest.mark.skipif(not socket.has_ipv6, reason="this host has no IPv6")


@pytest.fixture
def open_port():
    with ExitStack() as opened:

        def made(address, kind):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            opening = opened.enter_context(socket.socket(family, kind))
            opening.bind((address, 0))
            if kind is socket.SOCK_STREAM:
                opening.listen()
            return opening.getsockname()[1]

        yield made


def ports():
    with closing(Listeners()) as reading:
        return reading.ports()


@pytest.mark.parametrize("address", ["0.0.0.0", pytest.param("::", marks=SIX)])
def test_what_listens_on_all_addresses_is_found(open_port, monkeypatch, address):
    monkeypatch.setattr(listeners, "local_range", lambda: range(0))
    assert (Protocol.TCP, open_port(address, socket.SOCK_STREAM)) in ports()
    assert (Protocol.UDP, open_port(address, socket.SOCK_DGRAM)) in ports()


def test_what_listens_on_loopback_only_is_nobodys_business(open_port, monkeypatch):
    monkeypatch.setattr(listeners, "local_range", lambda: range(0))
    here = {
        (Protocol.TCP, open_port("127.0.0.1", socket.SOCK_STREAM)),
        (Protocol.UDP, open_port("127.0.0.1", socket.SOCK_DGRAM)),
    }
    assert here.isdisjoint(ports())


def test_udp_ports_that_the_kernel_may_have_chosen_do_not_count(open_port):
    assert (Protocol.UDP, open_port("0.0.0.0", socket.SOCK_DGRAM)) not in ports()


def test_protocols_that_a_kernel_cannot_list_are_one_warning_each_and_other_errors_are_raised(monkeypatch):
    def refused(code):
        def dump(*_):
            raise KernelError("dump", code)

        return dump

    with closing(Listeners()) as reading:
        monkeypatch.setattr(reading._wire, "dump", refused(errno.ENOENT))
        with capture_logs() as lines:
            assert [reading.ports(), reading.ports()] == [frozenset(), frozenset()]
        assert [line["protocol"] for line in lines] == ["TCP", "UDP"]
        monkeypatch.setattr(reading._wire, "dump", refused(errno.EPERM))
        with pytest.raises(KernelError):
            reading.ports()
