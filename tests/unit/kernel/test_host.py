import errno
import json
import os
import resource
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import Config, ConntrackSettings, IpvsTimeouts
from ipvsproxy.kernel import host
from ipvsproxy.kernel.wire.netlink import KernelError

FLOWS = Path(__file__).parents[2] / "conformance" / "flows.json"
LIMITS = json.loads(FLOWS.read_text())["conntrack_max"]["cases"]
RIGHT = {
    "net/ipv4/vs/sloppy_tcp": 0,
    "net/ipv4/vs/conntrack": 1, "net/ipv4/vs/expire_nodest_conn": 1, "net/ipv4/vs/expire_quiescent_template": 1,
    "net/ipv4/ip_forward": 1, "net/ipv4/conf/all/arp_ignore": 0, "net/ipv4/conf/all/arp_announce": 0,
    "net/ipv6/conf/all/forwarding": 1, "net/ipv6/conf/all/disable_ipv6": 0,
    "net/netfilter/nf_conntrack_max": 131072, "net/netfilter/nf_conntrack_tcp_timeout_established": 86400,
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait": 3600, "net/netfilter/nf_conntrack_tcp_be_liberal": 0,
    "net/netfilter/nf_conntrack_udp_timeout": 30, "net/netfilter/nf_conntrack_udp_timeout_stream": 120,
}  # fmt: skip


class Timeouts:
    """As much of IPVS as has idle timeouts."""

    def __init__(self, *values):
        self.values = values
        self.writes = 0

    def timeouts(self):
        return self.values

    def set_timeouts(self, *values):
        self.values = tuple(new or old for new, old in zip(values, self.values, strict=True))
        self.writes += 1


