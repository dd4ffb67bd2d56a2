"""The rules of any version are replaced in one transaction, with the parts that are needed."""

import errno
import os
import re

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.kernel.ruleset import layout, read_comment
from ipvsproxy.kernel.scripts import (
    PARTS,
    RANGES_OF_NODE,
    REPLIES,
    SHORT_UNTRACKED,
    SOURCE_RANGES,
    VIEW_INVALID,
    part,
    ruleset,
)
from ipvsproxy.kernel.tables import delete_tables
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.diff import NEW_SERVICE, ElementStep, IpvsStep, Steps
from ipvsproxy.plan.state import Dirty, ServerAttributes, ServerState
from ipvsproxy.ruleset.schema import RANGES_BY_IPVS
from nft import NftError
from tests.support.build import key
from tests.support.elements import element
from tests.support.memory_kernel import Fault, MemoryNode, MemoryStamp

RANGE = element("allowed4", "203.0.113.5 . tcp . 443 . 10.0.0.0/8")
ELEMENTS = {
    element("vips4", "203.0.113.5"): "",
    element("ranged4", "203.0.113.5 . tcp . 443"): "",
    RANGE: "",
}
OUR_FAMILIES = ("inet", "ip", "ip6", "arp")
REPLACED = messages.RULESET_REPLACED


@pytest.fixture
def node():
    return MemoryNode()


@pytest.fixture
def stamp(node):
    return MemoryStamp(node.nft)


@pytest.fixture
def kernel(node, stamp):
    return node.kernel(stamp)


def test_tables_of_all_families_go_in_the_transaction_that_makes_the_new_ones(node, stamp, kernel):
    stamp.others = {"inet": "", "ip6": "", "bridge": "", "netdev": "", "arp": ""}
    kernel.rules.load({})
    (text,) = node.nft.transactions
    lines = text.splitlines()
    ours = [f"{verb} table {family} ipvsproxy" for family in OUR_FAMILIES for verb in ("add", "delete")]
    others = ["delete table bridge ipvsproxy", "delete table netdev ipvsproxy"]
    assert lines[:10] == ours + others
    assert lines[10] == f'add table inet ipvsproxy {{ comment "{layout(ruleset())}"; }}'


@pytest.mark.parametrize(
    ("others", "was"),
    [({}, []), ({"inet": layout(ruleset())}, []), ({"inet": ""}, ["unknown"]), ({"inet": "v9"}, ["v9"])],
)
def test_the_rules_of_another_version_are_mentioned(stamp, kernel, others, was):
    stamp.others = others
    with capture_logs() as logs:
        kernel.rules.load({})
    assert [entry["was"] for entry in logs if entry["event"] == REPLACED] == was


def test_other_rules_have_another_layout():
    assert len({layout(ruleset()), layout(ruleset(0x8000)), layout(ruleset(quiet_arp=False))}) == 3


def test_a_comment_is_read_as_libnftables_writes_it():
    assert (read_comment(b"\0\3v1\0"), read_comment(b""), read_comment(b"\1\3xx\0")) == ("v1", "", "")


def test_tables_that_cannot_be_read_do_not_keep_the_rules_from_being_loaded(node, kernel):
    node.faults.plan(0, Fault("refused"))
    kernel.rules.load(ELEMENTS)
    assert kernel.shadow.elements == ELEMENTS


def test_rules_for_source_ranges_that_could_not_be_withdrawn_go_with_the_next_loading(node, kernel):
    """They would go on letting in what has been excluded since."""
    kernel.rules.load({})
    node.nft.transactions.clear()
    # The tables, the rule of FORWARD, the number before, the transaction, the number after, the other mark's rule.
    after = next(n for n in range(20) if fails(node, kernel, n))
    assert after
    with capture_logs() as logs:
        list(kernel.settle_doubts())
    assert messages.RULESET_DIFFERS in [entry["event"] for entry in logs]
    assert "add rule inet ipvsproxy excluded drop\n" in node.nft.transactions[-1]


def fails(node, kernel, after):
    """Load with one call that fails after so many others; tell whether it was the second transaction."""
    node.nft.transactions.clear()
    node.faults.coming.clear()
    node.faults.plan(after, Fault("refused", errno.ENOMEM))
    try:
        kernel.rules.load(ELEMENTS)
    except (NftError, KernelError):
        return len(node.nft.transactions) == 1 and kernel.rules.in_doubt
    return False


def chains_of(name):
    """The chains that only this part has."""
    return set(re.findall(r"chain (\w+) {", part(name))) - {"output", "input_invalid"}


