"""Random histories of namespaces, pods and Services of tenants, on the kernel in memory.

At every single transaction of nftables, no pod may reach a Service that it may not reach, neither by the objects
as they are nor as they were at any moment since the kernel had all of them. In the end the kernel has what a cold
start gives, and conntrack has no connection that the final word forbids, but all that every moment has allowed.
"""

import errno
import itertools
import os
import random

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.ruleset.schema import SHARED_GROUP
from tests.support.build import config, destination, key, service
from tests.support.memory_kernel import Fault, MemoryNode

LABEL = "ipvsproxy.io/tenant"
HISTORIES, STEPS = int(os.environ.get("HISTORIES", "60")), 25
TENANTS, NAMESPACES, PODS = ("", "blue", "green"), ("a", "b", "c"), ("one", "two", "three")
ADDRESSES = [parse_ip(f"10.244.1.{number}") for number in (1, 2, 3)]
SERVICES = {f"{space}/web": key(f"10.96.0.{number}:80") for number, space in enumerate(NAMESPACES, 10)}
SHARES = ((), (), ("blue",), ("green", "red"), ("*",))
END = destination("10.244.2.1:80")


class Pending(Report):
    """Whether something is not in the kernel yet."""

    def __init__(self):
        self.any = True

    def failed(self):
        self.any = True

    def synced(self, sync):
        self.any = bool(sync.pending or sync.backlog)


def may(objects, address, name):
    """Whether a source may reach a Service by some objects, as docs/tenants.md has it."""
    made = objects.get((Kind.SERVICE, name))
    space = objects.get((Kind.NAMESPACE, name.partition("/")[0]))
    owner = space.labels.get(LABEL, "") if space else None
    if made is None or owner == "" or made.share_with == ("*",):
        return True
    asking = tenants_at(objects, address)
    if len(asking) != 1:
        return False
    (tenant,) = asking
    return tenant == "" or (tenant is not None and owner is not None and tenant in (owner, *made.share_with))


def _holds(value, address):
    return isinstance(value, Pod) and address in value.addresses


def tenants_at(objects, address):
    pods = [value for value in objects.values() if _holds(value, address)]
    spaces = [objects.get((Kind.NAMESPACE, pod.namespace)) for pod in pods]
    return {space.labels.get(LABEL, "") if space else None for space in spaces}


