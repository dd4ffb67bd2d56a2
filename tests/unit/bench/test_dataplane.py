"""What the measurement of packets makes of its counts: the budget, tables, and what is asked for."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from tests.bench.dataplane import __main__ as program
from tests.bench.dataplane import budget, floors, measure, objects
from tests.bench.dataplane.results import Results, parse
from tests.bench.dataplane.rows import (
    AUTO,
    FLOORS,
    IPVS,
    NO_SERVICE,
    OF_TENANT,
    OURS,
    PATHS,
    TENANTS,
    WATCHED,
    PriceRow,
    floor_of,
)
from tests.bench.dataplane.table import tables
from tests.lab.lab import Lab

HERE, ELSEWHERE = {"kernel": "6.1.0-50-amd64", "nft": "1.0.6"}, {"kernel": "6.12.1-amd64", "nft": "1.1.3"}
ROW = PriceRow(10, "pod to ClusterIP", "tcp", OURS)
FLOOR = dataclasses.replace(ROW, peer=IPVS)


def counted(ours: int, floor: int = 52_000, surroundings: dict[str, str] = HERE) -> Results:
    return Results(surroundings, {ROW: ours, FLOOR: floor})


def test_up_to_one_percent_more_than_agreed_is_no_failure() -> None:
    assert budget.exceeded(counted(53_000), counted(53_530)) == []


def test_more_than_one_percent_more_names_the_row_and_both_counts() -> None:
    assert budget.exceeded(counted(53_000), counted(53_531)) == [
        "pod to ClusterIP, tcp, ipvsproxy, 10 Services: 53,531 instructions, 1.00% more than the 53,000 agreed"
    ]


def test_a_floor_moves_what_its_rows_may_cost_and_is_not_judged() -> None:
    agreed = counted(53_000, 50_000)
    assert budget.exceeded(agreed, counted(53_000, 51_000)) == []
    assert budget.exceeded(agreed, counted(54_060, 51_000)) == []
    assert len(budget.exceeded(agreed, counted(54_700, 51_000))) == 1


def test_a_floor_that_has_fallen_on_the_same_kernel_makes_no_row_dear() -> None:
    assert budget.exceeded(counted(53_000), counted(53_000, 51_000)) == []


def test_on_another_kernel_a_row_may_cost_as_much_more_as_its_floor() -> None:
    agreed = counted(53_000, 52_000)
    assert budget.exceeded(agreed, counted(58_300, 57_200, ELSEWHERE)) == []
    assert len(budget.exceeded(agreed, counted(59_000, 57_200, ELSEWHERE))) == 1
    assert len(budget.exceeded(agreed, counted(53_000, 51_000, ELSEWHERE))) == 1


def test_a_row_that_was_not_measured_is_a_failure() -> None:
    found = counted(53_000)
    del found.counts[ROW]
    assert budget.exceeded(counted(53_000), found) == [
        "pod to ClusterIP, tcp, ipvsproxy, 10 Services: not measured"
    ]


def test_what_has_become_cheaper_is_named_too() -> None:
    assert budget.cheaper(counted(53_000), counted(52_000)) == [ROW]
    assert budget.cheaper(counted(53_000), counted(52_900)) == []
    assert budget.cheaper(counted(53_000), counted(30_000, 20_000, ELSEWHERE)) == []
    assert budget.cheaper(counted(53_000), Results(HERE, {})) == []


def test_a_budget_reads_as_it_was_written(tmp_path: pathlib.Path) -> None:
    budget.write(counted(53_000), tmp_path / "budget")
    assert budget.read(tmp_path / "budget") == counted(53_000)


def test_the_committed_budget_has_each_watched_row_and_its_floor() -> None:
    agreed = budget.read().counts
    assert agreed.keys() == WATCHED
    assert {floor_of(row) for row in agreed} <= agreed.keys()
    assert {row.peer for row in agreed} == {OURS, AUTO, TENANTS, OF_TENANT, *FLOORS}


def test_each_path_has_a_floor_and_a_name_of_its_own() -> None:
    assert {path.floor for path in PATHS} == set(FLOORS) == {NO_SERVICE, IPVS}
    assert len({path.name for path in PATHS}) == len(PATHS)


def test_the_first_stage_has_as_many_services_as_are_asked_for() -> None:
    made = objects.first_stage(Lab(nodes=1), 10)
    services = [item for item in made if item["kind"] == "Service"]
    assert len({item["metadata"]["name"] for item in services}) == len(services) == 10
    addresses = [address for item in services for address in item["spec"]["clusterIPs"]]
    assert len(set(addresses)) == len(addresses)


def test_every_address_that_a_path_goes_to_has_a_service_or_is_a_host() -> None:
    lab = Lab(nodes=1)
    made = [*objects.first_stage(lab, 2), *objects.second_stage(lab)]
    served = {address for item in made for address in item.get("spec", {}).get("clusterIPs", [])}
    served |= {
        entry["ip"] for item in made for entry in item.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    }
    hosts = {host.address(family) for host in (*lab.pods, *lab.nodes) for family in (4, 6)}
    assert {path.target(lab) for path in PATHS} <= served | hosts


def test_only_paths_and_kinds_of_the_wanted_size_and_peer_are_measured() -> None:
    rows = [[10, "pod to pod", "tcp", OURS], [10, "pod to ClusterIP", "udp", OURS]]
    others = [[1000, "pod to pod", "udp", OURS], [10, "client to pod", "tcp", AUTO]]
    found = {path.name: kinds for path, kinds in measure.wanted(rows + others, 10, OURS).items()}
    assert found == {"pod to pod": ["tcp"], "pod to ClusterIP": ["udp"]}
    assert list(measure.wanted(None, 10, OURS)) == list(PATHS)


def test_a_bare_server_is_what_ipvsadm_restores() -> None:
    assert floors.server("t", "[fd00::1]", 80, ["[fd00::2]"]) == [
        "-A -t [fd00::1]:80 -s rr",
        "-a -t [fd00::1]:80 -r [fd00::2]:8080 -m",
    ]


def line(**changes: object) -> str:
    row = {"services": 10, "path": "pod to ClusterIP", "kind": "tcp", "peer": OURS, "p10": 53_000}
    return json.dumps(row | changes)


def test_lines_of_others_between_results_are_passed_over() -> None:
    lines = [json.dumps(HERE), "the guest is booting: 10 s", line(), line(peer=IPVS, p10=52_000)]
    assert parse(lines) == counted(53_000)


def test_counts_of_two_kernels_are_not_mixed() -> None:
    with pytest.raises(ValueError, match=r"6\.12\.1"):
        parse([json.dumps(HERE), line(), json.dumps(ELSEWHERE), line()])


def test_a_table_has_ratios_to_the_floor_and_to_each_proxy() -> None:
    results = counted(53_000, 50_000)
    results.counts[dataclasses.replace(ROW, peer="kube-proxy ipvs")] = 106_000
    lines = tables(results).splitlines()
    assert lines[2] == "| round trip | floor | ipvsproxy | kube-proxy ipvs | to the floor | to kube-proxy ipvs |"
    assert lines[4:] == [
        "| pod to ClusterIP: TCP on an open connection | 50.0 | 53.0 | 106.0 | 1.060 | 0.500 |",
    ]


def test_a_table_reports_where_a_peer_was_not_measured() -> None:
    results = counted(53_000)
    del results.counts[FLOOR]
    assert tables(results).splitlines()[-1] == "| pod to ClusterIP: TCP on an open connection | - | 53.0 | - |"


def test_a_check_measures_the_watched_rows_of_both_paths_of_tenants_and_of_the_floors() -> None:
    wanted = program.plan(program.options(["--check"]))
    assert wanted["peers"] == [*FLOORS, OURS, AUTO, TENANTS, OF_TENANT]
    assert wanted["rows"] == [dataclasses.astuple(row) for row in sorted(WATCHED)]
    assert wanted["services"] == sorted({row.services for row in WATCHED})


def test_each_size_of_a_plan_has_all_rows_and_the_modes_that_are_asked_for() -> None:
    wanted = program.plan(
        program.options(["--services", "10,1_000", "--kube-proxy", "/bin/true", "--modes", "nftables"])
    )
    assert (wanted["services"], wanted["rows"]) == ([10, 1000], None)
    assert wanted["peers"] == [*FLOORS, OURS, AUTO, TENANTS, OF_TENANT, "kube-proxy nftables"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--services", "1"], "at least 2 Services"),
        (["--kube-proxy", "/nowhere/kube-proxy"], "/nowhere/kube-proxy is no program"),
        (["--modes", "ebpf"], "no such mode: ebpf"),
        (["--check", "--agree"], "not allowed with"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.options(words)
    assert complaint in capsys.readouterr().err


def test_a_check_of_kept_counts_fails_by_the_row(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    budget.write(counted(50_000), tmp_path / "budget")
    monkeypatch.setattr(budget, "FILE", tmp_path / "budget")
    (tmp_path / "counts").write_text("\n".join([json.dumps(HERE), line(), line(peer=IPVS, p10=52_000)]))
    assert program.main(["--check", "--results", str(tmp_path / "counts")]) == 1
    assert "pod to ClusterIP, tcp, ipvsproxy, 10 Services" in capsys.readouterr().err
