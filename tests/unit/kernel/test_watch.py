"""What the kernel's notifications are sorted into; messages as the kernel sends them."""

import errno
import os
import socket
import struct

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel import watch
from ipvsproxy.kernel.watch import IFINFOMSG, Channel, LinkNotifications, RuleNotifications, Watcher
from ipvsproxy.kernel.wire.netlink import attribute, message
from ipvsproxy.kernel.wire.rtnetlink import IFADDRMSG, RTMSG
from ipvsproxy.plan.notification import RulesChanged, VipsChanged
from ipvsproxy.plan.state import Vip, VipForm

OWN, OTHER = 7, 2
V4, V6 = parse_ip("10.96.0.1"), parse_ip("fd00::1")


class NotificationList(list):
    """What was told, in order; the addresses of other links as a word."""

    def addresses(self):
        self.append("addresses")


@pytest.fixture
def heard():
    return NotificationList()


@pytest.fixture
def links(heard, monkeypatch):
    monkeypatch.setattr(socket, "if_nametoindex", lambda _: OWN)
    return LinkNotifications(heard.append, heard.addresses)


@pytest.fixture
def rules(heard):
    return RuleNotifications("ipvsproxy", heard.append)


def address(kind, packed, index):
    number = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    body = IFADDRMSG.pack(number, len(packed) * 8, 0, 0, index) + attribute(1, packed)
    return kind, 0, 0, body + (attribute(2, packed) if len(packed) == 4 else b"")


def route(kind, packed, protocol, index=OWN):
    """To lo, which has the number OWN here, too."""
    body = RTMSG.pack(socket.AF_INET, 32, 0, 0, 255, protocol, 254, 2, 0)
    return kind, 0, 0, body + attribute(1, packed) + attribute(4, struct.pack("=I", index))


def link(kind, name, index):
    return kind, 0, 0, IFINFOMSG.pack(0, 0, index, 0, 0) + attribute(3, name.encode() + b"\0")


def rule(number, table="ipvsproxy", rest=b""):
    return 10 << 8 | number, 0, 0, struct.pack(">BBH", 1, 0, 0) + attribute(1, table.encode() + b"\0") + rest


def element(number, name, table="ipvsproxy"):
    return rule(number, table, attribute(2, name.encode() + b"\0"))


def generation(number):
    return 10 << 8 | 15, 0, 0, bytes(4) + attribute(1, struct.pack(">I", number))


def test_addresses_of_kube_ipvs0_are_vips_and_others_are_the_nodes(links, heard):
    links.take([address(20, V4, OWN), address(21, V6, OWN), address(20, parse_ip("fe80::1"), OWN)])
    assert heard == [VipsChanged(((Vip(V4, VipForm.ADDRESS), True), (Vip(V6, VipForm.ADDRESS), False)))]
    links.take([address(20, V4, OTHER)])
    assert heard[1:] == ["addresses"]


def test_routes_of_ours_are_vips(links, heard):
    links.take([route(25, V4, 118), route(25, V4, 2)])
    assert heard == [VipsChanged(((Vip(V4, VipForm.ROUTE), False),))]
    links.take([route(24, V4, 118, OTHER)])
    assert heard[1:] == [VipsChanged(((Vip(V4, VipForm.STRAY), True),))]


def test_the_link_is_followed_when_it_goes_and_comes_with_another_number(links, heard):
    links.take([link(17, "kube-ipvs0", OWN), link(17, "veth1", 9)])
    assert heard == [VipsChanged((), unsure=True)]
    links.take([link(16, "kube-ipvs0", 11), address(20, V4, 11), address(20, V4, OWN)])
    assert heard[1:] == [VipsChanged(((Vip(V4, VipForm.ADDRESS), True),)), "addresses"]


def test_what_overflows_may_be_anything(links, rules, heard):
    links.lost()
    rules.lost()
    assert heard == ["addresses", VipsChanged((), unsure=True), RulesChanged(0, unsure=True)]


def test_a_transaction_on_our_table_is_reported_with_its_number(rules, heard):
    rules.take([element(12, "vips4"), element(14, "frontends4"), element(12, "vips4")])
    assert heard == []
    rules.take([generation(41), generation(42)])
    assert heard == [RulesChanged(41, frozenset(("vips4", "frontends4")))]


@pytest.mark.parametrize("number", [0, 2, 3, 5, 6, 8, 9, 11])
def test_anything_but_elements_concerns_the_whole_table(rules, heard, number):
    rules.take([rule(number), generation(5)])
    assert heard == [RulesChanged(5, frozenset(), whole=True)]


