"""All objects read once, from a folder and from a real HTTP server."""

import pytest
import yaml

from ipvsproxy.base.address import format_ip
from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube import once
from ipvsproxy.kube.once import Unavailable, read_objects
from tests.support.apiserver import ApiServer, endpoint_slice, node, service

EXTERNAL = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "else", "namespace": "default"},
    "spec": {"type": "ExternalName", "externalName": "a.example.com"},
}


@pytest.fixture
def server():
    with ApiServer() as server:
        yield server


def keys(objects):
    return {listed.kind: sorted(listed.objects) for listed in objects.listed()}


def test_a_folder(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([service("web"), EXTERNAL]))
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(service("web")))
    (tmp_path / "c.yaml").write_text("kind: [")
    (tmp_path / "d.yaml").write_text("kind: ConfigMap\napiVersion: v1\n")
    bad = service("bad")
    bad["spec"]["clusterIP"] = bad["spec"]["clusterIPs"] = 7
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(bad))
    objects = read_objects(Config("node1", manifests=tmp_path))
    for _ in range(2):
        assert len(objects.refused) == 2
        assert keys(objects)[Kind.SERVICE] == ["default/web"]
    assert list(objects.external_names()) == [("default/else", "a.example.com")]
    assert any(line.startswith("c.yaml") for line in objects.refused)
    assert any(line.startswith("e.yaml: Service default/bad: ") for line in objects.refused)
    assert len(objects.refused) == 2


def test_what_is_no_service_of_the_api_hides_none_of_that_name(tmp_path):
    knative = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "web"}}
    beta = service("web") | {"apiVersion": "v1beta1"}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([knative, beta, service("web"), {"metadata": {}}]))
    objects = read_objects(Config("node1", manifests=tmp_path))
    assert keys(objects)[Kind.SERVICE] == ["default/web"]
    assert objects.refused == [
        "a.yaml: document 2: apiVersion: 'v1beta1' is not read, only v1",
        "a.yaml: document 4: kind: missing: this is no Kubernetes object",
    ]


def test_an_object_that_cannot_be_used_hides_none_of_that_name(tmp_path):
    """As in the folder that a proxy watches."""
    bad = service("web", ports=[{"port": 0}])
    (tmp_path / "a.yaml").write_text(
        yaml.safe_dump_all([bad, service("web"), service("web", clusterIP="10.96.0.99")])
    )
    objects = read_objects(Config("node1", manifests=tmp_path))
    (web,) = [found.objects["default/web"] for found in objects.listed() if found.kind is Kind.SERVICE]
    assert [format_ip(address) for address in web.cluster_ips] == ["10.96.0.10"]
    assert [tree["spec"]["clusterIP"] for tree in objects.trees(Kind.SERVICE)] == ["10.96.0.10"]
    assert objects.refused == [
        "a.yaml: Service default/web: spec.ports[0].port: Expected `int` >= 1",
        "a.yaml: Service default/web: another one of this name came first, with other values",
    ]


def test_labels_that_are_none_cost_their_service_only(tmp_path):
    bad, bare = service("bad", labels={"app": ["web"]}), service("bare") | {"metadata": {"name": "bare"}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump_all([bad, bare, service("web", labels={"app": "web"})]))
    objects = read_objects(Config("node1", manifests=tmp_path))
    assert objects.labels() == {"default/bare": {}, "default/web": {"app": "web"}}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2 << 30)
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(service("web")))
    found = read_objects(Config(node_name="node1", manifests=tmp_path))
    assert keys(found)[Kind.SERVICE] == ["default/web"]
    assert found.refused == [f"huge.yaml: more than {64 << 20} bytes"]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(Unavailable, match="No such file"):
        read_objects(Config("node1", manifests=tmp_path / "gone"))


def test_an_api_server_page_by_page(server, monkeypatch):
    monkeypatch.setattr(once, "PAGE_SIZE", 2)
    for number in range(5):
        server.put(service(f"s{number}"))
        server.put(endpoint_slice(f"s{number}"))
    server.put(node("node1"))
    objects = read_objects(Config("node1", master=server.url))
    found = keys(objects)
    assert (len(found[Kind.SERVICE]), len(found[Kind.ENDPOINT_SLICE]), found[Kind.NODE]) == (5, 5, ["node1"])
    assert objects.refused == []
    names = [tree["metadata"]["name"] for tree in objects.trees(Kind.SERVICE)]
    assert names == [f"s{number}" for number in range(5)]


def test_a_right_that_tenants_need_is_named_with_the_setting(server):
    server.fail(403, reason="Forbidden", kind="Namespace")
    with pytest.raises(Unavailable, match=r"403 .*tenantLabel .* needs the right to list and watch namespaces"):
        read_objects(Config("node1", master=server.url, tenant_label="tenant"))
    server.fail(403, reason="Forbidden", kind="Service")
    with pytest.raises(Unavailable) as raised:
        read_objects(Config("node1", master=server.url, tenant_label="tenant"))
    assert "tenantLabel" not in str(raised.value)


def test_an_api_server_that_refuses_or_is_away(server):
    server.fail(403, reason="Forbidden")
    with pytest.raises(Unavailable, match="403"):
        read_objects(Config("node1", master=server.url))
    url = server.url
    server.stop()
    with pytest.raises(Unavailable):
        read_objects(Config("node1", master=url))
