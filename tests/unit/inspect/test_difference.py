"""What a run would change, against what it does change: the same steps, in words."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands.objects import desired
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.inspect.difference import Action, Change, changes, server_text
from ipvsproxy.plan.diff import apply, diff
from ipvsproxy.plan.state import DestinationAttributes, KernelState, ServerAttributes
from tests.support.build import config, destination, key, service, slice_of
from tests.support.elements import element

HERE = [parse_ip("192.0.2.1")]


def ledger_of(*pieces, **settings):
    svc = service(**settings)
    listed = [Listed(Kind.SERVICE, {svc.key: svc}), Listed(Kind.ENDPOINT_SLICE, {p.key: p for p in pieces})]
    return desired(config(cluster_cidrs=("10.244.0.0/16",)), [*listed, Listed(Kind.NODE, {})], HERE)


def differences(ledger, shadow, protected=lambda _: False):
    return list(changes(ledger, shadow, protected))


def kernel_as(ledger):
    shadow = KernelState()
    apply(diff(ledger.everything(), ledger, shadow, lambda _: False), shadow)
    return shadow


def test_an_empty_kernel_gets_everything_in_order():
    found = differences(ledger_of(slice_of("web", "10.244.1.1")), KernelState())
    assert {change.action for change in found} == {Action.ADD}
    kinds = [change.object for change in found]
    assert kinds == sorted(kinds, key=["element", "server", "endpoint", "VIP"].index)
    web = key("10.96.0.10:80")
    assert Change(Action.ADD, "endpoint", "10.244.1.1:8080", str(web), "", "weight 1", web) in found
    assert Change(Action.ADD, "VIP", "10.96.0.10", "", "", "address", web.address) in found


def test_nothing_differs_once_it_is_applied():
    ledger = ledger_of(slice_of("web", "10.244.1.1", "10.244.2.1"))
    assert differences(ledger, kernel_as(ledger)) == []


def test_before_and_after():
    ledger = ledger_of(slice_of("web", "10.244.1.1"))
    shadow = kernel_as(ledger)
    (web,) = shadow.servers
    shadow.servers[web].server = ServerAttributes("sh", 0, 0)
    shadow.elements[element("frontends4", "10.96.0.10 . tcp . 80")] = "drop"
    assert differences(ledger, shadow) == [
        Change(Action.CHANGE, "element", "frontends4 { 10.96.0.10 . tcp . 80 }", "", "drop", "goto own", web),
        Change(Action.CHANGE, "server", str(web), str(web), "sh", "rr", web),
    ]


def test_what_is_not_wanted_goes_unless_it_is_of_others():
    shadow = kernel_as(ledger_of(slice_of("web", "10.244.1.1")))
    ledger = ledger_of(ips=())
    found = differences(ledger, shadow)
    assert {change.action for change in found} == {Action.REMOVE}
    assert ("server", "10.96.0.10:80/TCP") in {(change.object, change.name) for change in found}
    assert "server" not in {change.object for change in differences(ledger, shadow, lambda _: True)}


def test_a_draining_endpoint_is_no_difference_and_one_that_should_drain_is():
    ledger = ledger_of(slice_of("web", "10.244.2.1"))
    shadow = kernel_as(ledger_of(slice_of("web", "10.244.2.1", "10.244.2.2")))
    (change,) = differences(ledger, shadow)
    assert (change.action, change.was, change.wanted) == (Action.CHANGE, "weight 1", "weight 0")
    (state,) = shadow.servers.values()
    state.destinations[destination("10.244.2.2:8080")] = DestinationAttributes(0)
    assert differences(ledger, shadow) == []


def local(**settings):
    return ledger_of(
        slice_of("web", "10.244.2.1"), load_balancer_ips=["203.0.113.1"], external_local=True, **settings
    )  # fmt: skip


LEDGERS = {
    "nothing": lambda: ledger_of(ips=()),
    "one": lambda: ledger_of(slice_of("web", "10.244.1.1")),
    "another": lambda: ledger_of(slice_of("web", "10.244.2.1"), affinity_seconds=5),
    "ranges": lambda: ledger_of(
        slice_of("web", "10.244.1.1"), load_balancer_ips=["203.0.113.1"], source_ranges=["192.0.2.0/24"]
    ),
    "local": local,
    "local from inside, too": lambda: local(internal_local=True),
}


@pytest.mark.parametrize("before", LEDGERS)
@pytest.mark.parametrize("after", LEDGERS)
def test_every_step_is_reported(before, after):
    """Whatever phases `plan.diff` has or gets, no change is left out."""
    shadow, ledger = kernel_as(LEDGERS[before]()), LEDGERS[after]()
    touched = ledger.everything()
    touched.update(shadow.everything())
    steps = diff(touched, ledger, shadow, lambda _: False)
    assert len(differences(ledger, shadow)) == steps.count()
    assert bool(steps) is (before != after)


def test_words_for_servers():
    assert server_text(ServerAttributes("rr", 0, 0)) == "rr"
    assert server_text(ServerAttributes("mh", 0x19, 10800)) == "mh affinity 10800 s mh-fallback mh-port"
    assert server_text(ServerAttributes("sh", 0x08, 0)) == "sh sh-fallback"
    assert server_text(ServerAttributes("wlc", 0x18, 0)) == "wlc flag-1 flag-2"