def test_tables_of_others_are_no_notification(rules, heard):
    rules.take([rule(6, "filter"), element(12, "vips4", "ipvsproxy2"), rule(6, "ipvsprox"), generation(5)])
    assert heard == []


@pytest.mark.parametrize(("number", "family", "told"), [(3, 2, True), (6, 10, True), (8, 2, False), (6, 1, False)])
def test_what_may_drop_replies_is_a_notification(rules, heard, number, family, told):
    kind, flags, sequence, body = rule(number, "filter")
    rules.take([(kind, flags, sequence, bytes((family,)) + body[1:]), generation(5), generation(6)])
    assert heard == ([RulesChanged(5, forward=True)] if told else [])


def test_a_rule_that_keeps_packets_from_conntrack_is_a_notification(rules, heard):
    hides = attribute(4, attribute(1, attribute(1, b"notrack\0")))
    rules.take([rule(6, "raw", hides), generation(5), rule(8, "raw", hides), generation(6)])
    rules.take([rule(6, "raw", attribute(4, attribute(1, attribute(1, b"counter\0")))), generation(7)])
    assert heard == [RulesChanged(5, untracked=True)]


class Noted:
    """Writes down the kinds of messages, and losses."""

    def __init__(self):
        self.heard = []

    def take(self, messages):
        self.heard += [kind for kind, *_ in messages]

    def lost(self):
        self.heard.append("lost")


USERSOCK = 2
"""NETLINK_USERSOCK: programs may send each other what they like."""


class Ears(Watcher):
    """A watcher of one channel, to which anybody can send."""

    def __init__(self):
        self.noted = Noted()
        self.channels = (Channel(USERSOCK, 0, self.noted),)

    @property
    def channel(self):
        return self.channels[0]

    def tell(self, kind):
        """Send a message and return what is heard then."""
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, USERSOCK) as mouth:
            mouth.bind((0, 0))
            mouth.sendto(message(kind, 0, b""), self.channel.socket.getsockname())
        self.listen(0.01)
        heard, self.noted.heard = self.noted.heard, []
        return heard


@pytest.fixture
def ears():
    made = Ears()
    assert made.tell(40) == [40]
    yield made
    made.channel.socket.close()


def close_it(ears):
    ears.channel.socket.close()


def close_its_descriptor(ears):
    os.close(ears.channel.socket.fileno())


def give_its_number_to_another_file(ears):
    with open(os.devnull) as other:  # noqa: PTH123
        os.dup2(other.fileno(), ears.channel.socket.fileno())


@pytest.mark.parametrize("closed", [close_it, close_its_descriptor, give_its_number_to_another_file])
def test_a_socket_that_is_closed_under_us_is_replaced_and_tells_that_something_was_missed(ears, closed):
    closed(ears)
    with capture_logs() as logs:
        ears.listen(0.01)
    assert ears.noted.heard == ["lost"]
    assert [line["log_level"] for line in logs] == ["warning"]
    ears.noted.heard.clear()
    assert ears.tell(41) == [41]


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOMEM, errno.ENOTSOCK, errno.ECONNRESET])
def test_a_socket_that_fails_is_replaced(ears, code):
    first = ears.channel.socket
    ears.channel.socket = Failing(first, code)
    ears.channel.take()
    assert ears.channel.socket is None
    assert first.fileno() == -1
    ears.listen(0.01)
    assert ears.noted.heard == ["lost"]
    ears.noted.heard.clear()
    assert ears.tell(41) == [41]


def test_a_socket_that_had_too_little_room_is_kept(ears):
    real = ears.channel.socket
    ears.channel.socket = Failing(real, errno.ENOBUFS)
    ears.channel.take()
    assert ears.noted.heard == ["lost"]
    assert real.fileno() != -1
    ears.channel.socket = real


class Failing:
    """A socket from which nothing can be received."""

    def __init__(self, real, code):
        self._real, self._code = real, code

    def __getattr__(self, name):
        return getattr(self._real, name)

    def recv(self, _):
        raise OSError(self._code, os.strerror(self._code))


def test_no_new_socket_can_be_had_for_a_while(ears, monkeypatch):
    real = watch.listen

    def none_left(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(watch, "listen", none_left)
    ears.channel.socket.close()
    with capture_logs() as logs:
        for _ in range(5):
            ears.listen(0.001)
    assert [line["log_level"] for line in logs] == ["warning", "error"]
    monkeypatch.setattr(watch, "listen", real)
    ears.listen(0.01)
    assert ears.noted.heard == ["lost"]
    ears.noted.heard.clear()
    assert ears.tell(41) == [41]
