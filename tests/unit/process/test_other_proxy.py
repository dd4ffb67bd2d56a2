"""What shows that a kube-proxy runs, put together from its process, its ports and its rules."""

import pytest

from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Process
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.process import other_proxy

PROCESS = Process(7, "kube-proxy", "/usr/local/bin/kube-proxy")


@pytest.fixture
def found(monkeypatch):
    """Look at a node of which everything is given."""

    def look(*, rules=(), mode="", processes=(), answers=(), sees=True, table=b""):
        def written():
            if rules is None:
                raise KernelError("netlink request", 93)
            return list(rules)

        class StampedTable:
            def __init__(self, _name):
                pass

            def stamp(self):
                return table

        monkeypatch.setattr(other_proxy, "written_by_kube_proxy", written)
        monkeypatch.setattr(other_proxy, "mode_of_rules", lambda: mode)
        monkeypatch.setattr(other_proxy, "read_processes", lambda _: processes)
        monkeypatch.setattr(other_proxy, "answers", lambda *_, **__: iter(answers))
        monkeypatch.setattr(other_proxy, "sees_host_processes", lambda: sees)
        monkeypatch.setattr(other_proxy, "Ruleset", StampedTable)
        return other_proxy.look(Config("n"))

    return look


RULES = ("ip chain nat KUBE-SERVICES",)


@pytest.mark.parametrize(
    ("node", "is_gone"),
    [
        ({}, True),
        ({"sees": False}, True),
        ({"rules": None, "sees": False}, True),  # a kernel without nf_tables
        ({"rules": RULES}, True),
        ({"rules": RULES, "sees": False}, False),
        ({"rules": RULES, "table": b"ours"}, False),  # written after we had removed them
        ({"processes": (PROCESS,)}, False),
        ({"answers": [("http://127.0.0.1:10249/proxyMode says iptables", "iptables")], "sees": False}, False),
    ],
)
def test_a_kube_proxy_is_gone_only_if_nothing_shows_it_and_its_process_would_be_seen(found, node, is_gone):
    assert found(**node).is_gone is is_gone


def test_what_it_answers_counts_before_the_looks_of_its_rules(found):
    """Ipsets may be left from another mode."""
    node = found(
        rules=RULES, mode="ipvs", answers=[("http://127.0.0.1:10249/proxyMode says nftables", "nftables")]
    )
    assert (node.running.mode, node.is_in_ipvs_mode) == ("nftables", False)
    assert found(rules=RULES, mode="ipvs", table=b"ours").is_in_ipvs_mode
