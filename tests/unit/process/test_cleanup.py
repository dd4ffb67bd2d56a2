"""What cleanup takes away, spares and tells."""

import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.errors import Fatal
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import KubeProxy
from ipvsproxy.kernel.instance_lock import Holder
from ipvsproxy.kernel.ipvs import StepRefused
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.diff import Verb
from ipvsproxy.process import cleanup, other_proxy, preflight
from ipvsproxy.process.other_proxy import OtherProxy
from tests.support.build import key
from tests.support.no_netfilter import NoProtocol


class FreeLock:
    """The lock of a network namespace that nobody has; `holder` has it otherwise."""

    holder = None

    def take(self):
        return self.holder

    def wait(self):
        type(self).holder = None


@pytest.fixture(autouse=True)
def lock(monkeypatch):
    monkeypatch.setattr(cleanup, "InstanceLock", FreeLock)
    monkeypatch.setattr(FreeLock, "holder", None)
    monkeypatch.setattr(other_proxy, "look", lambda _: OtherProxy(KubeProxy()))
    monkeypatch.setattr(cleanup, "_let_end", list)
    monkeypatch.setattr(cleanup, "prefer_own_sources", list)


def test_cleanup_goes_on_after_a_refusal_and_reports_everything_that_failed(monkeypatch):
    done = []

    def refused(*_):
        raise KernelError("deleting the dummy link kube-ipvs0", errno.EBUSY)

    monkeypatch.setattr(cleanup, "_remove_servers", lambda _: ["virtual server 10.96.0.1:443/tcp: busy"])
    for name in ("_remove_links", "_remove_rule", "_remove_tables"):
        monkeypatch.setattr(cleanup, name, refused)
    monkeypatch.setattr(cleanup, "_remove_leftovers", lambda: done.append("leftovers") or [])
    with pytest.raises(
        Fatal, match=r"virtual server 10\.96\.0\.1:443/tcp: busy(; deleting the dummy link kube-ipvs0: [^;]*){3}$"
    ):
        cleanup.cleanup(Config("n"))
    assert done == ["leftovers"]


def test_a_kernel_without_nftables_has_no_rules_to_remove(monkeypatch):
    """Opening libnftables there would end the process."""
    monkeypatch.setattr(preflight, "Ruleset", NoProtocol)
    monkeypatch.setattr(cleanup, "Libnftables", lambda: pytest.fail("opened"))
    monkeypatch.setattr(cleanup, "legacy_advice", lambda: ["run iptables-legacy"])
    assert cleanup._remove_rule() + cleanup._remove_tables() == []
    assert cleanup._remove_leftovers() == ["run iptables-legacy"]


def test_a_kernel_without_ipvs_has_no_servers_to_remove(monkeypatch):
    def missing():
        raise KernelError("looking up netlink family IPVS", errno.ENOENT)

    monkeypatch.setattr(cleanup, "Ipvs", missing)
    assert cleanup._remove_servers(Config("n")) == []


def test_cleanup_leaves_a_proxy_at_work_alone_and_reports_who_it_is(monkeypatch):
    monkeypatch.setattr(FreeLock, "holder", Holder(4711, 0, "ipvsproxy v0.1.0"))
    monkeypatch.setattr(cleanup, "_remove_servers", lambda _: pytest.fail("removed"))
    with pytest.raises(Fatal, match=r"at work on this node \(process 4711, ipvsproxy v0\.1\.0\): end it first"):
        cleanup.cleanup(Config("n"))


class StuckServers:
    """As much of IPVS as is cleaned up; what is `stuck` cannot be removed."""

    def __init__(self, stuck=()):
        self.left = {key(text): None for text in ("10.96.0.1:443", "10.98.0.1:80", "[fd00::1]:80", "192.0.2.1:80")}
        self.stuck = {key(text) for text in stuck}

    def servers(self):
        return dict(self.left)

    def apply(self, steps):
        for step in steps:
            assert step.verb is Verb.DEL_SERVICE
            if step.key not in self.stuck:
                self.left.pop(step.key, None)
        return [StepRefused(step, errno.EBUSY) for step in steps if step.key in self.stuck]


def test_cleanup_spares_virtual_servers_of_others(monkeypatch):
    servers = StuckServers()
    monkeypatch.setattr(cleanup, "Ipvs", lambda: servers)
    assert cleanup._remove_servers(Config("n", exclude_cidrs=("10.98.0.0/16", "fd00::/8"))) == []
    assert set(servers.left) == {key("10.98.0.1:80"), key("[fd00::1]:80")}


def test_cleanup_names_virtual_servers_that_stay(monkeypatch):
    servers = StuckServers(stuck=["10.96.0.1:443"])
    monkeypatch.setattr(cleanup, "Ipvs", lambda: servers)
    assert cleanup._remove_servers(Config("n")) == [
        f"virtual server {key('10.96.0.1:443')}: Device or resource busy"
    ]
    assert set(servers.left) == {key("10.96.0.1:443")}


EVERY_STEP = ("_remove_servers", "_remove_links", "_remove_rule", "_remove_tables", "_remove_leftovers")
RULES = ("ip chain nat KUBE-SERVICES",)
RUNS = ("http://127.0.0.1:10249/proxyMode says iptables",)


