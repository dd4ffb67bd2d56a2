"""The scenarios whose instructions are counted do what they say, on a small node."""

import subprocess
import types

import pytest

from ipvsproxy.plan.diff import Verb
from tests.bench import instructions


@pytest.fixture
def nodes(monkeypatch):
    """The nodes that a run makes, with the steps that they were asked to carry out, call by call."""
    made = []

    class Recorded(instructions.MeasuredNode):
        def __init__(self, *given):
            super().__init__(*given)
            self.calls = []
            ipvs = self.loop.parts.applier._kernel._ipvs
            carry_out = ipvs.apply
            ipvs.apply = lambda steps: self.calls.append(steps) or carry_out(steps)
            made.append(self)

    monkeypatch.setattr(instructions, "MeasuredNode", Recorded)
    return made


def verbs(calls):
    return [{step.verb for step in steps} for steps in calls]


def test_on_the_short_path_no_step_is_for_ipvs(nodes):
    instructions.run("endpoint_change", 3, 2, "auto")
    assert not any(nodes[0].calls)


@pytest.mark.parametrize(("scenario", "rounds", "passes"), [("burst", 2, 2), ("endpoint_change", 2, 6)])
def test_each_change_of_a_slice_changes_one_destination(nodes, scenario, rounds, passes):
    instructions.run(scenario, 3, rounds)
    changes = nodes[0].calls[-passes:]
    assert verbs(changes) == [{Verb.NEW_DEST, Verb.SET_DEST}] * passes
    assert sum(len(steps) for steps in changes) == 2 * 3 * rounds


@pytest.mark.parametrize(("rounds", "servers"), [(0, 0), (1, 5)])
def test_a_start_makes_all_servers_or_is_left_out(nodes, rounds, servers):
    instructions.run("cold_sync", 3, rounds)  # beside the API server's own Service and DNS
    assert sum(step.creates for steps in nodes[0].calls for step in steps) == servers


def test_a_figure_is_the_difference_of_two_runs_for_each_service(monkeypatch, capsys):
    def fake(command, **_):
        *_, scenario, services, rounds, data_path = command
        assert data_path == "auto"
        cost = {"cold_sync": 7_000, "burst": 300, "endpoint_change": 400}[scenario]
        refs = 10_000_000 + int(services) * int(rounds) * cost
        return types.SimpleNamespace(stderr=f"==1== \n==1== I   refs:      {refs:,}\n")

    monkeypatch.setattr(subprocess, "run", fake)
    instructions.main(["--services", "10", "--data-path", "auto"])
    assert capsys.readouterr().out == "cold_sync: 7,000\nburst: 300\nendpoint_change: 400\n"
