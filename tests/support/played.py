"""Histories of one node that are played once more in another process: `python -m tests.support.played`."""

import json
import pickle
import sys

from structlog.testing import capture_logs

from ipvsproxy.config import VipMode
from ipvsproxy.exchange.inbox import Changed, Kind, NodeAddressesChanged, Removed
from ipvsproxy.plan import ledger
from ipvsproxy.plan.model import Node, Service
from tests.support.clock import Clock
from tests.support.histories import ProxyRun
from tests.support.memory_kernel import MemoryNode
from tests.support.random_objects import NODE_ADDRESS


class PlayedNode:
    """One node, to which the events of a history happen."""

    def __init__(self, limits):
        self.limits, self.mode = limits, VipMode.ADDRESS
        self.node, self.clock = MemoryNode([NODE_ADDRESS]), Clock()
        self.objects = {(Kind.NODE, "node1"): Node("node1", (NODE_ADDRESS,))}
        self.restart(self.mode)

    def restart(self, mode):
        self.mode = mode
        self.process = ProxyRun(self.node, self.objects, self.clock, vip_mode=mode, **self.limits)
        self.process.list()

    def play(self, what, value):
        if what == "restart":
            self.restart(value)
        elif what == "objects":
            self.process.take_turn([self.change(item) for item in value])
        elif what == "remove":
            others = sorted(name for name in self.objects if name != (Kind.NODE, "node1"))
            gone = others[value % len(others) : value % len(others) + 1] if others else []
            for name in gone:
                del self.objects[name]
            self.process.take_turn([Removed(*name) for name in gone])
        else:
            self.clock.now += value if what == "wait" else 0
            self.node.links.others = value if what == "addresses" else self.node.links.others
            self.process.take_turn([NodeAddressesChanged()] if what == "addresses" else [])

    def change(self, item):
        kind = {Node: Kind.NODE, Service: Kind.SERVICE}.get(type(item), Kind.ENDPOINT_SLICE)
        key = item.name if kind is Kind.NODE else item.key
        self.objects[kind, key] = item
        return Changed(kind, key, item)

    def state(self):
        servers = {
            str(key): (state.server, sorted(map(str, state.destinations.items())))
            for key, state in self.node.ipvs.table.items()
        }
        return f"{sorted(servers.items())} {sorted(map(str, self.node.links.present))} {self.node.nft.dump()}"


def played(history):
    """Return the state of the node after each step of a history, with what was logged in it."""
    limits, what_happens = history
    with capture_logs():
        node = PlayedNode(limits)
    found = []
    for what, value in what_happens:
        with capture_logs() as logs:
            node.play(what, value)
        found.append(f"{what}: {node.state()} {logs}")
    return found


def main():
    """Play the pickled histories of standard input; print as JSON what has come of them."""
    ledger.ROUTES_ABOVE, ledger.ADDRESSES_BELOW = 4, 2
    histories = pickle.load(sys.stdin.buffer)  # noqa: S301 - from a test
    print(json.dumps([played(history) for history in histories]))


if __name__ == "__main__":
    main()
