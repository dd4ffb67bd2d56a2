"""A proxy on a node in memory, whose objects have been listed: what tests of the loop begin with."""

from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.model import Node
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, slice_of
from tests.support.memory_kernel import MemoryNode


class RefusalRecorder(Report):
    """Writes down what Services do not get, with their names."""

    def __init__(self):
        self.heard = []

    def refused(self, service, reason):
        self.heard.append((service.name, reason))


class MemoryProxy:
    """`services` have the endpoints `pods`, none without; `heard` is the report, `parts` go to `make_loop`."""

    def __init__(self, services, pods=(), *, heard=None, node=None, now=0.0, parts=None, **settings):
        self.node, self.heard, self.now = node or MemoryNode(), heard or Report(), now
        self.inbox = Inbox()
        self.loop = make_loop(
            config(**settings), self.inbox, self.node.kernel(), lambda: self.now, self.heard, **(parts or {})
        )
        slices = {f"default/{item.name}-4": slice_of(item.name, *pods) for item in services if pods}
        self.turn(
            Listed(Kind.NODE, {"node1": Node("node1")}),
            Listed(Kind.SERVICE, {item.key: item for item in services}),
            Listed(Kind.ENDPOINT_SLICE, slices),
        )

    def turn(self, *events):
        self.loop.reconcile(list(events))

    def change(self, *items):
        self.turn(*(Changed(Kind.SERVICE, item.key, item) for item in items))