class TenantHistory:
    """A process on a node in memory, and what has happened to its objects since the kernel had all of it."""

    def __init__(self, chance, objects=None):
        self.chance = chance
        self.node = MemoryNode([parse_ip("192.0.2.1")])
        self.objects = {} if objects is None else objects
        self.states = [dict(self.objects)]
        self.pending, self.now = Pending(), 1000.0
        self.open, self.late = {}, False
        settings = {"cluster_cidrs": ("10.244.0.0/16",), "tenant_label": LABEL}
        kernel = self.node.kernel()
        self.loop = make_loop(config(**settings), Inbox(), kernel, lambda: self.now, self.pending)
        self.node.watch = self.look
        lists = {kind: {} for kind in Kind}
        for (kind, name), value in self.objects.items():
            lists[kind][name] = value
        self.loop.reconcile([Listed(kind, found) for kind, found in lists.items()])
        self.settle()

    def reaches(self, address, name):
        """Whether the kernel would let a local pod through to a Service."""
        sets, text = self.node.nft.sets, f"{format_ip(SERVICES[name].address)} . tcp . 80"
        if text not in sets.get("by_audience4", {}):
            return True
        group = sets["audiences4"].get(format_ip(address))
        return group is not None and (
            group == f"0:{SHARED_GROUP * 16:x}" or f"{text} . {group}" in sets["admitted4"]
        )

    def look(self):
        served = self.node.nft.sets.get("frontends4", {})
        names = [
            name for name, frontend in SERVICES.items() if f"{format_ip(frontend.address)} . tcp . 80" in served
        ]
        for address, name in itertools.product(ADDRESSES, names):
            if self.reaches(address, name):
                allowed = any(may(state, address, name) for state in self.states)
                assert allowed, (format_ip(address), name)

    def step(self):
        events = []
        for _ in range(self.chance.choice((1, 1, 2, 4))):
            kind, name, value = self._change()
            self.objects.pop((kind, name), None)
            if value is not None:
                self.objects[kind, name] = value
            events.append(Removed(kind, name) if value is None else Changed(kind, name, value))
        self.states.append(dict(self.objects))
        if self.chance.random() < 0.2:
            self.late = True
            self.node.faults.plan(self.chance.randrange(3), Fault("refused", errno.EBUSY, done=False))
        self.loop.reconcile(events)
        self.connect()
        if self.chance.random() < 0.6:
            self.settle()

    def _change(self):
        kind = self.chance.choice((Kind.NAMESPACE, Kind.POD, Kind.POD, Kind.SERVICE))
        if kind is Kind.NAMESPACE:
            name, tenant = self.chance.choice(NAMESPACES), self.chance.choice((*TENANTS, *TENANTS, None))
            labels = {LABEL: tenant} if tenant else {}
            return kind, name, None if tenant is None else Namespace(name, labels)
        space = self.chance.choice(NAMESPACES)
        if kind is Kind.POD:
            name, address = self.chance.choice(PODS), self.chance.choice((*ADDRESSES, None))
            pod = Pod(space, name, "node1", (address,)) if address else None
            return kind, f"{space}/{name}", pod
        made = service("web", [format_ip(SERVICES[f"{space}/web"].address)])
        made = replace(made, namespace=space, share_with=self.chance.choice(SHARES))
        return kind, f"{space}/web", made if self.chance.random() < 0.9 else None

    def connect(self):
        """Open a connection where the kernel lets it through."""
        address, name = self.chance.choice(ADDRESSES), self.chance.choice(list(SERVICES))
        if (Kind.SERVICE, name) in self.objects and self.reaches(address, name):
            entry = (address, SERVICES[name], END)
            if entry not in self.node.conntrack.entries:
                self.node.conntrack.entries.append(entry)
                self.open[address, name] = [dict(self.objects)]

    def settle(self):
        self.node.faults.coming.clear()
        for seconds in (0, 0, 0, 35, 35):
            self.now += seconds
            for _ in range(20):
                if self.loop.timeout() > 0:
                    break
                self.loop.reconcile([])
        assert not self.pending.any
        self._check_connections()
        self.states, self.late = [dict(self.objects)], False

    def _check_connections(self):
        there = {(address, frontend) for address, frontend, *_ in self.node.conntrack.entries}
        for (address, name), before in list(self.open.items()):
            states = self.open[address, name] = before + self.states
            stays = (address, SERVICES[name]) in there
            if stays:
                assert may(self.objects, address, name), ("open", format_ip(address), name)
            else:
                always = all(may(state, address, name) and tenants_at(state, address) for state in states)
                # Where the kernel lags behind, its old rules may have forbidden it.
                assert self.late or not always, ("cut", format_ip(address), name)
                del self.open[address, name]

    def elements(self):
        """What the kernel has, with the names of tenants in place of numbers."""
        tenants = self.loop._wanted.tenants
        names = {f"0:{tenants.group(name) * 16:x}": name for name in (*TENANTS, "red") if tenants.group(name)}
        sets = self.node.nft.sets
        admitted = [text.rpartition(" . ") for text in sets.get("admitted4", {})]
        return (
            {address: names[group] for address, group in sets.get("audiences4", {}).items()},
            {(frontend, names[group]) for frontend, _, group in admitted},
            {"unknown" if number == "0:0" else names[number] for number in sets["refusals"]},
            sets.get("by_audience4", {}), set(sets.get("restricted4", ())), set(sets.get("frontends4", ())),
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_no_history_lets_a_connection_through_that_is_never_allowed(seed):
    with capture_logs():
        history = TenantHistory(random.Random(seed))
        for _ in range(STEPS):
            history.step()
        history.settle()
        cold = TenantHistory(random.Random(seed), dict(history.objects))
    assert history.elements() == cold.elements()