@pytest.mark.parametrize(
    ("found", "left_out", "reason"),
    [
        (OtherProxy(KubeProxy()), (), ""),
        (OtherProxy(KubeProxy(sees_processes=False)), (), ""),
        (OtherProxy(KubeProxy(), RULES), (), ""),
        (OtherProxy(KubeProxy(RUNS, "iptables"), RULES), ("_remove_leftovers",), "it runs on this node"),
        (OtherProxy(KubeProxy(RUNS, "iptables")), ("_remove_leftovers",), "it runs on this node"),
        (OtherProxy(KubeProxy(sees_processes=False), RULES), ("_remove_leftovers",), "it may run"),
        (
            OtherProxy(KubeProxy(RUNS, "ipvs"), RULES),
            ("_remove_servers", "_remove_links", "_remove_leftovers"),
            "it runs on this node",
        ),
    ],
)
@pytest.mark.parametrize("everything", [False, True])
def test_what_belongs_to_a_kube_proxy_that_runs_or_may_run_stays(monkeypatch, found, left_out, reason, everything):
    done = []
    for name in (*EVERY_STEP, "_remove_routes"):
        monkeypatch.setattr(cleanup, name, lambda *_, name=name: done.append(name) or [])
    monkeypatch.setattr(other_proxy, "look", lambda _: found)
    with capture_logs() as logs:
        cleanup.cleanup(Config("n"), everything=everything)
    told = [entry for entry in logs if entry["event"] == messages.KUBE_PROXY_KEPT]
    if everything or not left_out:
        assert (done, told) == (list(EVERY_STEP), [])
        return
    assert set(done) - {"_remove_routes"} == set(EVERY_STEP) - set(left_out)
    assert done[0] == "_remove_tables"
    assert ("_remove_routes" in done) is ("_remove_links" in left_out)
    assert told[0]["reason"].startswith(reason)
    assert told[0]["removedBy"] == "--cleanup-kube-proxy"


@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("iptables", ["sources", "tables", "pause", "servers", "ports", "links", "rule"]),
        ("nftables", ["sources", "tables", "pause", "servers", "ports", "links", "rule"]),
        ("ipvs", ["tables", "ports", "routes", "rule"]),
    ],
)
def test_beside_a_kube_proxy_our_rules_go_first_and_what_is_under_way_has_time_to_end(monkeypatch, mode, order):
    done = []
    for name in ("servers", "links", "routes", "rule", "tables", "leftovers"):
        monkeypatch.setattr(cleanup, f"_remove_{name}", lambda *_, name=name: done.append(name) or [])
    monkeypatch.setattr(cleanup, "_let_end", lambda: done.append("pause") or [])
    monkeypatch.setattr(cleanup, "give_back", lambda: done.append("ports") or [])
    monkeypatch.setattr(cleanup, "prefer_own_sources", lambda: done.append("sources") or [])
    monkeypatch.setattr(other_proxy, "look", lambda _: OtherProxy(KubeProxy(RUNS, mode), RULES))
    cleanup.cleanup(Config("n"))
    assert done == order


@pytest.fixture
def steps(monkeypatch):
    """Who had the lock when the steps were taken; nothing is removed."""
    done = []
    monkeypatch.setattr(cleanup, "_steps", lambda *_: [lambda: done.append(FreeLock.holder) or []])
    return done


def test_cleanup_waits_for_the_end_of_a_proxy_when_it_is_asked_to(monkeypatch, steps):
    monkeypatch.setattr(FreeLock, "holder", Holder(4711, 0, "ipvsproxy v0.1.0"))
    cleanup.cleanup(Config("n"), wait=True)
    assert steps == [None]


class FoundTables:
    """FoundTables of our name; none when `found` is empty."""

    found = {"inet": "ipvsproxy 0.1.0"}  # noqa: RUF012

    def __init__(self, _name):
        pass

    def tables(self):
        return self.found


class VipLink:
    there = True

    def look(self):
        return self.there


@pytest.mark.parametrize(
    ("mode", "tables", "link", "removes"),
    [
        ("nftables", FoundTables.found, True, True),
        ("nftables", {}, True, True),  # an earlier cleanup got so far
        ("nftables", {}, False, False),
        ("ipvs", FoundTables.found, True, True),
        ("ipvs", {}, True, False),  # kube-proxy's own link
    ],
)
def test_a_handover_touches_no_node_where_no_ipvsproxy_was(monkeypatch, steps, mode, tables, link, removes):
    monkeypatch.setattr(FreeLock, "holder", Holder(4711, 0, "ipvsproxy v0.1.0"))
    monkeypatch.setattr(cleanup, "await_kube_proxy", lambda: {4: mode, 6: mode})
    monkeypatch.setattr(cleanup, "Ruleset", FoundTables)
    monkeypatch.setattr(cleanup, "Links", VipLink)
    monkeypatch.setattr(FoundTables, "found", tables)
    monkeypatch.setattr(VipLink, "there", link)
    with capture_logs() as said:
        cleanup.cleanup(Config("n"), handover=True)
    assert bool(steps) is removes
    assert any(line["event"] == messages.NOTHING_FOUND for line in said) is not removes
