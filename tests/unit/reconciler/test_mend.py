"""Others change what is ours and the kernel tells of it: put right in the same turn, and never fought for long."""

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.rules import TABLE
from ipvsproxy.kernel.transactions import OWN_NAME
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.notification import RulesChanged, VipsChanged
from ipvsproxy.plan.repair_backoff import BURST
from ipvsproxy.plan.state import ServerState, Vip, VipForm
from ipvsproxy.reconciler.loop import Loop
from ipvsproxy.reconciler.repair import SAMPLE_SECONDS
from nft import Transaction
from tests.support.build import config, destination, key, service, slice_of, weighted
from tests.support.memory_kernel import Fault, MemoryNode

ADDRESS = Vip(parse_ip("10.96.0.10"), VipForm.ADDRESS)


class Recorder(Report):
    """Writes down repairs and fights."""

    def __init__(self):
        self.repairs, self.fights, self.rivals, self.syncs = 0, [], [], 0

    def synced(self, _sync):
        self.syncs += 1

    def repaired(self, objects):
        self.repairs += objects

    def rival(self, node, reason):
        self.rivals.append((node, reason))

    def contested(self, node, reason):
        self.fights.append((node, reason))


class World:
    """A running proxy, and what it reports."""

    def __init__(self):
        self.node = MemoryNode([parse_ip("192.0.2.1")])
        self.report = Recorder()
        self.now = 1000.0
        self.loop = Loop(config(), Inbox(), self.node.kernel(), lambda: self.now, self.report)
        objects = {
            Kind.SERVICE: service(),
            Kind.ENDPOINT_SLICE: slice_of("web", "10.244.1.1"),
            Kind.NODE: Node("node1"),
        }
        self.loop.reconcile([Listed(kind, {value.key: value}) for kind, value in objects.items()])

    def tamper(self, *commands, program="firewalld"):
        """Have somebody else change our table; return what the kernel tells of it."""
        transaction = Transaction(TABLE)
        for command, *arguments in commands:
            getattr(transaction, command)(*arguments)
        self.node.nft.run(transaction)
        whole = any(command == "delete_table" for command, *_ in commands)
        sets = frozenset(name for command, *rest in commands if rest for name, *_ in rest[0])
        return RulesChanged(len(self.node.nft.transactions), sets, whole, program)

    @property
    def transactions(self):
        return len(self.node.nft.transactions)


@pytest.fixture
def world():
    return World()


DAMAGES = {
    "an element less": [("delete_elements", [("vips4", "10.96.0.10")])],
    "an element more": [("add_elements", [("vips4", "10.0.0.1", "")])],
    "another value": [
        ("delete_elements", [("frontends4", "10.96.0.10 . tcp . 80")]),
        ("add_elements", [("frontends4", "10.96.0.10 . tcp . 80", "drop")]),
    ],
    "no table": [("delete_table",)],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rules_are_put_right_in_the_same_turn(world, damage):
    right = world.node.nft.dump()
    notice = world.tamper(*DAMAGES[damage])
    assert world.node.nft.dump() != right
    with capture_logs() as logs:
        assert world.loop.reconcile([notice])
    assert world.node.nft.dump() == right
    assert [line["by"] for line in logs if line["event"] == messages.REPAIRED] == [["firewalld"]]
    assert world.report.repairs == 1


def test_one_set_is_restored_without_touching_the_others(world):
    notice = world.tamper(*DAMAGES["an element less"])
    world.loop.reconcile([notice])
    assert world.node.nft.transactions[-1] == (
        "flush set inet ipvsproxy vips4\nadd element inet ipvsproxy vips4 { 10.96.0.10 }\n"
    )


def test_a_vip_that_was_taken_away_comes_back_and_one_that_was_put_there_goes(world):
    stranger = Vip(parse_ip("10.0.0.1"), VipForm.ADDRESS)
    world.node.links.present = {stranger}
    world.loop.reconcile([VipsChanged(((ADDRESS, False),))])
    assert world.node.links.present == {ADDRESS}
    world.node.links.present.clear()
    world.node.links.exists = False
    world.loop.reconcile([VipsChanged(unsure=True)])
    assert world.node.links.present == {ADDRESS}


def test_what_was_our_own_work_costs_nothing(world):
    world.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    before = world.transactions, world.node.writes
    own = [RulesChanged(number, frozenset(("vips4",))) for number in range(1, world.transactions + 1)]
    vips = VipsChanged(((ADDRESS, True), (Vip(parse_ip("10.96.0.11"), VipForm.ADDRESS), True)))
    assert not world.loop.reconcile([*own, vips])
    assert (world.transactions, world.node.writes) == before
    assert world.report.repairs == 0


def test_a_transaction_of_ours_among_those_of_others_is_told_by_the_name(world):
    run = world.node.nft.run

    def crowded(transaction):
        run(transaction)
        world.node.nft.transactions.append("another program's")

    world.node.nft.run = crowded
    world.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    world.node.nft.run = run
    numbers = world.transactions - 1, world.transactions
    assert not world.loop.reconcile(
        [RulesChanged(number, frozenset(("vips4",)), program=OWN_NAME) for number in numbers]
    )
    assert world.loop.reconcile([RulesChanged(numbers[1], frozenset(("vips4",)), program="nft")])


def test_ipvs_is_looked_at_soon_after_others_were_at_work(world):
    del world.node.ipvs.table[key("10.96.0.10:80")]
    world.loop.reconcile([world.tamper(*DAMAGES["no table"])])
    assert world.loop._timeout() <= 1
    world.now += 1
    world.loop.reconcile([])
    assert key("10.96.0.10:80") in world.node.ipvs.table


def second_service(world):
    world.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])


