"""Notifications of the kernel, sorted: addresses of the node, VIPs of ours, our nft table.

One thread, two netlink sockets. Out: plain values for the inbox; nothing is decided here and nothing is changed.
On overflow, and after a socket had to be replaced, the notice reports that anything may have happened. Routes of
others are thrown away by the kernel itself, so that a routing daemon with a million routes costs nothing.

Layouts: include/uapi/linux/rtnetlink.h, if_link.h, netfilter/nf_tables.h, filter.h.
"""

import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

import structlog

from ipvsproxy.base.address import is_node_address
from ipvsproxy.base.errors import plain
from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.kernel.links import read_route
from ipvsproxy.kernel.notrack import keeps_from_conntrack
from ipvsproxy.kernel.wire.netlink import attribute, attributes, listen, messages_in, text
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWGEN,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWSETELEM,
    NFTA_GEN_ID,
    NFTA_GEN_PROC_NAME,
    NFTA_TABLE_NAME,
)
from ipvsproxy.kernel.wire.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    NETLINK_ROUTE,
    ROUTE_PROTOCOL,
    RTA_DST,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTMSG,
)
from ipvsproxy.plan.notification import Notification, RulesChanged, VipsChanged
from ipvsproxy.plan.state import Vip, VipForm

LINK_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE."""
RULE_GROUPS = 1 << 6
"""NFNLGRP_NFTABLES."""
SET_ELEMENTS = (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM)
"""NFT_MSG_NEWSETELEM and DELSETELEM, NEWGEN."""
FILTERING, IP_FAMILIES = (NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE), (NFPROTO_IPV4, NFPROTO_IPV6)
"""NFT_MSG_NEWCHAIN and NEWRULE; NFPROTO_IPV4 and IPV6."""
ATTRIBUTE_LENGTH = struct.Struct("=H")
RECEIVE_BUFFER = 32 << 20
"""Room for the elements of a large ruleset: each one that we load is notified to us as well."""
LARGEST = 1 << 16
CHECK_SECONDS = 5.0
"""How soon it is noticed that a socket has been closed under us, if nothing wakes the thread before."""
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33
Message = tuple[int, int, int, bytes]

log = structlog.get_logger()


class NotificationHandler(Protocol):
    """Sorts what one socket hears."""

    def take(self, messages: Iterator[Message]) -> None:
        """Sort the messages of one datagram."""

    def lost(self) -> None:
        """Some messages were lost."""


class Channel:
    """A socket that hears some groups. One that fails, or is not the one that was opened, is replaced.

    What was missed meanwhile is reported as lost. `socket` is None while there is none.
    """

    def __init__(
        self,
        protocol: int,
        groups: int,
        handler: NotificationHandler,
        prepare: Callable[[socket.socket], None] = lambda _: None,
    ) -> None:
        self._protocol = protocol
        self._groups = groups
        self._handler = handler
        self._prepare = prepare
        self._complained = False
        self._open()

    def _open(self) -> None:
        self.socket: socket.socket | None = listen(self._protocol, self._groups)
        self._identity = _identity(self.socket)
        self._prepare(self.socket)
        with suppress(PermissionError):
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)

    def hears(self) -> bool:
        """Whether it can be listened to; where not, a new socket is tried."""
        if self.socket is not None and _identity(self.socket) == self._identity:
            return True
        self._discard("it has been closed")
        try:
            self._open()
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.error("Could not subscribe to netlink notifications, will retry", err=plain(error))
            return False
        self._complained = False
        self._handler.lost()
        return True

    def take(self) -> None:
        """Take one datagram. A socket that fails is given up, but not one that only had too little room."""
        if self.socket is None:
            return
        try:
            data = self.socket.recv(LARGEST)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._handler.lost()
            else:
                self._discard(str(error))
        else:
            self._handler.take(messages_in(data))

    def _discard(self, reason: str) -> None:
        if self.socket is None:
            return
        log.warning("Socket for netlink notifications failed, opening a new one", err=reason)
        # The number of a descriptor that was closed may be that of another file by now.
        if _identity(self.socket) == self._identity:
            self.socket.close()
        else:
            self.socket.detach()
        self.socket = None


def _identity(opened: socket.socket) -> tuple[int, int] | None:
    try:
        found = os.fstat(opened.fileno())
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Watcher:
    """Calls `noticed` with what has changed of ours, `addresses_changed` for addresses of other links."""

    def __init__(
        self, table: str, noticed: Callable[[Notification], None], addresses_changed: Callable[[], None]
    ) -> None:
        links, rules = LinkNotifications(noticed, addresses_changed), RuleNotifications(table, noticed)
        self.channels = (
            Channel(NETLINK_ROUTE, LINK_GROUPS, links, _only_our_routes),
            Channel(NETLINK_NETFILTER, RULE_GROUPS, rules),
        )

    def run(self) -> None:
        """Wait for notifications, for ever."""
        while True:
            self.listen(CHECK_SECONDS)

    def listen(self, seconds: float) -> None:
        """Listen for so long at most, until a socket fails; look after the sockets first."""
        # Not epoll, which reports nothing about a descriptor that has been closed.
        poll, hearing, end = select.poll(), {}, time.monotonic() + seconds
        for channel in self.channels:
            if channel.hears() and channel.socket is not None:
                hearing[channel.socket.fileno()] = channel
                poll.register(channel.socket, select.POLLIN)
        while all(channel.socket for channel in hearing.values()) and (left := end - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                hearing[descriptor].take()


class LinkNotifications:
    """Sorts notifications of rtnetlink."""

    def __init__(self, noticed: Callable[[Notification], None], addresses_changed: Callable[[], None]) -> None:
        self._noticed = noticed
        self._addresses_changed = addresses_changed
        self._loopback = socket.if_nametoindex("lo")
        try:
            self._own = socket.if_nametoindex(VIP_LINK)
        except OSError:
            self._own = 0

    def lost(self) -> None:
        """Something has changed, whatever it was."""
        self._addresses_changed()
        self._noticed(VipsChanged(unsure=True))

    def take(self, messages: Iterator[Message]) -> None:
        """Sort the messages of one datagram."""
        vips: list[tuple[Vip, bool]] = []
        unsure = others = False
        for kind, _, _, body in messages:
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                unsure |= self._link(kind, body)
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                vips += _route(kind, body, self._loopback)
            elif IFADDRMSG.unpack_from(body)[4] == self._own:
                vips += _address(kind, body)
            else:
                others = True
        if vips or unsure:
            self._noticed(VipsChanged(tuple(vips), unsure))
        if others:
            self._addresses_changed()

    def _link(self, kind: int, body: bytes) -> bool:
        """Learn the number of kube-ipvs0; tell whether it has gone."""
        name = dict(attributes(body, IFINFOMSG.size)).get(IFLA_IFNAME, memoryview(b""))
        if bytes(name) != VIP_LINK.encode() + b"\0":
            return False
        if kind == RTM_NEWLINK:
            self._own = IFINFOMSG.unpack_from(body)[2]
        return kind == RTM_DELLINK


def _address(kind: int, body: bytes) -> Iterator[tuple[Vip, bool]]:
    fields = dict(attributes(body, IFADDRMSG.size))
    address = bytes(fields.get(IFA_LOCAL, fields.get(IFA_ADDRESS, memoryview(b""))))
    if address and is_node_address(address):
        yield Vip(address, VipForm.ADDRESS), kind == RTM_NEWADDR


def _route(kind: int, body: bytes, loopback: int) -> Iterator[tuple[Vip, bool]]:
    fields = dict(attributes(body, RTMSG.size))
    if RTMSG.unpack_from(body)[5] == ROUTE_PROTOCOL and RTA_DST in fields:
        yield read_route(fields, loopback)[0], kind == RTM_NEWROUTE


class RuleNotifications:
    """Sorts notifications of nf_tables: a transaction's changes, then its number."""

    def __init__(self, table: str, noticed: Callable[[Notification], None]) -> None:
        # Messages of nf_tables begin with their table, those of elements go on with the set.
        self._table = attribute(NFTA_TABLE_NAME, table.encode() + b"\0")
        self._filter = attribute(NFTA_TABLE_NAME, b"filter\0")
        self._noticed = noticed
        self._sets: set[bytes] = set()
        self._whole = self._forward = self._untracked = False

    def lost(self) -> None:
        """Any elements may have changed; anything else of the table is seen by its stamp."""
        self._noticed(RulesChanged(0, unsure=True))

    def take(self, messages: Iterator[Message]) -> None:
        """Sort the messages of one datagram; a transaction may take several."""
        for kind, _, _, body in messages:
            number = kind & 0xFF
            if number == NFT_MSG_NEWGEN:
                self._end(body)
            elif body.startswith(self._table, NFGENMSG.size):
                if number in SET_ELEMENTS:
                    self._sets.add(self._set(body))
                else:
                    self._whole = True
            elif number in FILTERING:
                self._forward |= self._may_drop(body)
                self._untracked |= keeps_from_conntrack(body)

    def _may_drop(self, body: bytes) -> bool:
        return body[0] in IP_FAMILIES and body.startswith(self._filter, NFGENMSG.size)

    def _set(self, body: bytes) -> bytes:
        start = NFGENMSG.size + len(self._table)
        (length,) = ATTRIBUTE_LENGTH.unpack_from(body, start)
        return body[start + 4 : start + length]

    def _end(self, body: bytes) -> None:
        if not (self._sets or self._whole or self._forward or self._untracked):
            return
        fields = dict(attributes(body, NFGENMSG.size))
        number = int.from_bytes(fields[NFTA_GEN_ID], "big")
        sets = frozenset(map(text, self._sets))
        program = text(bytes(fields.get(NFTA_GEN_PROC_NAME, b"")))
        forward, untracked = self._forward, self._untracked
        self._noticed(RulesChanged(number, sets, self._whole, program, forward=forward, untracked=untracked))
        self._sets, self._whole, self._forward, self._untracked = set(), False, False, False


def _only_our_routes(channel: socket.socket) -> None:
    """Have the kernel keep routes of other protocols from a socket, by a classic BPF program."""
    load_byte, equal, answer = 0x30, 0x15, 0x06
    type_at = 4 if sys.byteorder == "little" else 5
    program = (
        (load_byte, 0, 0, type_at),
        (equal, 1, 0, RTM_NEWROUTE),
        (equal, 0, 2, RTM_DELROUTE),
        (load_byte, 0, 0, 16 + 5),  # rtm_protocol
        (equal, 0, 1, ROUTE_PROTOCOL),
        (answer, 0, 0, 0xFFFFFFFF),
        (answer, 0, 0, 0),
    )
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    channel.setsockopt(
        socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer))
    )
