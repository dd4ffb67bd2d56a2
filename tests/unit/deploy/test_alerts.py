"""Every alert fires when it should, and not for a healthy cluster, a kubelet or a kube-proxy: by promtool."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.deploy_tools import ROOT, promtool

ALERTS = ROOT / "deploy/monitoring/alerts.yaml"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]
}  # fmt: skip
BUCKET = "kubeproxy_network_programming_duration_seconds_bucket"
DAEMON_SET = 'created_by_kind="DaemonSet",created_by_name'
# Values of series by name and labels, one a minute, in promtool's notation: 0+5x3 is 0 5 10 15, _ is none.
Series = dict[str, str]
DAY = 24 * 60
OURS = 'job="ipvsproxy",instance="192.0.2.1:10249",node="a"'
ALSO_OURS = 'job="ipvsproxy",instance="192.0.2.2:10249",node="b"'
LABELS = {"job": "ipvsproxy", "instance": "192.0.2.1:10249", "node": "a"}
STATE_METRICS = 'job="kube-state-metrics",instance="10.244.0.9:8080"'


def proxy(labels: str = OURS) -> Series:
    """Return what a healthy proxy has."""
    return {
        f"up{{{labels}}}": f"1x{DAY}",
        f'ipvsproxy_build_info{{{labels},version="0.1.0"}}': f"1x{DAY}",
        f'kubeproxy_sync_proxy_rules_last_timestamp_seconds{{{labels},ip_family="IPv4"}}': f"0+60x{DAY}",
        f'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{{{labels},ip_family="IPv4"}}': f"2x{DAY}",
        f'{BUCKET}{{{labels},ip_family="IPv4",le="1"}}': f"0+9x{DAY}",
        f'{BUCKET}{{{labels},ip_family="IPv4",le="+Inf"}}': f"0+9x{DAY}",
        f"ipvsproxy_sync_failures_total{{{labels}}}": f"1x{DAY}",
        f"ipvsproxy_pending_objects{{{labels}}}": f"0x{DAY}",
        f"ipvsproxy_repairs_total{{{labels}}}": f"3x{DAY}",
        f"ipvsproxy_draining_destinations{{{labels}}}": "0x60 4x120 0x1260",
        f'rest_client_requests_total{{{labels},code="200",host="h",method="GET"}}': f"0+60x{DAY}",
        f'rest_client_requests_total{{{labels},code="503",host="h",method="GET"}}': "0x60 9x1380",
    }


def sick(labels: str) -> Series:
    """Return what a kube-proxy or a kubelet may have that would be bad news of an ipvsproxy."""
    return {
        f'kubeproxy_sync_proxy_rules_last_timestamp_seconds{{{labels},ip_family="IPv4"}}': f"0x{DAY}",
        f'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{{{labels},ip_family="IPv4"}}': f"0+9x{DAY}",
        f'{BUCKET}{{{labels},ip_family="IPv4",le="30"}}': f"0x{DAY}",
        f'{BUCKET}{{{labels},ip_family="IPv4",le="60"}}': f"0+9x{DAY}",
        f'{BUCKET}{{{labels},ip_family="IPv4",le="+Inf"}}': f"0+9x{DAY}",
        f'rest_client_requests_total{{{labels},code="500",host="h",method="GET"}}': f"0+600x{DAY}",
        f'rest_client_requests_total{{{labels},code="<error>",host="h",method="GET"}}': f"0+600x{DAY}",
        f"process_resident_memory_bytes{{{labels}}}": f"1e10x{DAY}",
    }


def kubelet(address: str, values: str = f"1x{DAY}") -> Series:
    return {f'up{{job="kubelet",instance="{address}:10250",metrics_path="/metrics"}}': values}


def cluster(*nodes: str, desired: int) -> Series:
    """Return what kube-state-metrics says of nodes and of our DaemonSet."""
    pods = {
        f'kube_pod_info{{{STATE_METRICS},node="{node}",pod="x-{node}",{DAEMON_SET}="ipvsproxy"}}': f"1x{DAY}"
        for node in nodes
    }
    wanted = f'kube_daemonset_status_desired_number_scheduled{{{STATE_METRICS},daemonset="ipvsproxy"}}'
    found = {f'kube_node_info{{{STATE_METRICS},node="{node}"}}': f"1x{DAY}" for node in nodes}
    return pods | found | {wanted: f"{desired}x{DAY}"}


class AlertCase(NamedTuple):
    """Series beside those of a healthy proxy, and the alert that they cause after so many minutes, not before."""

    alert: str
    series: Series
    quiet: int
    fires: int
    summary: str
    labels: dict[str, str] = LABELS


CASES = [
    AlertCase("IpvsproxyDown", {f"up{{{OURS}}}": f"1x9 0x{DAY}"}, 14, 16, "ipvsproxy on a does not answer"),
    AlertCase(
        "IpvsproxyGone",
        # One of two whose kubelets answer; the third one's node is gone altogether.
        {
            f'ipvsproxy_build_info{{{OURS},version="0.1.0"}}': f"1x20 _x{DAY}",
            f"up{{{OURS}}}": f"1x20 _x{DAY}",
            'ipvsproxy_build_info{job="ipvsproxy",instance="192.0.2.3:10249",version="0.1.0"}': f"1x20 _x{DAY}",
            'up{job="ipvsproxy",instance="192.0.2.3:10249"}': f"1x20 _x{DAY}",
            **kubelet("192.0.2.1"),
            **kubelet("192.0.2.2"),
            **kubelet("192.0.2.3", f"1x20 _x{DAY}"),
        },
        *(38, 45, "The node a has lost its ipvsproxy", LABELS | {"host": "192.0.2.1"}),
    ),
    AlertCase(
        *("IpvsproxyNotOnAllNodes", cluster("a", "b", desired=3), 14, 16),
        *("The DaemonSet ipvsproxy has 1 nodes more than are scraped", {}),
    ),
    AlertCase(
        "IpvsproxyNodeWithoutProxy",
        cluster("a", "b", desired=2)
        | {
            f'kube_node_info{{{STATE_METRICS},node="c"}}': f"1x{DAY}",
            f'kube_node_info{{{STATE_METRICS},node="not-migrated"}}': f"1x{DAY}",
            f'kube_pod_info{{{STATE_METRICS},node="c",{DAEMON_SET}="cni"}}': f"1x{DAY}",
            f'kube_pod_info{{{STATE_METRICS},node="not-migrated",{DAEMON_SET}="kube-proxy"}}': f"1x{DAY}",
        },
        *(14, 16, "The node c has neither an ipvsproxy nor a kube-proxy"),
        {"job": "kube-state-metrics", "instance": "10.244.0.9:8080", "node": "c"},
    ),
    AlertCase(
        "IpvsproxyNotSyncing",
        {f'kubeproxy_sync_proxy_rules_last_timestamp_seconds{{{OURS},ip_family="IPv4"}}': f"0x{DAY}"},
        *(8, 10, "ipvsproxy on a has not synced for 10m 0s", LABELS | {"ip_family": "IPv4"}),
    ),
    AlertCase(
        *("IpvsproxySyncFails", {f"ipvsproxy_sync_failures_total{{{OURS}}}": f"0+1x{DAY}"}, 14, 17),
        "Syncs of ipvsproxy on a fail altogether",
    ),
    AlertCase(
        "IpvsproxyRulesRefused",
        {f'kubeproxy_sync_proxy_rules_iptables_restore_failures_total{{{OURS},ip_family="IPv6"}}': f"0+1x{DAY}"},
        *(14, 17, "The kernel refuses nftables rules of IPv6 on a", LABELS | {"ip_family": "IPv6"}),
    ),
    AlertCase(
        *("IpvsproxyObjectsRefused", {f"ipvsproxy_pending_objects{{{OURS}}}": f"2x{DAY}"}, 9, 11),
        "The kernel of a refuses 2 objects",
    ),
    AlertCase(
        *("IpvsproxyRepairsAgainAndAgain", {f"ipvsproxy_repairs_total{{{OURS}}}": f"0+1x{DAY}"}, 119, 122),
        "Another program changes what ipvsproxy has written on a",
    ),
    AlertCase(
        "IpvsproxySlowProgramming",
        {
            f'{BUCKET}{{{OURS},ip_family="IPv4",le="1"}}': f"0x{DAY}",
            f'{BUCKET}{{{OURS},ip_family="IPv4",le="30"}}': f"0x{DAY}",
            f'{BUCKET}{{{OURS},ip_family="IPv4",le="60"}}': f"0+9x{DAY}",
        },
        *(29, 32, "Changes of endpoints take 59.7s to arrive on a"),
    ),
    AlertCase(
        *("IpvsproxyDrainsNeverEnd", {f"ipvsproxy_draining_destinations{{{OURS}}}": f"1x{DAY}"}, 359, 361),
        "Removed endpoints on a have had connections for six hours",
    ),
    AlertCase(
        "IpvsproxyApiUnreachable",
        {f'rest_client_requests_total{{{OURS},code="<error>",host="h",method="GET"}}': f"0+6x{DAY}"},
        *(14, 22, "ipvsproxy on a does not reach the API server"),
    ),
]


def run(folder: pathlib.Path, series: Series, expected: Iterable[dict[str, Any]]) -> None:
    """Let promtool feed the series to the rules and compare the alerts."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    tests = [{"interval": "1m", "input_series": given, "alert_rule_test": list(expected)}]
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


