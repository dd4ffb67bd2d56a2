"""Names, labels and buckets of the metrics, and that facts arrive in them."""

import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipvsproxy.exchange.report import LookUps, Subject, Sync
from ipvsproxy.plan.local import LocalView
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.refusals import Refusals

UPSTREAM = {
    "kubeproxy_sync_proxy_rules_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": ("gauge", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": ("gauge", {"ip_family"}),
    "kubeproxy_network_programming_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_endpoint_changes_total": ("counter", set()),
    "kubeproxy_sync_proxy_rules_service_changes_pending": ("gauge", set()),
    "kubeproxy_sync_proxy_rules_service_changes_total": ("counter", set()),
    "kubeproxy_proxy_healthz_total": ("counter", {"code"}),
    "kubeproxy_proxy_livez_total": ("counter", {"code"}),
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": ("gauge", {"traffic_policy", "ip_family"}),
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total": ("counter", {"ip_family"}),
    "kubeproxy_conntrack_reconciler_sync_duration_seconds": ("histogram", {"ip_family"}),
    "kubeproxy_conntrack_reconciler_deleted_entries_total": ("counter", {"ip_family"}),
    "rest_client_requests_total": ("counter", {"code", "host", "method"}),
    "rest_client_request_duration_seconds": ("histogram", {"host", "verb"}),
    "process_cpu_seconds_total": ("counter", set()),
    "process_resident_memory_bytes": ("gauge", set()),
}
SYNC = "kubeproxy_sync_proxy_rules_"
NAME = re.compile(r"\b(?:kubeproxy|ipvsproxy|rest_client)_\w+")


def sync(**changes):
    fields = {
        "seconds": 0.003,
        "changes": 2,
        "services": 5,
        "frontends": 9,
        "draining": 1,
        "pending": 0,
        "draining_destinations": 3,
    }
    return Sync(**{**fields, **changes})


def view(name, *lacking):
    return LocalView(f"default/{name}", "", 0, {4: 0}, frozenset(lacking))


class Metered:
    def __init__(self):
        self.notices = []
        self.board = Board(30, self.notices.append)

    def families(self):
        body, _ = self.board.metrics.exposition("")
        return list(text_string_to_metric_families(body.decode()))

    def value(self, name, **labels):
        found = [s.value for f in self.families() for s in f.samples if s.name == name and s.labels == labels]
        assert len(found) == 1, f"{name} {labels}: {found}"
        return found[0]


@pytest.fixture
def metered():
    made = Metered()
    yield made
    made.board.server.close()


def test_names_types_and_labels_of_kube_proxy(metered):
    board = metered.board
    board.metrics.probed("/healthz", 200)
    board.metrics.probed("/livez", 200)
    board.metrics.requested("GET", "api:6443", "200", 0.1)
    text = board.metrics.exposition("")[0].decode()
    for name, (type_, labels) in UPSTREAM.items():
        assert f"# TYPE {name} {type_}\n" in text, name
        samples = [
            s for f in text_string_to_metric_families(text) for s in f.samples if s.name in (name, f"{name}_count")
        ]
        assert {frozenset(s.labels) for s in samples} == {frozenset(labels)}, name
    assert "_created" not in text


def test_our_own_have_one_prefix(metered):
    names = {family.name for family in metered.families()}
    ours = {name for name in names if not name.startswith(("kubeproxy_", "rest_client_", "process_"))}
    assert ours
    assert all(name.startswith("ipvsproxy_") for name in ours)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        (f"{SYNC}duration_seconds", [0.001 * 2**n for n in range(15)]),
        (
            "kubeproxy_network_programming_duration_seconds",
            [0.25, 0.5, *range(1, 60), *range(60, 120, 5), 120, 150, 180, 210, 240, 270, 300],
        ),
    ],
)
def test_buckets(metered, name, bounds):
    family = next(f for f in metered.families() if f.name == name)
    found = [
        s.labels["le"] for s in family.samples if s.name.endswith("_bucket") and s.labels["ip_family"] == "IPv4"
    ]
    assert [float(le) for le in found] == [*bounds, float("inf")]


