"""Others change what is ours and the kernel tells of it: put right in the same turn, and never fought for long."""

import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.transactions import OWN_NAME
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.notification import RulesChanged, VipsChanged
from ipvsproxy.plan.repair_backoff import BURST
from ipvsproxy.plan.state import Dirty, ServerState, Vip, VipForm
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.reconciler.sample import SAMPLE_SECONDS
from nft import Transaction
from tests.support.build import config, destination, key, service, slice_of, weighted
from tests.support.elements import element
from tests.support.memory_kernel import Fault, MemoryNode

ADDRESS = Vip(parse_ip("10.96.0.10"), VipForm.ADDRESS)


class RepairReports(Report):
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


class RepairingProxy:
    """A running proxy, and what it reports."""

    def __init__(self):
        self.node = MemoryNode([parse_ip("192.0.2.1")])
        self.report = RepairReports()
        self.now = 1000.0
        self.loop = make_loop(config(), Inbox(), self.node.kernel(), lambda: self.now, self.report)
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
def repairing():
    return RepairingProxy()


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
def test_rules_are_put_right_in_the_same_turn(repairing, damage):
    right = repairing.node.nft.dump()
    notice = repairing.tamper(*DAMAGES[damage])
    assert repairing.node.nft.dump() != right
    with capture_logs() as logs:
        assert repairing.loop.reconcile([notice])
    assert repairing.node.nft.dump() == right
    assert [line["by"] for line in logs if line["event"] == messages.REPAIRED] == [["firewalld"]]
    assert repairing.report.repairs == 1
    assert messages.SETS_NOT_RESTORED not in [line["event"] for line in logs]


def test_one_set_is_restored_without_touching_the_others(repairing):
    notice = repairing.tamper(*DAMAGES["an element less"])
    repairing.loop.reconcile([notice])
    assert repairing.node.nft.transactions[-1] == (
        "flush set inet ipvsproxy vips4\nadd element inet ipvsproxy vips4 { 10.96.0.10 }\n"
    )


def test_a_vip_that_was_taken_away_comes_back_and_one_that_was_put_there_goes(repairing):
    stranger = Vip(parse_ip("10.0.0.1"), VipForm.ADDRESS)
    repairing.node.links.present = {stranger}
    repairing.loop.reconcile([VipsChanged(((ADDRESS, False),))])
    assert repairing.node.links.present == {ADDRESS}
    repairing.node.links.present.clear()
    repairing.node.links.exists = False
    repairing.loop.reconcile([VipsChanged(unsure=True)])
    assert repairing.node.links.present == {ADDRESS}


def test_what_was_our_own_work_costs_nothing(repairing):
    repairing.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    before = repairing.transactions, repairing.node.writes
    own = [RulesChanged(number, frozenset(("vips4",))) for number in range(1, repairing.transactions + 1)]
    vips = VipsChanged(((ADDRESS, True), (Vip(parse_ip("10.96.0.11"), VipForm.ADDRESS), True)))
    assert not repairing.loop.reconcile([*own, vips])
    assert (repairing.transactions, repairing.node.writes) == before
    assert repairing.report.repairs == 0


def test_a_transaction_of_ours_among_those_of_others_is_known_by_the_name(repairing):
    run = repairing.node.nft.run

    def crowded(transaction):
        run(transaction)
        repairing.node.nft.transactions.append("another program's")

    repairing.node.nft.run = crowded
    repairing.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    repairing.node.nft.run = run
    numbers = repairing.transactions - 1, repairing.transactions
    assert not repairing.loop.reconcile(
        [RulesChanged(number, frozenset(("vips4",)), program=OWN_NAME) for number in numbers]
    )
    assert repairing.loop.reconcile([RulesChanged(numbers[1], frozenset(("vips4",)), program="nft")])


def test_ipvs_is_looked_at_soon_after_others_were_at_work(repairing):
    del repairing.node.ipvs.table[key("10.96.0.10:80")]
    repairing.loop.reconcile([repairing.tamper(*DAMAGES["no table"])])
    assert repairing.loop.timeout() <= 1
    repairing.now += 1
    repairing.loop.reconcile([])
    assert key("10.96.0.10:80") in repairing.node.ipvs.table


def second_service(repairing):
    repairing.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])


