import errno
import os
import queue
import threading

import pytest
from build import key
from structlog.testing import capture_logs

from ipvsproxy import app
from ipvsproxy.config import Config
from ipvsproxy.kernel.alone import Holder
from ipvsproxy.kernel.ipvs import Refused
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.loop import Fatal
from ipvsproxy.plan.diff import Verb
from nft import NftError


class Schedulers:
    """As much of IPVS as knows schedulers; `code` is the errno of trying one out."""

    def __init__(self, code=0):
        self.code = code

    def servers(self):
        return {}

    def probe(self, scheduler):
        if self.code:
            raise KernelError(f"IPVS scheduler {scheduler}", self.code)


class Free:
    """The lock of a network namespace that nobody has; `holder` has it otherwise."""

    holder = None

    def take(self):
        return self.holder


@pytest.fixture(autouse=True)
def lock(monkeypatch):
    monkeypatch.setattr(app, "Lock", Free)
    monkeypatch.setattr(Free, "holder", None)


@pytest.fixture
def loaded(monkeypatch):
    names = []
    monkeypatch.setattr(app.host, "load_module", names.append)
    return names


def test_a_kernel_without_ipvs_is_said_with_the_module(monkeypatch):
    def missing():
        raise KernelError("looking up netlink family IPVS", errno.ENOENT)

    monkeypatch.setattr(app, "Ipvs", missing)
    with pytest.raises(Fatal, match=r"no IPVS .*modprobe ip_vs"):
        app.open_kernel(Config("n"))


def test_a_kernel_without_nftables_is_said_with_the_module(monkeypatch):
    class NoTables:
        def __init__(self, name):
            pass

        def stamp(self):
            raise KernelError("netlink request", errno.EINVAL)

    monkeypatch.setattr(app, "Ruleset", NoTables)
    with pytest.raises(Fatal, match=r"no nf_tables .*modprobe nf_tables"):
        app._open_ruleset()


class Judge:
    """As much of libnftables as judges rules; `code` is its answer, 0 for yes."""

    def __init__(self, code=0):
        self.code, self.asked = code, []

    def check(self, transaction):
        self.asked.append(str(transaction))
        if self.code:
            raise NftError(self.code, f"Error: Could not process rule: {os.strerror(self.code)}")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOENT, "No such file or directory): load the modules nft_ct, nft_nat"),
        (errno.EOPNOTSUPP, "Operation not supported): load the modules .*--quiet-arp=false"),
        (errno.EINVAL, "Invalid argument): .*nftables 1.0.2"),
        (errno.EPERM, "Operation not permitted): the process needs the capability CAP_NET_ADMIN"),
    ],
)
def test_rules_that_the_kernel_cannot_have_are_a_fatal_error_with_what_to_do(code, words):
    with pytest.raises(Fatal, match=words.replace(")", r"\)")):
        app._probe_rules(Judge(code), "the rules")


@pytest.mark.parametrize("code", [0, errno.ENOMEM, errno.EBUSY, errno.EAGAIN])
def test_rules_that_may_be_taken_another_time_are_for_the_loop(code):
    judge = Judge(code)
    app._probe_rules(judge, "the rules")
    assert [text.splitlines()[-1] for text in judge.asked] == ["the rules"]


class NoProtocol:
    """Of a kernel without any of netfilter's netlink."""

    def __init__(self, _name):
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")


