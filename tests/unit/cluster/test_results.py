"""Results of upstream's tests: from a JUnit file to the table of the page."""

from __future__ import annotations

import pathlib

import pytest

from tests.cluster import results
from tests.cluster.left_out import LEFT_OUT, left_out
from tests.cluster.results import Spec, SpecRun

JUNIT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="e2e">
<testcase name="[BeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] [sig-network] Services should serve a basic endpoint from pods [Conformance]" time="12.6">
</testcase>
<testcase name="[It] [sig-network] DNS should provide DNS for the cluster [Conformance]" time="3.2">
<failure message="[FAILED] timed out&#xA;after 600 s" type="failed">stack</failure></testcase>
<testcase name="[It] [sig-network] Services should use three nodes" time="0.01">
<skipped message="skipped - Requires at least 3 nodes (not 2)"></skipped></testcase>
<testcase name="[It] [sig-network] Proxy version v1 should not be asked for" time="0">
<skipped message="skipped"></skipped></testcase>
<testcase name="[It] [sig-network] Services should be interrupted" time="7">
<failure message="[INTERRUPTED] Interrupted by User"></failure></testcase>
<testcase name="[It] [sig-storage] Volumes should not count" time="1"></testcase>
</testsuite></testsuites>
"""
BASIC = "Services should serve a basic endpoint from pods [Conformance]"
DNS = "DNS should provide DNS for the cluster [Conformance]"
THREE = "Services should use three nodes"
TODAY = SpecRun("ipvsproxy", "v1.36.2", "2026-11-29")


def test_what_ran_failed_or_skipped_itself_is_read_and_nothing_else():
    assert results.read(JUNIT) == [
        Spec(BASIC, "passed", 13),
        Spec(DNS, "failed", 3, "timed out"),
        Spec(THREE, "skipped", 0, "Requires at least 3 nodes (not 2)"),
    ]


def test_a_summary_counts_and_names_failures():
    assert results.summary(results.read(JUNIT)) == f"1 passed, 1 failed, 1 skipped\nFAILED {DNS}: timed out"


def test_the_newest_result_of_a_spec_counts_for_each_proxy_a_failure_as_well(tmp_path: pathlib.Path):
    path = tmp_path / "kept.json"
    results.keep([Spec(DNS, "passed", 3)], TODAY, path)
    results.keep([Spec(DNS, "passed", 4)], SpecRun("kube-proxy ipvs", "v1.36.2", "2026-11-29"), path)
    results.keep([Spec(DNS, "failed", 600, "timed out")], SpecRun("ipvsproxy", "v1.36.3", "2026-11-30"), path)
    kept = results.load(path)
    assert kept["ipvsproxy"][DNS] == {
        "status": "failed",
        "version": "v1.36.3",
        "date": "2026-11-30",
        "seconds": 600,
        "reason": "timed out",
    }
    assert kept["kube-proxy ipvs"][DNS]["status"] == "passed"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (BASIC, "Services"),
        ("LoadBalancers ExternalTrafficPolicy: Local [Feature:LoadBalancer] [Slow] should work", "LoadBalancers"),
        ("Networking Granular Checks: Services should function for pod-Service: http", "Networking"),
        ("[Feature:IPv6DualStack] should create a service with ipv4,v6 cluster ip", "IPv6DualStack"),
        ("Proxy version v1 should proxy through a service and a pod [Conformance]", "Proxy"),
        ("NoSNAT Should be able to send traffic between Pods without SNAT", "NoSNAT"),
        ("DNS HostNetwork spec.Hostname field is not silently ignored", "DNS"),
    ],
)
def test_the_group_of_a_spec_is_what_upstream_describes(name: str, group: str):
    assert results.group(name) == group


def test_the_table_has_a_column_for_each_proxy_ours_first_and_lists_failures_and_skips(tmp_path: pathlib.Path):
    path = tmp_path / "kept.json"
    results.keep(results.read(JUNIT), TODAY, path)
    results.keep([Spec(BASIC, "passed", 9)], SpecRun("kube-proxy ipvs", "v1.36.2", "2026-11-28"), path)
    lines = results.table(results.load(path), {"a|b": "for a reason"}).splitlines()
    assert lines[0] == "| upstream's specs | ipvsproxy | kube-proxy ipvs |"
    assert "| DNS | 0 of 1 |  |" in lines
    assert "| Services | 1 of 1 | 1 of 1 |" in lines
    assert "- ipvsproxy: 1 of 2 passed, Kubernetes v1.36.2, 2026-11-29." in lines
    assert f"- ipvsproxy: {DNS}: timed out" in lines
    assert f"- ipvsproxy: {THREE}: Requires at least 3 nodes (not 2)" in lines
    assert "| `a\\|b` | for a reason |" in lines


def test_a_part_of_a_page_is_replaced_and_the_rest_stays():
    old = f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n"
    assert results.page(old, "new") == f"before\n{results.BEGIN}\nnew\n{results.END}\nafter\n"
    with pytest.raises(ValueError, match="the page has no"):
        results.page("nothing of it", "new")


def test_the_page_has_the_kept_results():
    text = results.PAGE.read_text()
    assert results.page(text, results.table(results.load(), LEFT_OUT)) == text, "python -m tests.cluster.results"


def test_what_is_left_out_has_a_reason_and_what_a_proxy_does_is_not():
    assert left_out("[sig-network] Netpol NetworkPolicy between server and client should deny") is not None
    assert (
        left_out("[sig-network] Networking should provide Internet connection [Feature:Networking-IPv4]")
        is not None
    )
    assert left_out(f"[sig-network] {BASIC}") is None
    assert (
        left_out("[sig-network] Networking Granular Checks: Services should function for pod-Service: sctp")
        is None
    )
    assert all(reason and not reason.endswith(".") for reason in LEFT_OUT.values())
    assert not {name for kept in results.load().values() for name in kept if left_out(f"[sig-network] {name}")}


def test_results_of_this_machine_take_the_place_of_older_ones_in_the_repository(tmp_path: pathlib.Path):
    old, new = tmp_path / "kept.json", tmp_path / "new/report.json"
    results.keep([Spec(DNS, "failed", 3, "timed out"), Spec(BASIC, "passed", 9)], TODAY, old)
    netpol = "Netpol NetworkPolicy between server and client should deny"  # left out since it ran
    results.keep([Spec(DNS, "passed", 2), Spec(netpol, "failed", 1)], TODAY, new)
    results.take_in(new, old)
    kept = results.load(old)["ipvsproxy"]
    assert {name: entry["status"] for name, entry in kept.items()} == {DNS: "passed", BASIC: "passed"}
    assert "reason" not in kept[DNS]