class Refusing(Timeouts):
    def timeouts(self):
        raise KernelError("reading", errno.EPERM)


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A folder that looks like /proc/sys, in which everything is right."""
    for name, value in RIGHT.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    parameters = tmp_path / "module" / "nf_conntrack" / "parameters"
    parameters.mkdir(parents=True)
    (parameters / "hashsize").write_text("65536\n")
    (tmp_path / "if_inet6").touch()
    monkeypatch.setattr(host, "PROC_SYS", tmp_path / "sys")
    monkeypatch.setattr(host, "SYS_MODULE", tmp_path / "module")
    monkeypatch.setattr(host, "IF_INET6", tmp_path / "if_inet6")
    monkeypatch.setattr(host, "OOM_SCORE_ADJ", tmp_path / "oom")
    monkeypatch.setattr(host.os, "sysconf", lambda _: 4)
    return tmp_path


def written(proc):
    return {name for name, value in RIGHT.items() if host.read_sysctl(name) != value}


def prepare(ipvs=None, **settings):
    host.prepare(Config("n", **settings), ipvs or Timeouts(7800, 120, 300))


def test_nothing_is_written_where_all_is_right(proc):
    for file in (proc / "sys").rglob("*"):
        if file.is_file():
            file.chmod(stat.S_IRUSR)
    ipvs = Timeouts(7800, 120, 300)
    before = {file: file.stat().st_mtime_ns for file in (proc / "sys").rglob("*")}
    prepare(ipvs)
    assert {file: file.stat().st_mtime_ns for file in (proc / "sys").rglob("*")} == before
    assert ipvs.writes == 0


@pytest.mark.parametrize("name", [*host.WANTED_SYSCTLS, "net/netfilter/nf_conntrack_tcp_timeout_established"])
def test_what_is_wrong_is_set(proc, name):
    (proc / "sys" / name).write_text("0\n")
    prepare()
    assert host.read_sysctl(name) == RIGHT[name]


@pytest.fixture
def read_only(monkeypatch):
    """What a mount does, which not even root may write through."""
    monkeypatch.setattr(host.os, "access", lambda *_: False)


def test_what_stands_in_the_way_of_settings_is_known_beforehand(proc, read_only):
    wanted = {"conntrack": ConntrackSettings(max_per_core=50000, min=1, tcp_established=5), "strict_arp": True}
    assert host.obstacles(Config("n")) == []
    (proc / "sys" / "net/ipv4/conf/all/arp_announce").write_text("2\n")
    told = host.obstacles(Config("n", **wanted))
    names = ["nf_conntrack_tcp_timeout_established is 86400", "arp_ignore is 0", "nf_conntrack_max is 131072"]
    assert len(told) == len(names)
    assert all(name in line and "--init-only" in line for name, line in zip(names, told, strict=True))


def test_a_limit_that_belongs_to_the_machine_stands_in_nobodys_way(proc, read_only):
    (proc / "sys" / host.CONNTRACK_MAX).chmod(stat.S_IRUSR)
    assert host.obstacles(Config("n", conntrack=ConntrackSettings(max_per_core=50000))) == []


def test_where_settings_may_be_made_nothing_stands_in_the_way(proc):
    assert host.obstacles(Config("n", strict_arp=True)) == []


def test_strict_arp_is_set_and_never_taken_back(proc):
    prepare(strict_arp=True)
    assert written(proc) == set(host.STRICT_ARP_SYSCTLS)
    prepare()
    assert written(proc) == set(host.STRICT_ARP_SYSCTLS)
    assert [host.read_sysctl(name) for name in host.STRICT_ARP_SYSCTLS] == [1, 2]


def test_sloppy_tcp_is_set_where_it_is_asked_for(proc):
    prepare()
    assert written(proc) == set()
    prepare(sloppy_tcp=True)
    assert written(proc) == {host.SLOPPY_TCP}


def test_conntrack_settings(proc):
    wanted = ConntrackSettings(
        max_per_core=50000,
        min=1,
        tcp_established=10.9,
        tcp_close_wait=0,
        tcp_be_liberal=True,
        udp=40,
        udp_stream=50,
    )
    prepare(conntrack=wanted)
    names = ("max", "tcp_timeout_established", "tcp_timeout_close_wait", "tcp_be_liberal", "udp_timeout",
             "udp_timeout_stream")  # fmt: skip
    assert [host.read_sysctl(host.CONNTRACK + name) for name in names] == [200000, 10, 3600, 1, 40, 50]
    assert (host.SYS_MODULE / "nf_conntrack/parameters/hashsize").read_text() == "65536\n"


def test_buckets_follow_the_limit(proc):
    prepare(conntrack=ConntrackSettings(max_per_core=250000))
    assert (host.SYS_MODULE / "nf_conntrack/parameters/hashsize").read_text() == "250000\n"


def test_buckets_that_cannot_be_set_are_no_reason_to_end(proc):
    (host.SYS_MODULE / "nf_conntrack/parameters/hashsize").unlink()
    prepare(conntrack=ConntrackSettings(max_per_core=250000))
    assert host.read_sysctl(host.CONNTRACK_MAX) == 1000000


def test_the_limit_of_another_namespace_stays(proc):
    (proc / "sys" / host.CONNTRACK_MAX).chmod(stat.S_IRUSR)
    prepare(conntrack=ConntrackSettings(max_per_core=250000))
    assert host.read_sysctl(host.CONNTRACK_MAX) == 131072


@pytest.mark.parametrize("case", LIMITS)
def test_the_limit(case):
    wanted = ConntrackSettings(max_per_core=case["maxPerCore"], min=case["min"])
    expected = 0 if case["result"] == "leave untouched" else case["result"]
    assert host.conntrack_limit(wanted, case["cores"]) == expected


def test_a_setting_that_cannot_be_made_names_itself_and_the_way_out(proc):
    file = proc / "sys" / "net/ipv4/vs/conntrack"
    file.unlink()
    file.mkdir()
    with pytest.raises(host.SysctlError, match=r"net\.ipv4\.vs\.conntrack is None .*--init-only"):
        prepare()


@pytest.mark.parametrize(
    ("name", "module"),
    [("net/ipv4/vs/conntrack", "ip_vs"), (host.CONNTRACK + "tcp_timeout_close_wait", "nf_conntrack")],
)
def test_a_setting_that_is_not_there_names_its_module(proc, name, module):
    (proc / "sys" / name).parent.rename(proc / "away")
    with pytest.raises(host.SysctlError, match=f"load the module {module}$"):
        host.set_sysctl(name, 5)


@pytest.mark.parametrize(
    ("wanted", "now", "then", "writes"),
    [
        (IpvsTimeouts(), (900, 120, 300), (7800, 120, 300), 1),
        (IpvsTimeouts(), (1000, 120, 300), (1000, 120, 300), 0),
        (IpvsTimeouts(tcp=900), (900, 120, 300), (900, 120, 300), 0),
        (IpvsTimeouts(tcp=60.9, udp=5), (900, 120, 300), (60, 120, 5), 1),
        (IpvsTimeouts(tcp_fin=7), (900, 120, 300), (7800, 7, 300), 1),
    ],
)
def test_idle_timeouts(proc, wanted, now, then, writes):
    ipvs = Timeouts(*now)
    prepare(ipvs, ipvs_timeouts=wanted)
    assert (ipvs.values, ipvs.writes) == (then, writes)


def test_ipvs_remembers_udp_for_as_long_as_conntrack(proc):
    """When IPVS forgets a connection, conntrack's entry goes with it."""
    ipvs = Timeouts(7800, 120, 300)
    prepare(ipvs, conntrack=ConntrackSettings(udp_stream=600))
    assert ipvs.values == (7800, 120, 600)
    prepare(ipvs, conntrack=ConntrackSettings(udp_stream=900), ipvs_timeouts=IpvsTimeouts(udp=60))
    assert ipvs.values == (7800, 120, 60)


def test_refused_timeouts_are_no_reason_to_end(proc):
    prepare(Refusing())


