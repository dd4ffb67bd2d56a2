"""The watcher never goes deaf: sockets that are closed under it, and bursts that are too much for their buffer."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from ipvsproxy.kernel.watch import Channel, Watcher
from ipvsproxy.plan.notification import Notification, RulesChanged
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("nf_tables", "tool:nft")

LINKS, RULES = 0, 1


class WatchedNode:
    """A watcher in a node's namespace, and what it has told."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.node = lab, lab.nodes[0]
        self.notices: list[Notification] = []
        self.addresses = 0
        with netns.inside(self.node.netns):
            self.watcher = Watcher("ipvsproxy", self.notices.append, self._addresses_changed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _addresses_changed(self) -> None:
        self.addresses += 1

    def start(self) -> None:
        self._thread.start()

    def _listen(self) -> None:
        with netns.inside(self.node.netns):
            while not self._over.is_set():
                self.watcher.listen(0.2)

    def close(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        for channel in self.watcher.channels:
            if channel.socket is not None:
                channel.socket.close()

    def change(self, which: int) -> None:
        if which == LINKS:
            for verb in ("add", "delete"):
                self.lab.run(self.node, ["ip", "address", verb, "198.51.100.1/32", "dev", "lo"])
        else:
            self.lab.run(self.node, ["nft", "add table inet ipvsproxy; delete table inet ipvsproxy"])

    def heard(self, which: int) -> int:
        """How often a change was told with what it was about."""
        if which == LINKS:
            return self.addresses
        return sum(isinstance(notice, RulesChanged) and notice.whole for notice in self.notices)


@pytest.fixture
def watched(session_lab: Lab) -> Iterator[WatchedNode]:
    made = WatchedNode(session_lab)
    yield made
    made.close()
    session_lab.clean_nodes()


def shut(channel: Channel) -> None:
    assert channel.socket is not None
    channel.socket.close()


def close_descriptor(channel: Channel) -> None:
    assert channel.socket is not None
    os.close(channel.socket.fileno())


def give_number_away(channel: Channel) -> None:
    assert channel.socket is not None
    with open(os.devnull) as other:  # noqa: PTH123
        os.dup2(other.fileno(), channel.socket.fileno())


@pytest.mark.parametrize("which", [LINKS, RULES], ids=["links", "rules"])
@pytest.mark.parametrize("closed", [shut, close_descriptor, give_number_away])
def test_a_socket_that_is_closed_under_the_watcher(
    watched: WatchedNode, which: int, closed: Callable[[Channel], None]
) -> None:
    watched.start()
    watched.change(which)
    eventually(lambda: watched.heard(which) > 0)
    before = watched.watcher.channels[which].socket
    closed(watched.watcher.channels[which])
    eventually(lambda: watched.watcher.channels[which].socket not in (before, None))
    count = watched.heard(which)
    watched.change(which)
    eventually(lambda: watched.heard(which) > count)


@pytest.mark.parametrize("which", [LINKS, RULES], ids=["links", "rules"])
def test_more_than_the_receive_buffer_holds(watched: WatchedNode, which: int) -> None:
    channel = watched.watcher.channels[which]
    assert channel.socket is not None
    first = channel.socket
    first.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the kernel makes its least of it
    for _ in range(20):
        watched.change(which)
    with netns.inside(watched.node.netns):
        watched.watcher.listen(0.2)
    assert any(notice.unsure for notice in watched.notices)
    assert channel.socket is first
    count = watched.heard(which)
    watched.start()
    watched.change(which)
    eventually(lambda: watched.heard(which) > count)