def test_a_start_loads_what_is_needed_and_nothing_else(node, kernel):
    kernel.rules.load({element("vips4", "203.0.113.5"): ""})
    for name in PARTS:
        assert node.nft.chains.isdisjoint(chains_of(name))
    kernel.rules.load(ELEMENTS)
    assert chains_of(SOURCE_RANGES) <= node.nft.chains
    assert node.nft.chains.isdisjoint(chains_of(VIEW_INVALID) | chains_of(REPLIES))


PODS = element("pod_cidrs4", "10.244.0.0/16")
WEB_6 = "203.0.113.6 . tcp . 443"


def on_the_short_path(number):
    """Return the elements of a frontend on the short path with two endpoints."""
    frontend = f"10.96.0.{number} . tcp . 80"
    places = {element("endpoints4", f"{frontend} . {n}"): f"10.244.1.{n} . 8080" for n in range(2)}
    return places | {
        element("frontends4", frontend): "goto endpoints_2",
        element("vips4", f"10.96.0.{number}"): "",
    }


def test_at_a_start_elements_of_the_short_path_come_behind_the_rules(node, kernel):
    first = {PODS: ""} | on_the_short_path(1)
    kernel.rules.begin(first)
    rules, elements = node.nft.transactions
    assert "table inet ipvsproxy {" in rules
    assert "add element inet ipvsproxy pod_cidrs4" in rules  # an interval of one field has no bytes of its own
    assert "endpoints4 {" in elements
    assert "table" not in elements
    node.nft.transactions.clear()
    kernel.rules.begin(first | on_the_short_path(2))
    (more,) = node.nft.transactions
    assert "10.96.0.2" in more
    assert "10.96.0.1" not in more
    behind = node.nft.dump()
    assert kernel.shadow.elements == first | on_the_short_path(2)
    kernel.rules.load(first | on_the_short_path(2))
    assert node.nft.dump() == behind


def test_a_table_that_may_serve_is_replaced_in_one_transaction(node, stamp, kernel):
    """The short path serves without servers and VIPs: a start finds neither, and yet packets need its elements."""
    stamp.others = {"inet": layout(ruleset())}
    kernel.rules.begin({PODS: ""} | on_the_short_path(1))
    (text,) = node.nft.transactions
    assert "endpoints4 {" in text


def test_at_a_start_elements_of_servers_come_behind_the_rules(node, kernel):
    kernel.rules.begin({PODS: ""} | ELEMENTS)
    rules, *elements = node.nft.transactions
    assert "add element inet ipvsproxy pod_cidrs4" in rules
    assert rules.count("add element") == 1
    assert not any("table" in text for text in elements)
    assert kernel.shadow.elements == {PODS: ""} | ELEMENTS


def test_at_a_start_source_ranges_are_there_before_they_are_asked_for(node, kernel):
    """Rules of a kube-proxy may serve such an address until then, and packets find new ranges late."""
    of_another = {element("allowed4", f"{WEB_6} . 10.0.0.0/8"): "", element("ranged4", WEB_6): ""}
    for wanted in ({PODS: ""} | ELEMENTS, {PODS: ""} | ELEMENTS | of_another):
        kernel.rules.begin(wanted)
        allowed, asked = node.nft.transactions[-2:]
        assert "add element inet ipvsproxy allowed4" in allowed
        assert "ranged4" not in allowed
        assert "add element inet ipvsproxy ranged4" in asked


def test_the_short_path_of_a_second_stage_takes_nothing_away(node, kernel):
    kernel.rules.begin({PODS: ""} | ELEMENTS)
    node.nft.transactions.clear()
    kernel.rules.begin({PODS: ""} | ELEMENTS | on_the_short_path(1))
    assert not any("delete" in text for text in node.nft.transactions)
    assert len(node.nft.transactions) == 2  # the part, and the elements
    assert kernel.shadow.elements == {PODS: ""} | ELEMENTS | on_the_short_path(1)


def test_a_table_that_cannot_be_looked_at_keeps_its_elements_until_others_are_there(node, kernel):
    kernel.rules.begin({PODS: ""} | on_the_short_path(1))
    node.nft.transactions.clear()
    node.faults.plan(0, Fault("refused"))
    kernel.rules.begin({PODS: ""} | on_the_short_path(1) | on_the_short_path(2))
    (text,) = node.nft.transactions
    assert "10.96.0.1 " in text
    assert "10.96.0.2 " in text


def test_what_is_refused_at_a_start_costs_nothing_else(node, kernel):
    """Everything is loaded again as text then, without what is refused."""
    wanted = {PODS: ""} | on_the_short_path(1)
    kernel.rules.begin({PODS: ""} | on_the_short_path(3))
    node.nft.transactions.clear()
    # The look at the table, the rule of FORWARD, the number before, the transaction.
    node.faults.plan(3, Fault("refused", errno.EINVAL))
    assert not kernel.rules.begin(wanted)
    (text,) = node.nft.transactions
    assert "table inet ipvsproxy {" in text
    assert kernel.shadow.elements == wanted
    assert not kernel.rules.in_doubt