def test_settings_are_put_back(proc):
    name = "net/ipv4/vs/conntrack"
    (proc / "sys" / name).write_text("0\n")
    (proc / "sys" / host.CONNTRACK_MAX).write_text("7\n")
    host.keep(Config("n"))
    assert host.read_sysctl(name) == 1
    assert host.read_sysctl(host.CONNTRACK_MAX) == 7  # an operator may tune it while we run


@pytest.mark.parametrize(("value", "is_needed", "warned"), [(0, True, True), (1, True, False), (0, False, False)])
def test_ipv6_that_is_not_forwarded_is_reported_where_there_is_an_ipv6_service(proc, value, is_needed, warned):
    (proc / "sys" / host.IPV6_FORWARDING).write_text(f"{value}\n")
    forwarding = host.Ipv6Forwarding()
    with capture_logs() as logs:
        prepare()
        for _ in range(3):
            forwarding.look(is_needed=is_needed)
    assert sum(entry["event"] == messages.IPV6_FORWARDING_OFF for entry in logs) == warned


def test_ipv6_forwarding_that_is_turned_off_again_is_reported_again(proc):
    forwarding = host.Ipv6Forwarding()
    with capture_logs() as logs:
        for value in (0, 1, 0):
            (proc / "sys" / host.IPV6_FORWARDING).write_text(f"{value}\n")
            forwarding.look(is_needed=True)
    assert len(logs) == 2


@pytest.mark.parametrize(("there", "warned"), [(65536, True), (131072, False), (1 << 20, False)])
def test_a_limit_of_the_machine_is_a_warning_only_when_it_is_too_low(proc, there, warned):
    (proc / "sys" / host.CONNTRACK_MAX).write_text(f"{there}\n")
    (proc / "sys" / host.CONNTRACK_MAX).chmod(stat.S_IRUSR)
    with capture_logs() as logs:
        host._set_conntrack_limit(131072)
    assert any(entry["event"] == messages.CONNTRACK_LIMIT_OF_HOST for entry in logs) is warned


def test_families(proc):
    assert host.families() == {4, 6}
    (proc / "sys" / host.IPV6_DISABLED).write_text("1\n")
    assert host.families() == {4}
    (proc / "sys" / host.IPV6_DISABLED).write_text("0\n")
    host.IF_INET6.unlink()
    assert host.families() == {4}


def test_oom_score(proc):
    host.OOM_SCORE_ADJ.write_text("0\n")
    host.set_oom_score(-999)
    assert host.OOM_SCORE_ADJ.read_text() == "-999\n"
    host.OOM_SCORE_ADJ.unlink()
    host.OOM_SCORE_ADJ.mkdir()
    host.set_oom_score(1)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 4096), (4096, 4096)),
        ((1024, 1 << 30), (1 << 20, 1 << 30)),
        ((1024, resource.RLIM_INFINITY), (1 << 20, resource.RLIM_INFINITY)),
        ((4096, 4096), None),
        ((1 << 21, 1 << 22), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_many_health_check_ports_find_enough_descriptors(monkeypatch, before, after):
    found = []
    monkeypatch.setattr(host.resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(host.resource, "setrlimit", lambda _, limits: found.append(limits))
    host.allow_descriptors()
    assert found == ([after] if after else [])


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), ValueError("no")])
def test_a_limit_that_cannot_be_raised_is_no_reason_to_end(monkeypatch, error):
    def refused(*_):
        raise error

    monkeypatch.setattr(host.resource, "getrlimit", lambda _: (10, 20))
    monkeypatch.setattr(host.resource, "setrlimit", refused)
    host.allow_descriptors()


def test_modules_are_loaded_only_where_they_are_not(proc, monkeypatch):
    program = proc / "modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" >>{proc}/calls\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setattr(host.shutil, "which", lambda *_, **__: str(program))
    host.load_module("ip_vs_rr")
    (host.SYS_MODULE / "ip_vs_lc").mkdir()
    host.load_module("ip_vs_lc")
    assert (proc / "calls").read_text() == "--quiet -- ip_vs_rr\n"
    monkeypatch.setattr(host.shutil, "which", lambda *_, **__: None)
    host.load_module("ip_vs_rr")
    assert (proc / "calls").read_text() == "--quiet -- ip_vs_rr\n"


def test_name_servers_are_read_as_the_resolver_reads_them(tmp_path, monkeypatch):
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(host, "RESOLV_CONF", path)
    assert host.nameservers() == frozenset()
    path.write_text(
        "# nameserver 192.0.2.1\nsearch a b\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver x\n"
    )
    assert host.nameservers() == {parse_ip("192.0.2.53"), parse_ip("fe80::1")}


@pytest.mark.parametrize(("code", "known"), [(errno.EMFILE, False), (errno.ENOENT, True), (errno.EACCES, True)])
def test_dns_servers_that_cannot_be_known_at_the_moment_are_not_none(monkeypatch, code, known):
    class File:
        def read_text(self, **_):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(host, "RESOLV_CONF", File())
    if known:
        assert host.nameservers() == frozenset()
        return
    with pytest.raises(KernelError):
        host.nameservers()
