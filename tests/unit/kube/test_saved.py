"""Dumps as people have them, read once."""

import io
import json
import os
import tarfile
import threading

import pytest
import yaml

from ipvsproxy.kube import saved
from ipvsproxy.kube.objects import Unavailable
from ipvsproxy.kube.saved import read_folder, read_saved
from tests.support.apiserver import endpoint_slice, node, service

ENDPOINTS = {"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "web", "namespace": "default"}}


def listed(kind, *objects):
    """As the API sends a list: items have no kind."""
    items = [
        {name: value for name, value in found.items() if name not in ("kind", "apiVersion")} for found in objects
    ]
    version = "discovery.k8s.io/v1" if kind == "EndpointSlice" else "v1"
    return {"kind": f"{kind}List", "apiVersion": version, "metadata": {"resourceVersion": "9"}, "items": items}


def write(path, *objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(objects[0], indent=4) if path.suffix == ".json" else yaml.safe_dump_all(objects))


def read(*names):
    return read_saved(map(str, names), io.BytesIO())


def keys(found):
    return {str(kind): sorted(found.of(kind)) for kind in found.kinds}


EVERYTHING = {"Service": ["default/web"], "EndpointSlice": ["default/web-abc"], "Node": ["node1"]}


def test_a_must_gather(tmp_path):
    root = tmp_path / "must-gather.local.1" / "quay-io-sha256-1"
    write(root / "namespaces" / "default" / "core" / "services.yaml", listed("Service", service()))
    write(root / "namespaces" / "default" / "core" / "endpoints.yaml", listed("Endpoints", ENDPOINTS))
    write(root / "namespaces" / "default" / "core" / "configmaps.yaml", listed("ConfigMap"))
    write(
        root / "namespaces" / "default" / "discovery.k8s.io" / "endpointslices.yaml",
        listed("EndpointSlice", endpoint_slice()),
    )
    write(root / "cluster-scoped-resources" / "core" / "nodes" / "node1.yaml", node())
    pod = root / "namespaces" / "default" / "pods" / "web-1"
    write(pod / "web-1.yaml", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1"}})
    (pod / "logs").mkdir()
    (pod / "logs" / "current.log").write_text("kind: nonsense: [")
    (root / "event-filter.html").write_text("<html>")
    (tmp_path / "must-gather.local.1" / "timestamp").write_text("2026-11-29 12:00:00 +0000")
    found = read(tmp_path)
    assert (keys(found), found.refused, found.left_out, found.notes) == (EVERYTHING, [], [], [])


def test_a_cluster_info_dump_has_no_endpoints_and_that_is_reported(tmp_path):
    write(tmp_path / "nodes.json", listed("Node", node()))
    write(tmp_path / "default" / "services.json", listed("Service", service()))
    write(tmp_path / "default" / "pods.json", listed("Pod"))
    (tmp_path / "default" / "web-1").mkdir()
    (tmp_path / "default" / "web-1" / "logs.txt").write_text("==== START logs for container web ====\n")
    found = read(tmp_path)
    assert keys(found) == EVERYTHING | {"EndpointSlice": []}
    assert found.refused == []
    assert "kubectl get endpointslices -A -o yaml" in found.notes[0]


def test_endpoints_without_slices_are_named_and_counted(tmp_path):
    every = [ENDPOINTS | {"metadata": {"name": f"s{number}"}} for number in range(9)]
    write(tmp_path / "a.yaml", service(), *every)
    found = read(tmp_path)
    assert found.refused[0].startswith("Endpoints default/s0 are not read: add EndpointSlices")
    assert found.refused[5:] == ["4 more Endpoints are not read"]
    assert found.notes == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("kind: List\nitems: []\n", "what it holds: nothing"),
        ("# nothing\n", "what it holds: nothing"),
        (
            "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: v1\nkind: Pod\n---\nkind: Pod\n",
            "what it holds: 2 Pod, 1 Deployment.apps",
        ),
        ("NAME   TYPE        CLUSTER-IP\nweb    ClusterIP   10.96.0.10\n", "kubectl needs -o yaml or -o json"),
        ("a: [", ":1:5: did not find"),
        (yaml.safe_dump(ENDPOINTS), "Endpoints default/web are not read: add EndpointSlices"),
    ],
)
def test_a_file_or_folder_in_which_nothing_can_be_used_is_an_error(tmp_path, content, said):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.yaml"
    path.write_text(content)
    for name in (path, path.parent):
        with pytest.raises(Unavailable) as info:
            read(name)
        assert said in str(info.value)
    with pytest.raises(Unavailable):
        read_folder(path.parent)
    write(tmp_path / "good.yaml", service())
    found = read(tmp_path / "good.yaml", path)
    assert any(said in line for line in found.refused), "beside others it is a complaint"


def test_an_empty_folder_reports_what_else_is_there(tmp_path):
    with pytest.raises(Unavailable, match="what it holds: nothing"):
        read(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "web.yaml.bak").write_text("x")
    with pytest.raises(Unavailable, match=r"2 files of another ending or content \(notes.md, web.yaml.bak\)"):
        read(tmp_path)


def test_an_archive_reports_how_to_unpack_it(tmp_path):
    write(tmp_path / "a.yaml", service())
    with tarfile.open(tmp_path / "bundle.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "a.yaml", "a.yaml")
    with pytest.raises(Unavailable, match="tar -xzf"):
        read(tmp_path / "bundle.tar.gz")


def test_standard_input_and_a_pipe(tmp_path):
    text = json.dumps([service(), endpoint_slice(), node()])
    found = read_saved(["-"], io.BytesIO(text.encode()))
    assert keys(found) == EVERYTHING
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    assert keys(read(tmp_path / "pipe")) == EVERYTHING
    writer.join()


def test_a_pipe_in_a_folder_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    write(tmp_path / "web.yaml", service())
    assert "pipe.yaml: not a regular file" in read_folder(tmp_path).refused


def test_files_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(saved, "MAX_BYTES", 10)
    write(tmp_path / "web.yaml", service())
    with pytest.raises(Unavailable, match="more than 10 bytes"):
        read(tmp_path)


def test_what_is_reported_about_things_without_a_name_is_bounded(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([service(), *[{"metadata": {}}] * 500]))
    found = read(tmp_path)
    assert keys(found)["Service"] == ["default/web"]
    assert len(found.refused) == 21
    assert found.refused[-1] == "a.json: and 480 more objects without a kind".replace(
        "a.json", f"{tmp_path}/a.json"
    )


def test_one_bad_object_or_document_affects_only_itself(tmp_path):
    texts = [
        yaml.safe_dump(service()),
        "{{ .Values.broken }}\n",
        yaml.safe_dump(service("bad", ports=[{"port": 0}])),
        "kind: Service\napiVersion: v1\n",
        yaml.safe_dump(endpoint_slice()),
        yaml.safe_dump(node()),
    ]
    (tmp_path / "a.yaml").write_text("---\n".join(texts))
    found = read(tmp_path / "a.yaml")
    assert keys(found) == EVERYTHING
    broken, *rest = sorted(found.refused, key=lambda line: "document 2" not in line)
    assert ": document 2: " in broken
    assert [line.split(": ", 1)[1] for line in rest] == [
        "Service default/bad: spec.ports[0].port: Expected `int` >= 1",
        "Service without a name: metadata: missing",
    ]


def test_objects_without_a_kind_are_distinguished(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([1, {}, service()]))
    refused = read(tmp_path / "list.json").refused
    assert [line.partition("list.json: ")[2].partition(": kind")[0] for line in refused] == [
        "document 1, item 1", "document 1, item 2",
    ]  # fmt: skip
