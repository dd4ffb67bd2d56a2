"""Dashboard and alert rules ask for metrics and labels that exist, and every alert is explained."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ipvsproxy.plan.records import Counters
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.traffic import TrafficSeries
from tests.support.deploy_tools import promtool

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "deploy/monitoring/alerts.yaml"
DASHBOARD = json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
WORDS = r"(?:(?:kubeproxy|ipvsproxy|rest_client|process|kube)_\w+|up)\b"
NAME = re.compile(rf"\b{WORDS}(?=[^\w\"])")
SELECTED = re.compile(rf"\b({WORDS})\{{([^}}]*)\}}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")
FROM_PROMETHEUS = {"instance", "job", "le", "node"}
# What kube-state-metrics and the kubelet's job have, for alerts that a proxy cannot report itself.
OF_OTHERS = {
    "kube_daemonset_status_desired_number_scheduled": {"daemonset"},
    "kube_node_info": {"node"},
    "kube_pod_info": {"node", "created_by_kind", "created_by_name"},
    "up": set(),
}


class OneServiceTraffic:
    """Traffic of one Service with one endpoint, so that its metrics are all there."""

    seconds = 0.0

    def series(self):
        return [TrafficSeries("a", "b", "f", end, Counters()) for end in ("", "e")]


def _known():
    """Return the labels of every sample, by its name."""
    board = Board(30, lambda _: None)
    board.metrics.show_traffic(OneServiceTraffic())
    board.metrics.requested("GET", "h", "200", 0.1)
    text = board.metrics.exposition("")[0].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


KNOWN = _known() | OF_OTHERS
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = {
    **{f"alert {rule['alert']}": rule["expr"] for rule in RULES},
    **{f"panel {p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]},
    **{f"variable {v['name']}": v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"},
}


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_metrics_and_labels_exist(expression):
    names = NAME.findall(expression)
    assert names
    assert not {name for name in names if name not in KNOWN}
    for name, selectors in SELECTED.findall(expression):
        assert set(re.findall(r"(\w+)\s*[=!]", selectors)) <= KNOWN[name] | FROM_PROMETHEUS
    labels = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",")}
    assert labels <= set.union(*(KNOWN[name] for name in names)) | FROM_PROMETHEUS
    assert expression.count("(") == expression.count(")")


def test_legends_name_labels_that_are_left():
    for panel in PANELS:
        for target in panel["targets"]:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = GROUPED.findall(target["expr"])
            names = NAME.findall(target["expr"])
            left = (
                {label.strip() for label in grouped[-1].split(",")} if grouped else KNOWN[names[0]] | {"instance"}
            )
            assert wanted <= left, (panel["title"], wanted, left)


def test_counters_are_looked_at_as_rates():
    """A counter alone, or a rate of a gauge, says nothing."""
    for expression in EXPRESSIONS.values():
        for name in NAME.findall(expression):
            if (
                name.endswith(("_total", "_bucket"))
                and name != "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
            ):
                assert re.search(rf"(rate|increase)\({name}|label_values\({name}", expression), expression
            else:
                assert not re.search(rf"(rate|increase)\({name}\b", expression), expression


def test_alerts_are_complete():
    text = (ROOT / "docs/operations.md").read_text()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["for"]
        assert rule["alert"] in text
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_panels_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_query_selects_a_job():
    for title, expression in EXPRESSIONS.items():
        for name in NAME.findall(expression):
            if name.startswith("kube_"):
                continue
            selectors = [found for selected, found in SELECTED.findall(expression) if selected == name]
            assert len(selectors) == expression.count(f"{name}{{"), title
            wanted = r'job=~"\$job"' if title.startswith(("panel", "variable")) else r'job="(ipvsproxy|kubelet)"'
            if title != "variable job":
                assert selectors, title
                assert all(re.search(wanted, found) for found in selectors), title


def test_promtool_accepts_the_rules_and_the_queries_of_the_dashboard(tmp_path):
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint-fatal", ALERTS)
    # As recording rules, with something in place of Grafana's variables.
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$\w+", "a", target["expr"])}
        for number, target in enumerate(target for panel in PANELS for target in panel["targets"])
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)