def test_servers_that_were_flushed_are_found_by_a_sample_within_a_second(repairing):
    second_service(repairing)
    right = dict(repairing.node.ipvs.table)
    repairing.node.ipvs.table.clear()
    repairing.now += repairing.loop.timeout()
    with capture_logs() as logs:
        assert repairing.loop.reconcile([])
    assert repairing.node.ipvs.table == right
    assert repairing.now == 1001
    assert [line["servers"] for line in logs if line["event"] == messages.REPAIRED] == [2]
    assert repairing.report.repairs == 2


def test_a_sample_is_taken_as_well_where_there_are_always_notifications(repairing):
    right = dict(repairing.node.ipvs.table)
    repairing.node.ipvs.table.clear()
    for second in range(2):
        repairing.now += 1
        other = slice_of("new", f"10.244.1.{second + 1}")
        repairing.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, "default/new", other)])
    assert repairing.node.ipvs.table == right


def test_a_server_that_was_changed_is_found_when_its_turn_comes(repairing):
    second_service(repairing)
    for damaged, other in (("10.96.0.10:80", "10.96.0.11:80"), ("10.96.0.11:80", "10.96.0.10:80")):
        right, untouched = repairing.node.ipvs.table[key(damaged)], repairing.node.ipvs.table[key(other)]
        repairing.node.ipvs.table[key(damaged)] = ServerState(
            right.server, weighted({destination("10.9.9.9:99"): 1})
        )
        for _ in range(2):
            repairing.now += 1
            repairing.loop.reconcile([])
        assert {d for d, a in repairing.node.ipvs.table[key(damaged)].destinations.items() if a.weight} == set(
            right.destinations
        )
        assert repairing.node.ipvs.table[key(other)] == untouched


def test_a_sample_reads_one_server_and_is_no_sync(repairing):
    second_service(repairing)
    synced, calls = repairing.report.syncs, repairing.node.faults.calls
    for _ in range(20):
        repairing.now += 1
        assert not repairing.loop.reconcile([])
    assert repairing.report.syncs == synced
    assert repairing.node.faults.calls == calls + 20


def test_a_sample_that_fails_costs_nothing(repairing):
    repairing.node.faults.plan(0, Fault("lost"))
    repairing.now += 1
    assert not repairing.loop.reconcile([])
    repairing.node.ipvs.table.clear()
    repairing.now += 1
    assert repairing.loop.reconcile([])
    assert key("10.96.0.10:80") in repairing.node.ipvs.table


def test_servers_that_are_flushed_again_and_again_are_repaired_more_rarely(repairing):
    end, before = repairing.now + 600, repairing.node.writes
    while repairing.now < end:
        repairing.node.ipvs.table.clear()
        repairing.now += 1
        repairing.loop.reconcile([])
    assert BURST < (repairing.node.writes - before) / 2 < 100  # of 600 times a server with its destination
    assert [said for _, said in repairing.report.fights] == [
        "another program keeps changing what ipvsproxy has made in the kernel"
    ]


def test_contention_is_reported_once_costs_ever_less_and_ends_when_the_other_stops(repairing):
    right, end = repairing.node.nft.dump(), repairing.now + 600
    before = repairing.transactions
    damages = 0
    while repairing.now < end:
        notice = repairing.tamper(*DAMAGES["no table"])
        damages += 1
        repairing.loop.reconcile([notice])
        repairing.now += 0.1
    repairs = repairing.transactions - before - damages
    assert BURST < repairs < 80  # of 6,000 damages
    assert repairing.report.fights == [("node1", "firewalld keeps changing what ipvsproxy has made in the kernel")]
    for _ in range(300):
        repairing.now += repairing.loop.timeout()
        repairing.loop.reconcile([])
    assert repairing.node.nft.dump() == right
    assert repairing.report.fights[1:] == [("node1", "")]


def test_lost_notices_have_all_sets_compared(repairing):
    right, before = repairing.node.nft.dump(), repairing.transactions
    assert repairing.loop.reconcile([RulesChanged(0, unsure=True)])
    assert (repairing.transactions, repairing.report.repairs) == (before, 0)
    repairing.tamper(*DAMAGES["another value"])
    repairing.tamper(*DAMAGES["an element more"])
    repairing.loop.reconcile([RulesChanged(0, unsure=True)])
    assert repairing.node.nft.dump() == right
    assert repairing.report.repairs == 2