def test_servers_that_were_flushed_are_found_by_a_glance_within_a_second(world):
    second_service(world)
    right = dict(world.node.ipvs.table)
    world.node.ipvs.table.clear()
    world.now += world.loop._timeout()
    with capture_logs() as logs:
        assert world.loop.reconcile([])
    assert world.node.ipvs.table == right
    assert world.now == 1001
    assert [line["servers"] for line in logs if line["event"] == messages.REPAIRED] == [2]
    assert world.report.repairs == 2


def test_a_glance_is_taken_as_well_where_there_is_always_news(world):
    right = dict(world.node.ipvs.table)
    world.node.ipvs.table.clear()
    for second in range(2):
        world.now += 1
        other = slice_of("new", f"10.244.1.{second + 1}")
        world.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, "default/new", other)])
    assert world.node.ipvs.table == right


def test_a_server_that_was_changed_is_found_when_its_turn_comes(world):
    second_service(world)
    for damaged, other in (("10.96.0.10:80", "10.96.0.11:80"), ("10.96.0.11:80", "10.96.0.10:80")):
        right, untouched = world.node.ipvs.table[key(damaged)], world.node.ipvs.table[key(other)]
        world.node.ipvs.table[key(damaged)] = ServerState(right.server, weighted({destination("10.9.9.9:99"): 1}))
        for _ in range(2):
            world.now += 1
            world.loop.reconcile([])
        assert {d for d, a in world.node.ipvs.table[key(damaged)].destinations.items() if a.weight} == set(
            right.destinations
        )
        assert world.node.ipvs.table[key(other)] == untouched


def test_a_glance_reads_one_server_and_is_no_sync(world):
    second_service(world)
    synced, calls = world.report.syncs, world.node.faults.calls
    for _ in range(20):
        world.now += 1
        assert not world.loop.reconcile([])
    assert world.report.syncs == synced
    assert world.node.faults.calls == calls + 20


def test_a_glance_that_fails_costs_nothing(world):
    world.node.faults.plan(0, Fault("lost"))
    world.now += 1
    assert not world.loop.reconcile([])
    world.node.ipvs.table.clear()
    world.now += 1
    assert world.loop.reconcile([])
    assert key("10.96.0.10:80") in world.node.ipvs.table


def test_who_flushes_servers_again_and_again_is_not_fought_for_ever(world):
    end, before = world.now + 600, world.node.writes
    while world.now < end:
        world.node.ipvs.table.clear()
        world.now += 1
        world.loop.reconcile([])
    assert BURST < (world.node.writes - before) / 2 < 100  # of 600 times a server with its destination
    assert [said for _, said in world.report.fights] == [
        "another program keeps changing what ipvsproxy has made in the kernel"
    ]


def test_a_fight_is_told_once_costs_ever_less_and_is_over_when_the_other_stops(world):
    right, end = world.node.nft.dump(), world.now + 600
    before = world.transactions
    damages = 0
    while world.now < end:
        notice = world.tamper(*DAMAGES["no table"])
        damages += 1
        world.loop.reconcile([notice])
        world.now += 0.1
    repairs = world.transactions - before - damages
    assert BURST < repairs < 80  # of 6,000 damages
    assert world.report.fights == [("node1", "firewalld keeps changing what ipvsproxy has made in the kernel")]
    for _ in range(300):
        world.now += world.loop._timeout()
        world.loop.reconcile([])
    assert world.node.nft.dump() == right
    assert world.report.fights[1:] == [("node1", "")]


def test_lost_notices_have_all_sets_compared(world):
    right, before = world.node.nft.dump(), world.transactions
    assert world.loop.reconcile([RulesChanged(0, unsure=True)])
    assert (world.transactions, world.report.repairs) == (before, 0)
    world.tamper(*DAMAGES["another value"])
    world.tamper(*DAMAGES["an element more"])
    world.loop.reconcile([RulesChanged(0, unsure=True)])
    assert world.node.nft.dump() == right
    assert world.report.repairs == 2


def test_a_repair_does_not_wait_for_something_else_that_fails(world):
    refused = key("10.96.0.11:80")
    world.node.ipvs.refuse[refused] = 1
    world.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    for _ in range(10):
        world.now += world.loop._timeout()
        world.loop.reconcile([])
    right = world.node.nft.dump()
    world.loop.reconcile([world.tamper(*DAMAGES["an element less"])])
    assert world.node.nft.dump() == right


def test_a_kube_proxy_at_work_is_told_once(world):
    world.node.rival = "a kube-proxy is running"
    for _ in range(3):
        world.now += 31
        world.loop.reconcile([])
    world.node.rival = ""
    world.now += 31
    world.loop.reconcile([])
    assert world.report.rivals == [("node1", "a kube-proxy is running"), ("node1", "")]


def test_replies_are_marked_as_soon_as_others_may_drop_them(world):
    notice = RulesChanged(0, forward=True, program="iptables")
    world.now += SAMPLE_SECONDS
    world.loop.reconcile([notice])
    assert "unmark" not in world.node.nft.chains
    world.node.forwarding.drops = True
    world.now += SAMPLE_SECONDS
    world.loop.reconcile([])
    assert "unmark" not in world.node.nft.chains  # nobody has told of a change
    world.now += SAMPLE_SECONDS
    world.loop.reconcile([notice])
    assert {"forward", "unmark"} <= world.node.nft.chains
    before = world.transactions
    world.now += SAMPLE_SECONDS
    world.loop.reconcile([notice])
    assert world.transactions == before
    assert world.report.repairs == 0