def test_a_part_comes_with_the_first_element_that_needs_it_and_stays(node, kernel):
    kernel.rules.load({})
    node.nft.transactions.clear()
    steps = [ElementStep(slot, "") for slot in ELEMENTS]
    failed = Dirty()
    kernel.rules.change(steps, failed)
    kernel.rules.change([ElementStep(slot, None) for slot in ELEMENTS], failed)
    kernel.rules.change(steps, failed)
    first, second, third = node.nft.transactions
    assert first.startswith(part(SOURCE_RANGES))
    assert "chain" not in second + third
    assert chains_of(SOURCE_RANGES) <= node.nft.chains
    assert not failed
    # No verification takes it for the work of others.
    node.nft.transactions.clear()
    kernel.rules.verify()
    assert node.nft.transactions == []


def test_a_part_that_the_kernel_cannot_have_is_no_reason_to_load_all_rules_again(node, kernel):
    """Whoever may annotate a Service would cause it, as long as the Service is there."""
    kernel.rules.load({})
    node.nft.poison, node.nft.poison_code = "chain prerouting_ranges", errno.ENOENT
    failed = Dirty()
    kernel.rules.change([ElementStep(slot, "") for slot in ELEMENTS], failed)
    assert failed.slots == {slot for slot in ELEMENTS if slot.set.part}
    assert not kernel.rules.in_doubt


def test_a_refused_part_is_tried_again_with_the_next_element(node, kernel):
    kernel.rules.load({})
    node.nft.fail_next = errno.ENOMEM
    steps = [ElementStep(slot, "") for slot in ELEMENTS]
    failed = Dirty()
    kernel.rules.change(steps, failed)
    assert failed.slots == ELEMENTS.keys()
    kernel.rules.change(steps, Dirty())
    assert chains_of(SOURCE_RANGES) <= node.nft.chains


def test_a_change_too_large_for_a_datagram_comes_in_parts(node, kernel, monkeypatch):
    kernel.rules.load({})
    run = node.nft.run

    def bounded(transaction):
        if len(str(transaction)) > 1000:
            raise NftError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        run(transaction)

    monkeypatch.setattr(node.nft, "run", bounded)
    slots = [element("vips4", f"203.0.113.{number}") for number in range(250)]
    node.nft.transactions.clear()
    failed = Dirty()
    kernel.rules.change([ElementStep(slot, "") for slot in slots], failed)
    assert not failed
    assert len(node.nft.transactions) == 4
    assert kernel.shadow.elements == dict.fromkeys(slots, "")
    assert not kernel.rules.in_doubt


def test_rules_that_were_flushed_come_back_with_the_parts_that_were_needed(node, kernel):
    kernel.rules.load({})
    kernel.rules.change([ElementStep(element("view_frontends4", "10.96.0.10 . tcp . 80"), "")], Dirty())
    before = set(node.nft.chains)
    node.nft.run(delete_tables({}))
    assert not node.nft.chains
    kernel.rules.verify()
    assert node.nft.chains == before
    assert chains_of(VIEW_INVALID) <= before


def test_replies_are_marked_from_the_moment_a_chain_may_drop_them(node, kernel):
    kernel.rules.load({})
    assert node.nft.chains.isdisjoint(chains_of(REPLIES))
    node.forwarding.drops = True
    kernel.verify_others()
    assert chains_of(REPLIES) <= node.nft.chains
    node.forwarding.drops = False
    kernel.verify_others()
    kernel.rules.load({})
    assert chains_of(REPLIES) <= node.nft.chains


WEB = "203.0.113.5 . tcp . 443"
SHORT = element("short_frontends4", WEB)
SERVER = IpvsStep(NEW_SERVICE, key("203.0.113.5:443/TCP"), ServerAttributes("rr", 0, 0))


def test_only_frontends_by_ipvs_need_the_rules_for_what_ipvs_would_take(node, kernel):
    kernel.rules.load(ELEMENTS | {SHORT: ""})
    assert chains_of(SOURCE_RANGES) <= node.nft.chains
    assert node.nft.chains.isdisjoint(chains_of(RANGES_BY_IPVS))
    # More ranges, and ranges of others on the short path, change nothing about that.
    more = {element("allowed4", f"{WEB} . 10.1.0.0/16"), element("ranged4", "203.0.113.6 . tcp . 443")}
    steps = [ElementStep(slot, "") for slot in (element("short_frontends4", "203.0.113.6 . tcp . 443"), *more)]
    kernel.rules.change(steps, Dirty())
    assert node.nft.chains.isdisjoint(chains_of(RANGES_BY_IPVS))
    kernel.rules.change([ElementStep(element("ranged6", "fd00::1 . udp . 53"), "")], Dirty())
    assert chains_of(RANGES_BY_IPVS) <= node.nft.chains