def test_a_repair_does_not_wait_for_something_else_that_fails(repairing):
    refused = key("10.96.0.11:80")
    repairing.node.ipvs.refuse[refused] = 1
    repairing.loop.reconcile([Changed(Kind.SERVICE, "default/new", service("new", ["10.96.0.11"]))])
    for _ in range(10):
        repairing.now += repairing.loop.timeout()
        repairing.loop.reconcile([])
    right = repairing.node.nft.dump()
    repairing.loop.reconcile([repairing.tamper(*DAMAGES["an element less"])])
    assert repairing.node.nft.dump() == right


def test_a_kube_proxy_at_work_is_reported_once(repairing):
    repairing.node.host.rival = "a kube-proxy is running"
    for _ in range(3):
        repairing.now += 31
        repairing.loop.reconcile([])
    repairing.node.host.rival = ""
    repairing.now += 31
    repairing.loop.reconcile([])
    assert repairing.report.rivals == [("node1", "a kube-proxy is running"), ("node1", "")]


def test_rules_for_what_another_program_hides_come_as_soon_as_it_does(repairing):
    chain = "sent_untracked"
    ranges = [ElementStep(element("ranged4", "203.0.113.5 . tcp . 443"), "")]
    repairing.loop.parts.sampler._kernel.rules.change(ranges, Dirty())
    assert "check_untracked" in repairing.node.nft.chains
    repairing.node.notrack.hides = True
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([])
    assert chain not in repairing.node.nft.chains
    repairing.loop.reconcile([RulesChanged(0, untracked=True, program="node-cache")])
    assert chain in repairing.node.nft.chains


def test_rules_for_what_another_program_hides_are_tried_again_at_the_next_sample(repairing):
    ranges = [ElementStep(element("ranged4", "203.0.113.5 . tcp . 443"), "")]
    repairing.loop.parts.sampler._kernel.rules.change(ranges, Dirty())
    repairing.node.notrack.hides = True
    repairing.node.nft.fail_next = errno.ENOBUFS
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([RulesChanged(0, untracked=True, program="node-cache")])
    assert "sent_untracked" not in repairing.node.nft.chains
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([])
    assert "sent_untracked" in repairing.node.nft.chains


def test_a_program_that_hides_packets_all_the_time_has_its_rules_read_once_a_second(repairing):
    repairing.loop.reconcile([])
    ranges = [ElementStep(element("ranged4", "203.0.113.5 . tcp . 443"), "")]
    repairing.loop.parts.sampler._kernel.rules.change(ranges, Dirty())
    notice, before = RulesChanged(0, untracked=True, program="node-cache"), repairing.node.notrack.looks
    for _ in range(5):
        repairing.loop.reconcile([notice])
    assert repairing.node.notrack.looks - before == 1
    assert 0 < repairing.loop.timeout() <= SAMPLE_SECONDS
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([])
    assert repairing.node.notrack.looks - before == 2


@pytest.mark.parametrize(("what", "looks"), [("forward", 0), ("untracked", 1), ("unsure", 1)])
def test_all_rules_are_read_again_only_when_they_may_hide_something(repairing, what, looks):
    """A firewall, or a kube-proxy, may change its own each second, and have a hundred thousand."""
    ranges = [ElementStep(element("ranged4", "203.0.113.5 . tcp . 443"), "")]
    repairing.loop.parts.sampler._kernel.rules.change(ranges, Dirty())
    before = repairing.node.notrack.looks
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([RulesChanged(0, program="iptables", **{what: True})])
    assert repairing.node.notrack.looks - before == looks


def test_replies_are_marked_as_soon_as_others_may_drop_them(repairing):
    notice = RulesChanged(0, forward=True, program="iptables")
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([notice])
    assert "unmark" not in repairing.node.nft.chains
    repairing.node.forwarding.drops = True
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([])
    assert "unmark" not in repairing.node.nft.chains  # nobody has told of a change
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([notice])
    assert {"forward", "unmark"} <= repairing.node.nft.chains
    before = repairing.transactions
    repairing.now += SAMPLE_SECONDS
    repairing.loop.reconcile([notice])
    assert repairing.transactions == before
    assert repairing.report.repairs == 0
