"""`plan --from` on dumps as kubectl prints them."""

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ipvsproxy import cli

EXAMPLES = Path(__file__).parents[3] / "examples"
GOOD = """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: default, uid: u}
  spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080, protocol: TCP}]}
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  ports: [{name: "", port: 8080, protocol: TCP}]
  endpoints: [{addresses: [10.244.1.1], nodeName: n1, conditions: {ready: true}}]
- apiVersion: v1
  kind: Node
  metadata: {name: n1, uid: n}
  status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
"""
BAD = """
apiVersion: v1
kind: Service
metadata: {name: broken, namespace: default, uid: u}
spec: {clusterIP: 10.96.0.11, ports: [{port: many}]}
"""


def plan(capsys, *words):
    status = cli.main(["plan", *words, "-o", "json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_dump_is_planned_for_its_only_node(tmp_path, capsys):
    path = tmp_path / "dump.yaml"
    path.write_text(GOOD)
    status, document = plan(capsys, "--from", str(path))
    assert (status, document["version"], document["kind"], document["node"]) == (0, 1, "Plan", "n1")
    frontends = {row["frontend"]: row for row in document["frontends"]}
    assert frontends.keys() == {"10.96.0.10:80/TCP", "192.0.2.1:30080/TCP"}
    web = frontends["10.96.0.10:80/TCP"]
    assert (web["service"], web["endpoints"], web["vip"]) == ("web", ["10.244.1.1:8080"], "address")
    assert frontends["192.0.2.1:30080/TCP"]["vip"] is None
    assert document["elements"]["frontends4"] == {
        "10.96.0.10 . tcp . 80": "goto own", "192.0.2.1 . tcp . 30080": "goto own"
    }  # fmt: skip


def test_json_yaml_a_folder_and_standard_input_are_the_same(tmp_path, monkeypatch, capsys):
    (tmp_path / "dump.yaml").write_text(GOOD)
    (tmp_path / "as.json").write_text(json.dumps(yaml.safe_load(GOOD)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "dump.yml").write_text(GOOD)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(GOOD.encode())))
    names = [*(str(tmp_path / name) for name in ("dump.yaml", "as.json", "folder")), "-"]
    documents = [plan(capsys, "--from", name)[1] for name in names]
    assert documents == [documents[0]] * 4


def test_the_planner_is_the_one_of_the_proxy(capsys):
    """The README's example: edge has its endpoints elsewhere, and a Local policy."""
    status, document = plan(
        capsys, "--from", str(EXAMPLES), "--hostname-override=node1", "--cluster-cidr=10.244.0.0/16"
    )  # fmt: skip
    verdicts = {row["frontend"]: (row["verdict"], row["inside"]) for row in document["frontends"]}
    assert status == 0
    assert verdicts["203.0.113.20:443/TCP"] == ("drop", "10.96.0.40:443")
    assert document["elements"]["pod_cidrs4"] == {"10.244.0.0/16": ""}


def test_what_cannot_be_used_is_reported_and_affects_nothing_else(tmp_path, capsys):
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    status, document = plan(capsys, "--from", f"{tmp_path}/good.yaml,{tmp_path}/bad.yaml")
    assert status == 1
    assert len(document["frontends"]) == 2
    (complaint,) = document["complaints"]
    assert "Service default/broken: spec.ports" in complaint
    status, document = plan(capsys, "--from", f"{tmp_path}/good.yaml", "--from", f"{tmp_path}/good.yaml")
    assert (status, document["complaints"]) == (0, []), "the same twice is no contradiction"
    (tmp_path / "other.yaml").write_text(GOOD.replace("10.96.0.10", "10.96.0.12"))
    status, document = plan(capsys, "--from", f"{tmp_path}/good.yaml", "--from", f"{tmp_path}/other.yaml")
    assert status == 1
    assert [line.partition(": ")[2] for line in document["complaints"]] == [
        "Service default/web: another one of this name came first, with other values"
    ]


def test_a_dump_without_the_node_reports_what_is_missing(tmp_path, capsys):
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(yaml.safe_load(GOOD)["items"][0]))
    assert cli.main(["plan", f"--from={tmp_path}", "--hostname-override=node7"]) == 0
    said = capsys.readouterr().err
    assert "no Node node7 in it: NodePorts" in said
    assert "no EndpointSlice in it" in said


def test_for_people(tmp_path, capsys):
    path = tmp_path / "dump.yaml"
    path.write_text(GOOD)
    assert cli.main(["plan", "--from", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Node n1\n")
    assert "10.96.0.10:80/TCP" in out


@pytest.mark.parametrize(
    ("words", "status"),
    [([], 2), (["--from=x", "word"], 2), (["--from=/nonexistent"], 1), ([f"--from={EXAMPLES}"], 2)],
)
def test_wrong_usage(words, status, capsys):
    assert cli.main(["plan", *words]) == status
    assert capsys.readouterr().err.splitlines()[0].startswith("Error: ")


def test_a_file_that_makes_no_sense(tmp_path, capsys):
    path = tmp_path / "dump.yaml"
    path.write_text("a: [")
    assert cli.main(["plan", "--from", str(path)]) == 1
    assert "dump.yaml:" in capsys.readouterr().err


def test_what_is_not_proxied_is_named_with_the_reason(tmp_path, capsys):
    left = """
---
{apiVersion: v1, kind: Service, metadata: {name: away}, spec: {type: ExternalName, externalName: a.example}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare}, spec: {clusterIP: None, ports: [{port: 1}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: soon}, spec: {ports: [{port: 1}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: lost}, addressType: IPv4, endpoints: []}
"""
    (tmp_path / "dump.yaml").write_text(GOOD + left)
    status, document = plan(capsys, "--from", str(tmp_path))
    assert status == 1
    assert {(left["kind"], left["namespace"], left["name"]) for left in document["notProxied"]} == {
        ("Service", "default", "away"), ("Service", "default", "bare"), ("Service", "default", "soon"),
        ("EndpointSlice", "default", "lost"),
    }  # fmt: skip
    (complaint,) = document["complaints"]
    assert "Service default/soon: spec.clusterIP: missing" in complaint
    cli.main(["plan", "--from", str(tmp_path)])
    out = capsys.readouterr().out
    assert "type ExternalName: a name of the DNS, nothing to proxy" in out
    assert "no label kubernetes.io/service-name" in out


def test_a_name_that_no_node_of_the_dump_has_is_not_reported_as_missing(capsys):
    assert cli.main(["plan", f"--from={EXAMPLES}", "--hostname-override=node9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "Error: --hostname-override: there is no Node node9 in the dump, which has node1, node2\n"
    )


def test_without_a_name_the_nodes_of_the_dump_are_named(tmp_path, capsys):
    nodes = [
        {"kind": "Node", "apiVersion": "v1", "metadata": {"name": f"n{n:03}", "uid": str(n)}} for n in range(300)
    ]
    (tmp_path / "nodes.json").write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": nodes}))
    assert cli.main(["plan", f"--from={tmp_path}"]) == 2
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith("Error: --hostname-override: it is needed: the dump has n000, n001")
    assert said.endswith(" and 290 more")


def test_a_missing_node_is_reported_once_with_those_that_objects_name(tmp_path, capsys):
    (tmp_path / "dump.yaml").write_text(GOOD.partition("- apiVersion: v1\n  kind: Node")[0])
    assert cli.main(["plan", f"--from={tmp_path}", "--hostname-override=n7"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "n7" in line]
    assert said.startswith("no Node n7 in it: ")
    assert said.endswith(" (nodes that objects name: n1)")