def silence(at: int, *but: str) -> list[dict[str, Any]]:
    """Return the expectation that none fires after so many minutes."""
    return [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": []} for name in RULES if name not in but]


def firing(at: int, alert: str, labels: dict[str, str], summary: str) -> dict[str, Any]:
    rule = RULES[alert]
    found = {
        "exp_labels": rule["labels"] | labels,
        "exp_annotations": {"summary": summary, "description": rule["annotations"]["description"]},
    }
    return {"eval_time": f"{at}m", "alertname": alert, "exp_alerts": [found]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_one_of_two_proxies_that_has_the_fault_causes_its_alert_and_no_other(case, tmp_path):
    series = proxy(OURS) | proxy(ALSO_OURS) | case.series
    now = firing(case.fires, case.alert, case.labels, case.summary)
    run(tmp_path, series, [*silence(case.quiet), *silence(case.fires, case.alert), now])


def test_no_proxy_at_all_is_an_alert(tmp_path):
    others = sick('job="kubelet",instance="192.0.2.1:10250"') | {f"up{{{STATE_METRICS}}}": f"1x{DAY}"}
    now = firing(11, "IpvsproxyMissing", {"job": "ipvsproxy"}, "No ipvsproxy is scraped")
    run(tmp_path, others, [*silence(9), *silence(11, "IpvsproxyMissing"), now])


def test_the_daemon_set_is_compared_with_nothing_scraped_too(tmp_path):
    summary = "The DaemonSet ipvsproxy has 2 nodes more than are scraped"
    run(tmp_path, cluster("a", "b", desired=2), [firing(16, "IpvsproxyNotOnAllNodes", {}, summary)])


def test_without_the_label_of_the_node_its_address_is_named(tmp_path):
    labels = 'job="ipvsproxy",instance="192.0.2.1:10249"'
    expected = {"job": "ipvsproxy", "instance": "192.0.2.1:10249"}
    series = proxy(labels) | {f"up{{{labels}}}": f"0x{DAY}"}
    summary = "ipvsproxy on 192.0.2.1:10249 does not answer"
    run(tmp_path, series, [firing(16, "IpvsproxyDown", expected, summary)])


@pytest.mark.parametrize(
    "labels",
    [
        'job="kubelet",instance="192.0.2.1:10250",node="a"',
        'job="kube-proxy",instance="192.0.2.3:10249",node="c"',
        'job="ipvsproxy",instance="192.0.2.3:10249",node="c"',
    ],
    ids=["kubelet", "kube-proxy", "kube-proxy in our job"],
)
def test_others_that_are_sick_cause_no_alert_of_ours(labels, tmp_path):
    others = sick(labels) | {f"up{{{labels}}}": f"1x{DAY}"}
    series = proxy(OURS) | proxy(ALSO_OURS) | others | cluster("a", "b", desired=2) | kubelet("192.0.2.1")
    run(tmp_path, series, [found for at in (15, 60, 130, 500) for found in silence(at)])


def test_a_new_version_and_a_new_address_of_a_node_cause_no_alert(tmp_path):
    """The old series end as the new ones begin."""
    old = {f'ipvsproxy_build_info{{{OURS},version="0.1.0"}}': "1x100"}
    new = {f'ipvsproxy_build_info{{{OURS},version="0.2.0"}}': f"_x100 1x{DAY}"}
    moved = 'job="ipvsproxy",instance="192.0.2.7:10249",node="c"'
    away = dict.fromkeys((f"up{{{moved}}}", f'ipvsproxy_build_info{{{moved},version="0.1.0"}}'), "1x100")
    series = proxy(OURS) | old | new | away | kubelet("192.0.2.1") | kubelet("192.0.2.7", "1x100")
    run(tmp_path, series, [found for at in (99, 104, 120, 300) for found in silence(at)])


def test_every_alert_has_a_case():
    assert {case.alert for case in CASES} | {"IpvsproxyMissing"} == RULES.keys()
