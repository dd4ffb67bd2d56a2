"""Files that people had, with what is right for each: tests/field/cases."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ipvsproxy import cli
from ipvsproxy.commands import doctor
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.survey import SurveyResult
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Facts
from ipvsproxy.kube.manifests import Folder
from ipvsproxy.kube.once import read_objects

CASES = Path(__file__).parents[2] / "field" / "cases"
HINT = "Endpoints prod/api are not read: add EndpointSlices to the dump (kubectl get endpointslices -o yaml)"


def plan(capsys, *names, node="n1"):
    """Return the status, the plan, and its frontends with their endpoints."""
    status = cli.main(["plan", *(f"--from={name}" for name in names), f"--hostname-override={node}", "-o", "json"])
    document = json.loads(capsys.readouterr().out)
    found = {row["frontend"]: (row["verdict"], row["endpoints"]) for row in document["frontends"]}
    return status, document, found


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "manifests"
    place.mkdir()
    return place


@pytest.mark.parametrize(
    ("name", "frontends"),
    [
        ("02-slice-port-without-name.yaml", {"10.96.7.7:5432/TCP": ("accept", ["192.0.2.77:15432"])}),
        ("04-powershell-utf16.json", {"10.96.1.1:80/TCP": ("accept", ["10.244.1.7:8080"])}),
        ("04-two-objects.json", {"10.96.1.1:80/TCP": ("accept", ["10.244.1.7:8080"])}),
        (
            "20-dup.yaml",
            {
                "10.96.1.9:80/TCP": ("accept", ["10.244.1.50:8080"]),
                "203.0.113.9:80/TCP": ("accept", ["10.244.1.50:8080"]),
            },
        ),
    ],
)
def test_what_is_complete_is_planned_without_a_complaint(name, frontends, capsys, folder):
    status, document, found = plan(capsys, CASES / name)
    assert (status, document["complaints"]) == (0, [])
    assert found == frontends
    shutil.copy(CASES / name, folder)
    ledger = desired(Config("n1"), Folder(folder).load(), ())
    assert {str(key) for key in ledger.frontends} == found.keys(), "run --manifests reads the same"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("slices", [1, 2])
def test_an_address_that_is_ready_once_and_terminating_once_is_used(order, slices, capsys, tmp_path):
    service, piece = yaml.safe_load_all((CASES / "20-dup.yaml").read_text())
    endpoints = piece["endpoints"][::order]
    pieces = [piece | {"endpoints": endpoints}]
    if slices == 2:
        names = ("ha-1", "ha-2")
        halves = zip(names, (endpoints[::2], endpoints[1::2]), strict=True)
        pieces = [piece | {"metadata": piece["metadata"] | {"name": n}, "endpoints": half} for n, half in halves]
    (tmp_path / "dup.yaml").write_text(yaml.safe_dump_all([service, *pieces]))
    status, document, found = plan(capsys, tmp_path / "dup.yaml")
    assert status == 0
    assert found["203.0.113.9:80/TCP"] == ("accept", ["10.244.1.50:8080"])
    assert document["elements"]["health_check_ports"] == {"31999": ""}


def test_a_dump_with_endpoints_only_reports_what_to_add(capsys, folder):
    status, document, found = plan(capsys, CASES / "03-endpoints-without-slices.yaml")
    assert (status, document["complaints"]) == (1, [HINT])
    assert found == {"10.96.1.1:80/TCP": ("refuse", [])}
    shutil.copy(CASES / "04-two-objects.json", folder)
    shutil.copy(CASES / "03-endpoints-without-slices.yaml", folder)
    _, document, found = plan(capsys, folder)
    assert not any("Endpoints" in line for line in document["complaints"]), "it has slices"
    assert found["10.96.1.1:80/TCP"][0] == "accept"


def test_doctor_of_a_service_reports_it_too(capsys, folder, monkeypatch):
    shutil.copy(CASES / "03-endpoints-without-slices.yaml", folder)
    settings = Config("n1", manifests=folder)
    found = read_objects(settings)
    seen = SurveyResult(Facts(), found, desired(settings, found.listed(), ()), None)
    monkeypatch.setattr(doctor, "survey", lambda *_: seen)
    monkeypatch.setattr("ipvsproxy.commands.service_survey._probes", lambda *_: ())
    cli.main(["doctor", "prod/api", "-o", "json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [finding["evidence"] for finding in findings if finding["check"] == "objects"] == [[HINT]]


def test_cluster_info_with_logs_reports_in_words_what_to_do(capsys):
    status, document, found = plan(capsys, CASES / "04-cluster-info-dump.txt")
    assert status == 1
    (complaint,) = document["complaints"]
    assert ":25:1: document 2: logs of `kubectl cluster-info dump` begin here" in complaint
    assert "--output-directory" in complaint
    assert "kubectl get services,endpointslices,nodes" in complaint
    assert found == {"10.96.1.1:80/TCP": ("refuse", [])}