def test_rules_for_what_ipvs_would_take_are_there_before_its_server(node, kernel):
    verdict = element("frontends4", WEB)
    kernel.rules.load(ELEMENTS | {SHORT: "", verdict: "goto endpoints_1"})
    kernel.rules.change([ElementStep(verdict, "goto endpoints_2", replaces=True)], Dirty())
    assert node.nft.chains.isdisjoint(chains_of(RANGES_BY_IPVS))
    seen = []
    apply = node.ipvs.apply
    node.ipvs.apply = lambda steps: seen.append(chains_of(RANGES_BY_IPVS) <= node.nft.chains) or apply(steps)
    redirect = ElementStep(verdict, "goto own", replaces=True)
    kernel.apply(Steps(added=[SERVER], redirects=[redirect]))
    assert seen == [True]


def test_a_frontend_that_leaves_the_short_path_as_it_gets_ranges_has_the_rules_for_ipvs(node, kernel):
    """It had no endpoint, so that its verdict changes with the other elements, and before its mark goes."""
    verdict = element("frontends4", WEB)
    kernel.rules.load({SHORT: "", verdict: "goto refuse"})
    before = [*(ElementStep(slot, "") for slot in ELEMENTS), ElementStep(verdict, "goto own", replaces=True)]
    kernel.apply(Steps(elements_before=before, added=[SERVER], elements_after=[ElementStep(SHORT, None)]))
    assert chains_of(SOURCE_RANGES) | chains_of(RANGES_BY_IPVS) <= node.nft.chains


def test_a_server_waits_for_rules_that_could_not_come_before_it(node, kernel):
    verdict = element("frontends4", WEB)
    kernel.rules.load(ELEMENTS | {SHORT: "", verdict: "goto endpoints_1"})
    steps = Steps(added=[SERVER], redirects=[ElementStep(verdict, "goto own", replaces=True)])
    node.nft.fail_next = errno.ENOMEM
    failed = kernel.apply(steps)
    assert failed.servers == {SERVER.key}
    assert failed.slots == {element("ranged4", WEB), verdict}
    assert node.ipvs.table == {}
    assert node.nft.sets["frontends4"] == {WEB: "goto endpoints_1"}
    assert not kernel.apply(steps)
    assert chains_of(RANGES_BY_IPVS) <= node.nft.chains
    assert node.nft.sets["frontends4"] == {WEB: "goto own"}


def test_a_server_that_keeps_its_connections_on_the_short_path_is_guarded_after_a_restart(node, kernel):
    kernel.shadow.servers[key("203.0.113.5:443/TCP")] = ServerState(ServerAttributes("rr", 0, 0), {})
    kernel.rules.load(ELEMENTS | {SHORT: ""})
    assert chains_of(RANGES_BY_IPVS) <= node.nft.chains


def test_packets_that_conntrack_does_not_place_are_asked_for_where_there_are_such(node, kernel):
    of_node = chains_of(RANGES_OF_NODE)
    node.notrack.hides = True
    kernel.rules.load({})
    kernel.verify_others()
    assert node.nft.chains.isdisjoint(of_node)  # no part needs them
    steps = [ElementStep(slot, "") for slot in ELEMENTS]
    kernel.rules.change(steps, Dirty())
    assert of_node | chains_of(RANGES_BY_IPVS) <= node.nft.chains
    node.notrack.hides = False
    kernel.rules.load(ELEMENTS)
    assert of_node <= node.nft.chains


def test_a_part_that_needs_no_other_has_no_rules_of_others_read(node, kernel):
    """A kernel without an expression for direct server return refuses its part with each change, or half."""
    kernel.rules.load({PODS: ""} | on_the_short_path(1))
    node.nft.poison, node.nft.poison_code = "chain answers", errno.ENOENT
    looks = node.notrack.looks
    failed = Dirty()
    kernel.rules.change([ElementStep(element("direct4", WEB), "")], failed)
    assert failed
    assert node.notrack.looks == looks


def test_what_the_short_path_cannot_translate_is_asked_for_where_there_is_such(node, kernel):
    kernel.rules.load({PODS: ""} | on_the_short_path(1))
    of_part = chains_of(SHORT_UNTRACKED)
    assert of_part
    assert node.nft.chains.isdisjoint(of_part)
    node.notrack.hides = True
    kernel.verify_others()
    assert of_part <= node.nft.chains


def test_marks_are_not_added_to_a_table_that_is_gone(node, kernel):
    kernel.rules.load({})
    node.nft.run(delete_tables({}))
    node.forwarding.drops = True
    with pytest.raises(NftError):
        kernel.rules.follow_others()
    assert not node.nft.loaded
