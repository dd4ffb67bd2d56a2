"""The kernel's part of the work alone: the very same messages, packed beforehand, over a raw socket.

What is replayed was recorded from the real run, so a floor has the same number of messages and elements. nft
has no way around libnftables, so its floor is one load of the same text.
"""

import socket

from ipvsproxy.kernel.ipvs import NETLINK_GENERIC
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.wire.ipvs import encode
from ipvsproxy.kernel.wire.netlink import LAST, generic_family
from ipvsproxy.kernel.wire.rtnetlink import NETLINK_ROUTE
from nft import Libnftables
from tests.bench.machine import BenchProxy, timed
from tests.bench.namespace import fresh_network

DATAGRAM = 1 << 16


def ipvs_pieces(calls):
    """Encode recorded steps, one list of pieces for each call."""
    family = generic_family("IPVS")
    return [[encode(family, step, number) for number, step in enumerate(steps)] for steps in calls]


def datagrams(pieces):
    """Join pieces into what is sent in one system call each; the last message of each asks for an answer."""
    joined, size = [[]], 0
    for piece in pieces:
        size += len(piece)
        if size > DATAGRAM and joined[-1]:
            joined.append([])
            size = len(piece)
        joined[-1].append(piece)
    return [b"".join((*parts, LAST)) for parts in joined if parts]


class RawSocket:
    """One system call to send, one to wait for the answer."""

    def __init__(self, protocol):
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.bind((0, 0))

    def replay(self, prepared):
        for datagram in prepared:
            self._socket.send(datagram)
            self._socket.recv(65536)


def of_ipvs(calls):
    """Seconds for recorded IPVS steps, in a fresh namespace."""
    fresh_network()
    prepared = [d for pieces in ipvs_pieces(calls) for d in datagrams(pieces)]
    raw = RawSocket(NETLINK_GENERIC)
    return timed(lambda: raw.replay(prepared))


def of_vips(vips):
    """Seconds for recorded VIPs, in a fresh namespace."""
    fresh_network()
    links = Links()
    links.ensure_link()
    prepared = datagrams([links._message(vip, index, add=True) for index, vip in enumerate(vips)])
    raw = RawSocket(NETLINK_ROUTE)
    return timed(lambda: raw.replay(prepared))


def of_rules(transactions):
    """Seconds for one load of everything, in a fresh namespace: the last transaction of a start has it all."""
    fresh_network()
    client = Libnftables()
    return timed(lambda: client.run(transactions[-1]))


class Changes:
    """The floors of changes to a kernel that holds the state from which they were recorded."""

    def __init__(self, lists):
        proxy = BenchProxy()
        proxy.list(*lists)
        self._client = proxy.nft
        self._raw = RawSocket(NETLINK_GENERIC)

    def seconds(self, calls, transactions):
        """Seconds for the recorded steps and transactions of one change."""
        prepared = [d for pieces in ipvs_pieces(calls) for d in datagrams(pieces)]

        def work():
            self._raw.replay(prepared)
            for transaction in transactions:
                self._client.run(transaction)

        return timed(work)