def test_nftables_is_looked_for_before_libnftables_which_would_end_the_process(monkeypatch, loaded):
    monkeypatch.setattr(app, "Ipvs", Schedulers)
    monkeypatch.setattr(app, "Ruleset", NoProtocol)
    monkeypatch.setattr(app, "Libnftables", lambda: pytest.fail("opened"))
    with pytest.raises(Fatal, match=r"no nf_tables .*modprobe nf_tables"):
        app.open_kernel(Config("n"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_a_missing_capability_is_named(monkeypatch, loaded, code):
    monkeypatch.setattr(app, "Ipvs", lambda: Schedulers(code))
    with pytest.raises(Fatal, match="CAP_NET_ADMIN"):
        app.open_kernel(Config("n"))


def test_a_missing_scheduler_is_named_and_its_module_was_tried(monkeypatch, loaded):
    monkeypatch.setattr(app, "Ipvs", lambda: Schedulers(errno.ENOENT))
    with pytest.raises(Fatal, match=r"'mh' .*modprobe ip_vs_mh"):
        app.open_kernel(Config("n", scheduler="mh"))
    assert loaded == ["ip_vs_mh"]


def test_the_module_is_loaded_before_the_scheduler_is_tried(monkeypatch, loaded):
    order = []
    schedulers = Schedulers()
    monkeypatch.setattr(app.host, "load_module", order.append)
    monkeypatch.setattr(schedulers, "probe", order.append)
    app._probe_scheduler(schedulers, "lc")
    assert order == ["ip_vs_lc", "lc"]


def test_settings_for_a_family_the_host_has_not_got_end_the_start(monkeypatch):
    monkeypatch.setattr(app.host, "families", lambda: frozenset((4,)))
    with pytest.raises(Fatal, match="clusterCIDR fd00::/8"):
        app._families(Config("n", cluster_cidrs=("fd00::/8",)))
    assert app._families(Config("n", cluster_cidrs=("10.0.0.0/8",))) == {4}


def test_cleanup_goes_on_after_a_refusal_and_says_everything_that_failed(monkeypatch):
    done = []

    def refused(*_):
        raise KernelError("deleting the dummy link kube-ipvs0", errno.EBUSY)

    monkeypatch.setattr(app, "_remove_servers", lambda _: ["virtual server 10.96.0.1:443/tcp: busy"])
    for name in ("_remove_links", "_remove_rule", "_remove_tables"):
        monkeypatch.setattr(app, name, refused)
    monkeypatch.setattr(app, "_remove_leftovers", lambda: done.append("leftovers") or [])
    with pytest.raises(
        Fatal, match=r"virtual server 10\.96\.0\.1:443/tcp: busy(; deleting the dummy link kube-ipvs0: [^;]*){3}$"
    ):
        app.cleanup(Config("n"))
    assert done == ["leftovers"]


def test_a_kernel_without_nftables_has_no_rules_to_remove(monkeypatch):
    """Opening libnftables there would end the process."""
    monkeypatch.setattr(app, "Ruleset", NoProtocol)
    monkeypatch.setattr(app, "Libnftables", lambda: pytest.fail("opened"))
    monkeypatch.setattr(app, "legacy_advice", lambda: ["run iptables-legacy"])
    assert app._remove_rule() + app._remove_tables() == []
    assert app._remove_leftovers() == ["run iptables-legacy"]


def test_a_kernel_without_ipvs_has_no_servers_to_remove(monkeypatch):
    def missing():
        raise KernelError("looking up netlink family IPVS", errno.ENOENT)

    monkeypatch.setattr(app, "Ipvs", missing)
    assert app._remove_servers(Config("n")) == []


def test_cleanup_leaves_a_proxy_at_work_alone_and_says_who_it_is(monkeypatch):
    monkeypatch.setattr(Free, "holder", Holder(4711, 0, "ipvsproxy v0.1.0"))
    monkeypatch.setattr(app, "_remove_servers", lambda _: pytest.fail("removed"))
    with pytest.raises(Fatal, match=r"at work on this node \(process 4711, ipvsproxy v0\.1\.0\): end it first"):
        app.cleanup(Config("n"))


@pytest.mark.parametrize("guarded", [True, False])
def test_a_thread_that_crashes_ends_the_process(monkeypatch, guarded):
    ended = queue.SimpleQueue()

    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(app.os, "_exit", ended.put)
    monkeypatch.setattr(threading, "excepthook", app._crashed)
    with capture_logs() as logs:
        if guarded:
            app._guard("loop", fail)
        else:
            threading.Thread(target=fail, name="loop").start()
        assert ended.get(timeout=30) == 1
    (entry,) = logs
    assert (entry["thread"], entry["exc_info"][0]) == ("loop", ZeroDivisionError)


def test_a_thread_that_cannot_go_on_says_why_in_one_line(monkeypatch):
    ended = queue.SimpleQueue()

    def fail():
        raise Fatal("no kubeconfig")

    monkeypatch.setattr(app.os, "_exit", ended.put)
    with capture_logs() as logs:
        app._guard("loop", fail)
        assert ended.get(timeout=30) == 1
    assert [(entry["event"], entry["error"]) for entry in logs] == [("cannot go on", "no kubeconfig")]


class Servers:
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
                del self.left[step.key]
        return [Refused(step, errno.EBUSY) for step in steps if step.key in self.stuck]


def test_cleanup_spares_virtual_servers_of_others(monkeypatch):
    servers = Servers()
    monkeypatch.setattr(app, "Ipvs", lambda: servers)
    assert app._remove_servers(Config("n", exclude_cidrs=("10.98.0.0/16", "fd00::/8"))) == []
    assert set(servers.left) == {key("10.98.0.1:80"), key("[fd00::1]:80")}


def test_cleanup_names_virtual_servers_that_stay(monkeypatch):
    servers = Servers(stuck=["10.96.0.1:443"])
    monkeypatch.setattr(app, "Ipvs", lambda: servers)
    assert app._remove_servers(Config("n")) == [f"virtual server {key('10.96.0.1:443')}: Device or resource busy"]
    assert set(servers.left) == {key("10.96.0.1:443")}
