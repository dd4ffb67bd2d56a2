"""Random histories of one node: objects, node changes, tampering, failing kernel calls, restarts.

`History` is a hypothesis state machine over the kernel in memory. After every history the kernel must hold what a
cold start from the final objects gives; on the way, `order.Guard` watches every single change.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, NodeAddressesChanged, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.late_sets import LATE_SETS
from ipvsproxy.plan.model import Node, Service
from ipvsproxy.plan.notification import RulesChanged
from ipvsproxy.plan.planning_order import SLICE
from ipvsproxy.plan.state import DestinationAttributes, ServerAttributes, ServerState, Vip, VipForm
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, key, weighted
from tests.support.clock import Clock
from tests.support.memory_kernel import Killed, MemoryNode
from tests.support.order import EXCLUDED, Guard
from tests.support.random_objects import NODE_ADDRESS, faults, link_addresses, nodes, other_nodes, services, slices

STRANGE = [
    DestinationAttributes(0),
    DestinationAttributes(7),
    DestinationAttributes(1, upper_threshold=5),
    DestinationAttributes(1, forwarding_method=3),
]
STRANGE_SERVERS = [
    ServerAttributes("wrr", 0, 0),
    ServerAttributes("rr", 0, 0, netmask=0xFFFFFF00),
    ServerAttributes("rr", 0, 0, engine="sip"),
]
FOREIGN = [key("10.99.0.1:80"), key("10.98.0.1:80"), key("192.0.2.1:31000/UDP")]
LIMITS = st.sampled_from([{}, {}, {"service_limit": 240}, {"namespace_limit": 600}, {"node_limit": 400}])
"""Of sizes as in `plan.tally`; most histories come to more."""
SETTLING_SECONDS = 70
"""Longest pause of a retry or between verifications, twice."""
DRAINING_SECONDS = 700


class SyncOutcome(Report):
    """Remembers whether the last turn left anything undone."""

    def __init__(self):
        self.clean = False

    def queued(self):
        self.clean = False

    def failed(self):
        self.clean = False

    def synced(self, sync):
        self.clean = not (sync.pending or sync.behind or sync.backlog or sync.unfinished)


class ProxyRun:
    """One run of the proxy."""

    def __init__(self, node, objects, clock, **settings):
        self.report = SyncOutcome()
        self.objects = objects
        self.inbox, self.beside = Inbox(), []
        self.loop = make_loop(
            config(exclude_cidrs=(EXCLUDED,), detect_local_mode="NodeCIDR", **settings),
            self.inbox, node.kernel(), clock, self.report, aside=self.aside,
        )  # fmt: skip

    def aside(self, work):
        """Run at once what the start waits for."""
        if self.loop.parts.start.is_done:
            self.beside.append(work)
        else:
            work()

    def take_turn(self, events):
        """Let the loop have events, and what runs beside it come to its end."""
        self.loop.reconcile(events)
        while self.beside:
            self.beside.pop()()
            self.loop.reconcile(self.inbox.take(0))

    def has_little_room(self):
        """Carry out hardly more than one message at once, and read as little."""
        room = self.loop.parts.applier._room
        room.units, room.uncut = 2.0, 0
        room.took = lambda *_: None
        large = self.loop.parts.verifier._kernel._check.large
        large._least, large._piece = 0, 1

    def list(self):
        lists = {kind: {} for kind in Kind}
        for (kind, name), value in self.objects.items():
            lists[kind][name] = value
        self.loop.reconcile([Listed(kind, found) for kind, found in lists.items()])


def cold(objects, others, **settings):
    """Return a node on which a proxy has just started, and its ledger."""
    node = MemoryNode(others)
    clock = Clock()
    process = ProxyRun(node, objects, clock, **settings)
    process.list()
    # What comes first on an empty node may have held a frontend of an older Service for a moment.
    clock.now += 5
    process.loop.reconcile([])
    return node, process.loop._wanted


class History(RuleBasedStateMachine):
    """One node in memory and the processes that run on it, one after the other."""

    @initialize(mode=st.sampled_from(list(VipMode)), limits=LIMITS, piece=st.sampled_from([SLICE, SLICE, 1]))
    def begin(self, mode, limits, piece):
        self.limits, self.piece = limits, piece
        self.node, self.clock = self.new_node(), Clock()
        self.objects = {(Kind.NODE, "node1"): Node("node1", (NODE_ADDRESS,))}
        self.mode = mode
        self.rules_are_ours, self.element_is_wrong = True, False
        self.tampered = False
        self._wanted = None
        self.sound = True
        self.watch()
        self.restart()

    def new_node(self):
        """An empty node, whose history this is."""
        return MemoryNode([NODE_ADDRESS])

    def watch(self):
        """Look at every single change of the node."""
        self.node.watch = Guard(self)

    def wanted(self):
        """What a cold start gives for the objects and addresses as they are."""
        state = (dict(self.objects), self.node.links.others, self.mode)
        if self._wanted is None or self._wanted[0] != state:
            self._wanted = state, cold(*state[:2], vip_mode=self.mode, **self.limits)
        return self._wanted[1]

    # What happens.

    @rule(item=services())
    def service(self, item):
        self._change(Kind.SERVICE, item)

    @rule(item=slices())
    def slice(self, item):
        self._change(Kind.ENDPOINT_SLICE, item)

    @rule(item=nodes)
    def node_object(self, item):
        self._change(Kind.NODE, item)

    @rule(item=other_nodes)
    def other_node(self, item):
        self._change(Kind.NODE, item)

    @rule(items=st.lists(st.one_of(services(), slices()), min_size=2, max_size=5))
    def burst(self, items):
        kinds = [Kind.SERVICE if isinstance(item, Service) else Kind.ENDPOINT_SLICE for item in items]
        events = [Changed(kind, item.key, item) for kind, item in zip(kinds, items, strict=True)]
        self.objects.update({(event.kind, event.key): event.object for event in events})
        self._turn(events)

    @precondition(lambda self: len(self.objects) > 1)
    @rule(data=st.data())
    def remove(self, data):
        kind, name = data.draw(st.sampled_from(sorted(k for k in self.objects if k != (Kind.NODE, "node1"))))
        del self.objects[kind, name]
        self._turn([Removed(kind, name)])

    @rule(found=link_addresses)
    def addresses(self, found):
        self.node.links.others = found
        self._turn([NodeAddressesChanged()])

    @rule(seconds=st.sampled_from([0.1, 1, 5, 31]))
    def wait(self, seconds):
        self.clock.now += seconds
        self._turn([])

    @rule()
    def relist(self):
        self._run(self.process.list)

    @rule(mode=st.sampled_from(list(VipMode)))
    def restart(self, mode=None):
        self.mode = mode or self.mode
        while True:
            self.process = ProxyRun(self.node, self.objects, self.clock, vip_mode=self.mode, **self.limits)
            self.process.loop._wanted._planning._turns.size = self.piece
            if self.piece == 1:
                self.process.has_little_room()
            try:
                self.process.list()
                break
            except Killed:
                continue
        self._check()

    @rule(after=st.integers(0, 12), fault=faults)
    def fail(self, after, fault):
        self.node.faults.plan(after, fault)

    @rule(data=st.data())
    def connections(self, data):
        pairs = [(name, d) for name, state in self.node.ipvs.table.items() for d in state.destinations]
        if pairs:
            self.node.ipvs.busy[data.draw(st.sampled_from(sorted(pairs)))] = data.draw(st.integers(0, 2))

    # What others do to the kernel.

    @rule(data=st.data())
    def tamper_with_a_server(self, data):
        table = self.node.ipvs.table
        name = data.draw(st.sampled_from(sorted({*table, *FOREIGN})))
        what = data.draw(st.sampled_from(["delete", "make", "change", "weight", "destination"]))
        if what == "delete":
            table.pop(name, None)
        elif what == "make" or name not in table:
            table[name] = ServerState(ServerAttributes("sh", 0, 0), weighted({destination("10.244.2.9:80"): 3}))
        elif what == "change":
            table[name].server = data.draw(st.sampled_from(STRANGE_SERVERS))
        elif what == "weight":
            table[name].destinations = dict.fromkeys(table[name].destinations, data.draw(st.sampled_from(STRANGE)))
        else:
            table[name].destinations = weighted({destination("10.244.2.8:8080"): 1})
        self._tampered()

    @rule(what=st.sampled_from(["link", "vips", "foreign", "rules", "everything"]))
    def tamper(self, what):
        node = self.node
        if what == "link":
            node.links.exists = False
            node.links.present = {vip for vip in node.links.present if vip.form is VipForm.ROUTE}
        elif what == "vips":
            node.links.present = set()
        elif what == "foreign":
            node.links.present.add(Vip(parse_ip("10.99.9.9"), VipForm.ADDRESS))
        if what in ("rules", "everything"):
            node.nft.sets, node.nft.loaded = {}, False
            self.rules_are_ours = False
        if what == "everything":
            node.links.present = set()
            node.ipvs.table.clear()
        self._tampered()

    @precondition(lambda self: any(self.node.nft.sets.values()))
    @rule(data=st.data())
    def tamper_with_an_element(self, data):
        """Nobody would find out, but the kernel tells."""
        nft = self.node.nft
        name = data.draw(st.sampled_from(sorted(name for name, items in nft.sets.items() if items)))
        element = data.draw(st.sampled_from(sorted(nft.sets[name])))
        if data.draw(st.booleans()):
            del nft.sets[name][element]
        else:
            nft.sets[name]["10.99.9.9"] = nft.sets[name][element]
        nft.transactions.append("# by another program")
        self.rules_are_ours, self.element_is_wrong = False, True
        self._tampered()
        self._turn([RulesChanged(len(nft.transactions), frozenset({name}), program="nft")])

    # What must hold.

    @rule()
    def settle(self):
        """Without faults, everything is as after a cold start within the time of a retry and a verification."""
        self.node.faults.coming.clear()
        self._pass(SETTLING_SECONDS)
        self.tampered, self.rules_are_ours, self.element_is_wrong = False, True, False
        self._compare(exactly=False)
        if not any(self.node.ipvs.busy.values()):
            self._pass(DRAINING_SECONDS)
            self._compare(exactly=True)
        self._nothing_is_written()

    def teardown(self):
        if getattr(self, "sound", False):
            self.node.ipvs.busy.clear()
            self.settle()

    def _nothing_is_written(self):
        """A verification, and a restart but for its loading of the rules, change nothing (contract 4.1, P8)."""
        before, count = self.node.writes, len(self.node.nft.transactions)
        if not any(self.node.ipvs.busy.values()):
            self._pass(31)
            assert (self.node.writes, len(self.node.nft.transactions)) == (before, count)
            # Where nothing is adopted, what comes first may come for a moment: that is a start.
            if self.mode is not VipMode.AUTO and (self.node.ipvs.table or self.node.links.present):
                self.restart()
                loading = 2 if any(self.node.nft.sets[kind.name] for kind in LATE_SETS) else 1
                assert (self.node.writes, len(self.node.nft.transactions)) == (before, count + loading)

    def _tampered(self):
        self.tampered = True
        self.node.watch.before = self.node.watch.look()

    def _change(self, kind, item):
        self.objects[kind, item.key] = item
        self._turn([Changed(kind, item.key, item)])

    def _turn(self, events):
        self._run(lambda: self.process.take_turn(events))

    def _run(self, call):
        try:
            call()
        except Killed:
            self.restart()
        else:
            self._check()

    def _check(self):
        """What is reported as done is done."""
        if self.node.nft.loaded and self.node.nft.sets and not self.element_is_wrong:
            self.rules_are_ours = True
        self.node.watch.before = self.node.watch.look()
        asked_for = self.process.loop._wanted.schedulers.unknown
        if self.process.report.clean and not (self.tampered or asked_for):
            self._compare(exactly=False)

    def _pass(self, seconds):
        end = self.clock.now + seconds
        for _ in range(5000):
            wait = self.process.loop.timeout()
            if self.clock.now + wait > end:
                break
            self.clock.now += max(wait, 0.01)
            self.process.take_turn([])
        self.clock.now = end
        self.process.take_turn([])

    def _compare(self, *, exactly):
        want, wanted = self.wanted()
        have, protected = self.node, parse_cidr(EXCLUDED)
        mine = {name: state for name, state in have.ipvs.table.items() if name.address not in protected}
        # On the short path, a server may still have what drains.
        extra = {name for name in mine.keys() - want.ipvs.table.keys() if not exactly and _drains_only(mine[name])}
        assert extra <= wanted.frontends.keys()
        assert sorted(map(str, mine.keys() - extra)) == sorted(map(str, want.ipvs.table))
        for name, state in mine.items():
            if name not in want.ipvs.table:
                continue
            expected = want.ipvs.table[name]
            assert exactly or state.destinations.keys() >= expected.destinations.keys()
            # What drains has weight 0, as what is in maintenance.
            have_live, want_live = (
                {d: a for d, a in found.destinations.items() if a.weight or exactly} for found in (state, expected)
            )
            assert (state.server, have_live) == (expected.server, want_live), name
        assert {_form(vip, self.mode) for vip in have.links.present} == {
            _form(vip, self.mode) for vip in want.links.present
        }
        assert have.nft.dump() == want.nft.dump()
        assert len({vip.address for vip in have.links.present}) == len(have.links.present)


def _drains_only(state):
    return bool(state.destinations) and not any(a.weight for a in state.destinations.values())


def _form(vip, mode):
    """In mode auto the form depends on how many there were before."""
    return vip.address if mode is VipMode.AUTO else vip
