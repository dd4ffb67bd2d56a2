"""What is missing in the kernel is said before anything is done."""

import errno
import os

import pytest

from ipvsproxy.base.errors import Fatal
from ipvsproxy.config import Config
from ipvsproxy.kernel.scripts import PARTS, ruleset
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.process import preflight
from nft import NftError
from tests.support.no_netfilter import NoProtocol


class IpvsSchedulers:
    """As much of IPVS as knows schedulers; `code` is the errno of trying one out."""

    def __init__(self, code=0):
        self.code = code

    def servers(self):
        return {}

    def has(self, scheduler):
        if self.code not in (0, errno.ENOENT):
            raise KernelError(f"IPVS scheduler {scheduler}", self.code)
        return not self.code


@pytest.fixture
def loaded(monkeypatch):
    names = []
    monkeypatch.setattr(preflight.host, "load_module", names.append)
    return names


def test_a_kernel_without_ipvs_is_reported_with_the_module(monkeypatch):
    def missing():
        raise KernelError("looking up netlink family IPVS", errno.ENOENT)

    monkeypatch.setattr(preflight, "Ipvs", missing)
    with pytest.raises(Fatal, match=r"no IPVS .*modprobe ip_vs"):
        preflight.open_kernel(Config("n"))


def test_a_kernel_without_nftables_is_reported_with_the_module(monkeypatch):
    class NoTables:
        def __init__(self, name):
            pass

        def stamp(self):
            raise KernelError("netlink request", errno.EINVAL)

    monkeypatch.setattr(preflight, "Ruleset", NoTables)
    with pytest.raises(Fatal, match=r"no nf_tables .*modprobe nf_tables"):
        preflight.open_ruleset()


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
        (errno.EOPNOTSUPP, "Operation not supported): load the modules .*--suppress-vip-arp=false"),
        (errno.EINVAL, "Invalid argument): .*nftables 1.0.2"),
        (errno.EPERM, "Operation not permitted): the process needs the capability CAP_NET_ADMIN"),
    ],
)
def test_rules_that_the_kernel_cannot_have_are_a_fatal_error_with_what_to_do(code, words):
    with pytest.raises(Fatal, match=words.replace(")", r"\)")):
        preflight.probe_rules(Judge(code), "the rules")


@pytest.mark.parametrize("code", [0, errno.ENOMEM, errno.EBUSY, errno.EAGAIN])
def test_rules_that_may_be_taken_another_time_are_for_the_loop(code):
    judge = Judge(code)
    preflight.probe_rules(judge, "the rules")
    assert [text.splitlines()[-1] for text in judge.asked] == ["the rules"]


def test_nftables_is_looked_for_before_libnftables_which_would_end_the_process(monkeypatch, loaded):
    monkeypatch.setattr(preflight, "Ipvs", IpvsSchedulers)
    monkeypatch.setattr(preflight, "Ruleset", NoProtocol)
    monkeypatch.setattr(preflight, "KernelNft", lambda: pytest.fail("opened"))
    with pytest.raises(Fatal, match=r"no nf_tables .*modprobe nf_tables"):
        preflight.open_kernel(Config("n"))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_a_missing_capability_is_named(monkeypatch, loaded, code):
    monkeypatch.setattr(preflight, "Ipvs", lambda: IpvsSchedulers(code))
    with pytest.raises(Fatal, match="CAP_NET_ADMIN"):
        preflight.open_kernel(Config("n"))


def test_a_missing_scheduler_is_named_and_its_module_was_tried(monkeypatch, loaded):
    monkeypatch.setattr(preflight, "Ipvs", lambda: IpvsSchedulers(errno.ENOENT))
    with pytest.raises(Fatal, match=r"'mh' .*modprobe ip_vs_mh"):
        preflight.open_kernel(Config("n", scheduler="mh"))
    assert loaded == ["ip_vs_mh"]


def test_the_module_is_loaded_before_the_scheduler_is_tried(monkeypatch, loaded):
    order = []
    schedulers = IpvsSchedulers()
    monkeypatch.setattr(preflight.host, "load_module", order.append)
    monkeypatch.setattr(schedulers, "has", lambda name: order.append(name) or True)
    preflight.probe_scheduler(schedulers, "lc")
    assert order == ["ip_vs_lc", "lc"]


def test_a_library_that_would_crash_on_the_tables_of_the_host_is_not_used(monkeypatch):
    for name in ("_open_ipvs", "open_ruleset", "KernelNft"):
        monkeypatch.setattr(preflight, name, lambda: None)
    monkeypatch.setattr(preflight, "probe_scheduler", lambda *_: None)
    monkeypatch.setattr(preflight, "can_read_tables", lambda: False)
    with pytest.raises(Fatal, match="libnftables crashes"):
        preflight.open_kernel(Config("n"))


class EveryKernel:
    """Takes all rules, and remembers them."""

    def __init__(self):
        self.judged = []

    def check(self, transaction):
        self.judged.append(str(transaction))


def test_no_kernel_needs_what_only_direct_server_return_needs(monkeypatch):
    nft = EveryKernel()
    for name in ("_open_ipvs", "open_ruleset"):
        monkeypatch.setattr(preflight, name, lambda: None)
    monkeypatch.setattr(preflight, "KernelNft", lambda: nft)
    monkeypatch.setattr(preflight, "probe_scheduler", lambda *_: None)
    monkeypatch.setattr(preflight, "can_read_tables", lambda: True)
    monkeypatch.setattr(preflight, "ElementReader", lambda _: (_ for _ in ()).throw(OSError(1, "enough")))
    with pytest.raises(Fatal):
        preflight.open_kernel(Config("n"))
    (rules,) = nft.judged
    assert "chain check_ranges" in rules
    assert "dup to" not in rules
    assert "dup to" in ruleset(parts=PARTS)