def test_openmetrics_if_the_client_prefers_it(metered):
    body, content_type = metered.board.metrics.exposition("application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_sync(metered):
    began = time.time()
    metered.board.queued()
    metered.board.synced(sync())
    assert metered.value(f"{SYNC}duration_seconds_count", ip_family="IPv4") == 1
    assert metered.value(f"{SYNC}duration_seconds_sum", ip_family="IPv6") == 0.003
    assert metered.value(f"{SYNC}last_timestamp_seconds", ip_family="IPv6") >= began
    assert metered.value(f"{SYNC}last_queued_timestamp_seconds", ip_family="IPv4") >= began
    assert metered.value("ipvsproxy_services") == 5
    assert metered.value("ipvsproxy_draining_frontends") == 1
    assert metered.value("ipvsproxy_draining_destinations") == 3
    assert metered.value("ipvsproxy_kernel_changes_total") == 2
    assert metered.board.health.healthz()[0] == 503  # the node is not known yet
    metered.board.node(eligible=True, listen={})
    assert metered.board.health.healthz()[0] == 200


def test_rules_of_one_family_refused(metered):
    metered.board.synced(sync(behind=frozenset({6}), pending=3))
    assert metered.value(f"{SYNC}iptables_restore_failures_total", ip_family="IPv6") == 1
    assert metered.value(f"{SYNC}iptables_restore_failures_total", ip_family="IPv4") == 0
    assert metered.value(f"{SYNC}last_timestamp_seconds", ip_family="IPv6") == 0
    assert metered.value("ipvsproxy_pending_objects") == 3


def test_changes_are_pending_until_a_sync(metered):
    metered.board.received("Service", 3, 0.0)
    metered.board.received("EndpointSlice", 1, 0.0)
    metered.board.received("Node", 1, 0.0)
    metered.board.synced(sync(behind=frozenset({4})))
    assert metered.value(f"{SYNC}service_changes_pending") == 6
    assert metered.value(f"{SYNC}endpoint_changes_pending") == 1
    metered.board.synced(sync())
    assert metered.value(f"{SYNC}service_changes_pending") == 0
    assert metered.value(f"{SYNC}service_changes_total") == 6
    assert metered.value(f"{SYNC}endpoint_changes_total") == 1


def test_programming_time_counts_changes_since_the_start_of_the_process(metered):
    name = "kubeproxy_network_programming_duration_seconds"
    metered.board.received("EndpointSlice", 1, time.time() - 3600)
    metered.board.received("EndpointSlice", 1, time.time())
    metered.board.synced(sync(behind=frozenset({4})))
    assert metered.value(f"{name}_count", ip_family="IPv4") == 0
    metered.board.synced(sync())
    metered.board.synced(sync())
    assert metered.value(f"{name}_count", ip_family="IPv4") == 1
    assert metered.value(f"{name}_bucket", ip_family="IPv4", le="60.0") == 1


def test_services_without_local_endpoints(metered):
    board = metered.board
    board.local("default/a", view("a", ("internal", 4), ("external", 4)))
    board.local("default/b", view("b", ("internal", 4)))
    board.synced(sync())
    name = f"{SYNC}no_local_endpoints_total"
    assert metered.value(name, traffic_policy="internal", ip_family="IPv4") == 2
    assert metered.value(name, traffic_policy="external", ip_family="IPv4") == 1
    board.local("default/a", view("a"))
    board.local("default/b", None)
    board.synced(sync())
    assert metered.value(name, traffic_policy="internal", ip_family="IPv4") == 0
    assert metered.value(name, traffic_policy="external", ip_family="IPv6") == 0


def test_failures_are_counted_and_a_refusal_is_an_event(metered):
    metered.board.failed()
    metered.board.repaired(4)
    metered.board.drains_forced(2)
    metered.board.refused(Subject("Service", "default", "web"), "10.96.0.1:80/SCTP: no such protocol")
    assert metered.value("ipvsproxy_sync_failures_total") == 1
    assert metered.value("ipvsproxy_repairs_total") == 4
    assert metered.value("ipvsproxy_drain_timeouts_total") == 2
    assert metered.value("ipvsproxy_forced_drain_ends_total") == 2, "the old name, for one release"
    assert metered.value("ipvsproxy_service_failures_total") == 1
    assert [(n.reason, n.note) for n in metered.notices] == [
        ("FailedToProgramService", "10.96.0.1:80/SCTP: no such protocol")
    ]


def test_a_verification_that_fails_waits_although_nothing_was_queued(metered, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metered.board.health, "_steady", lambda: now[0])
    metered.board.synced(sync())
    metered.board.failed()
    now[0] += 59
    assert metered.board.health.healthy
    now[0] += 1
    assert not metered.board.health.healthy


def test_refused_connections_are_counted_by_tenant_and_the_last_counts_stay_while_none_are_read(
    metered,
):
    answers = [{0: 5, 2: 3, 9: 7}, OSError("gone")]

    def read():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    metered.board.show_refusals(Refusals(read))
    metered.board.look_ups(LookUps(tenants=lambda: {2: "blue", 3: 'gr"een'}))
    for _ in range(2):
        lines = metered.board.metrics.exposition("")[0].decode().splitlines()
        assert [line for line in lines if "refused_connections" in line and line[0] != "#"] == [
            'ipvsproxy_tenant_refused_connections_total{tenant="blue"} 3.0',
            'ipvsproxy_tenant_refused_connections_total{tenant="gr\\"een"} 0.0',
            "ipvsproxy_unknown_pod_refused_connections_total 5.0",
        ]


def test_the_compatibility_page_names_all_and_no_other(metered):
    page = (Path(__file__).parents[3] / "docs/compatibility.md").read_text()
    rows = page.partition("\n## Metrics\n")[2].partition("\n## ")[0].splitlines()
    promised = [row.split("|") for row in rows if row.startswith("| `")]
    named = {name for _, names, here, *_ in promised if here.strip() != "absent" for name in NAME.findall(names)}
    metered.board.metrics.show_traffic(SimpleNamespace(seconds=0.0, series=list))
    metered.board.show_refusals(Refusals(dict))
    text = metered.board.metrics.exposition("")[0].decode()
    assert named == set(re.findall(rf"^# TYPE ({NAME.pattern}) ", text, re.MULTILINE))
