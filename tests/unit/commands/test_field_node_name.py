"""A Node of another name than the proxy was given: an input as people have it, through planning and doctor."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ipvsproxy import cli
from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import objects as objects_of_commands
from ipvsproxy.commands.survey_objects import own_node
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Facts
from ipvsproxy.diagnosis.finding import CheckResult
from ipvsproxy.diagnosis.own_node import check_node
from ipvsproxy.exchange.report import Report
from ipvsproxy.kube.documents import read
from ipvsproxy.kube.manifest_file import kind_of
from ipvsproxy.kube.once import Objects
from ipvsproxy.reconciler.wanted_state import WantedState

CASE = Path(__file__).parents[2] / "field/cases/07-node-has-another-name.yaml"


def planned(name):
    objects = Objects("a folder")
    for item in read(CASE.name, CASE.read_bytes()).items:
        objects.add(kind_of(item), item.body)
    wanted = WantedState(Config(name, manifests=CASE.parent), Report())
    for listed in objects.listed():
        wanted.apply(listed)
    with capture_logs() as logs:
        wanted.look_at_node([parse_ip("192.0.2.1")])
    told = [entry for entry in logs if entry["event"] == messages.NODE_MISSING]
    (finding,) = check_node(Facts(node=own_node(wanted)))
    return told, finding


@pytest.mark.parametrize("name", ["192.0.2.1", "node1.example.com", "localhost"])
def test_a_name_that_no_node_has_is_a_warning_and_a_problem_that_name_the_node_there_is(name):
    (entry,), finding = planned(name)
    assert (entry["node"], entry["nodes"], entry["likely"]) == (name, ["node1"], ["node1"])
    assert finding.verdict is CheckResult.PROBLEM
    assert finding.summary.startswith(f"there is no Node {name}: Local policies")
    assert finding.evidence == ("nodes that objects name: node1",)
    assert finding.next == "if this host is node1: --hostname-override=node1"


def test_its_right_name_is_neither():
    told, finding = planned("node1")
    assert told == []
    assert finding.verdict is CheckResult.OK


def test_plan_reports_that_it_plans_for_another_node_than_was_named(capsys):
    assert cli.main(["plan", f"--from={CASE}", "--hostname-override=192.0.2.1"]) == 0
    assert "no Node 192.0.2.1 in it: planned for node1" in capsys.readouterr().err
    assert cli.main(["plan", f"--from={CASE}"]) == 0
    assert "planned for" not in capsys.readouterr().err


def test_commands_that_plan_for_this_host_report_that_its_node_is_missing(tmp_path, monkeypatch, capsys):
    (tmp_path / CASE.name).write_bytes(CASE.read_bytes())
    config = Config("192.0.2.1", manifests=tmp_path)
    monkeypatch.setattr(objects_of_commands, "of_this_host", lambda given: given)
    view = SimpleNamespace(
        other_addresses=list, reserved=tuple, senders=dict, listening=frozenset, server_states=dict
    )
    objects_of_commands.desired_here(config, objects_of_commands.read(config), view)
    said = capsys.readouterr().err
    assert said.startswith("Node 192.0.2.1 not found: Local policies")
    assert "(nodes that objects name: node1); see --hostname-override" in said
