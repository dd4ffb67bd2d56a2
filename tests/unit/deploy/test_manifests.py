"""The kustomize base and the chart: valid by Kubernetes' schemas, equal to each other, readable by the proxy."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
from typing import Any

import chart
import kubernetes.client
import pytest
import yaml

from ipvsproxy.config import document
from ipvsproxy.kube.kubeconfig import read_kubeconfig

DEPLOY = pathlib.Path(__file__).resolve().parents[3] / "deploy"
BASE, EXAMPLE, CHART = DEPLOY / "kustomize/base", DEPLOY / "kustomize/example", DEPLOY / "helm/ipvsproxy"
API_SERVER = {"apiServer": "https://control-plane.invalid:6443"}
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# The client's models are generated from the OpenAPI schemas: field names, types, what is required.
SCHEMAS = {
    ("v1", "ServiceAccount"): kubernetes.client.V1ServiceAccount,
    ("v1", "ConfigMap"): kubernetes.client.V1ConfigMap,
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): kubernetes.client.V1ClusterRoleBinding,
    ("apps/v1", "DaemonSet"): kubernetes.client.V1DaemonSet,
}
VARIANTS = [
    API_SERVER,
    {"existingConfigMap": "kube-proxy"},
    {**API_SERVER, "privilegedInit": False, "extraArgs": ["--vip-mode=route"], "image": {"tag": "1"}},
    {**API_SERVER, "nodeSelector": {"pool": "a"}, "tolerations": [], "config": {"ipvs": {"scheduler": "mh"}}},
]

Object = dict[str, Any]


def base() -> list[Object]:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [found for name in names for found in yaml.safe_load_all((BASE / name).read_text())]


def by_kind(objects: list[Object]) -> dict[str, Object]:
    found = {item["kind"]: item for item in objects}
    assert len(found) == len(objects)
    return found


def check(item: Object) -> None:
    """Hold an object against its schema; what is not in the schema is an error."""
    model = SCHEMAS[item["apiVersion"], item["kind"]].model_validate(item)
    # The models also take Python's spelling of a field; what Kubernetes would be sent must be what is written.
    assert model.model_dump(by_alias=True, exclude_none=True) == item


@pytest.mark.parametrize("item", base(), ids=lambda item: item["kind"])
def test_the_base_is_valid(item: Object) -> None:
    check(item)


@pytest.mark.parametrize("values", VARIANTS)
def test_the_chart_is_valid_whatever_is_chosen(values: Object) -> None:
    for item in chart.render(CHART, values):
        check(item)


def test_a_wrong_field_does_not_pass() -> None:
    daemon_set = by_kind(base())["DaemonSet"]
    container = daemon_set["spec"]["template"]["spec"]["containers"][0]
    for broken in (
        {"liveness": {}},
        {"image_pull_policy": "Always"},
        {"env": {"A": "b"}},
        {"command": "kube-proxy"},
    ):
        daemon_set["spec"]["template"]["spec"]["containers"] = [container | broken]
        with pytest.raises((ValueError, AssertionError)):
            check(daemon_set)


def test_base_and_chart_are_the_same() -> None:
    ours, theirs = by_kind(base()), by_kind(chart.render(CHART, API_SERVER))
    for objects in (ours, theirs):
        data = objects["ConfigMap"]["data"]
        objects["ConfigMap"]["data"] = {name: yaml.safe_load(text) for name, text in data.items()}
    assert ours == theirs


def test_the_chart_asks_for_what_it_cannot_know() -> None:
    with pytest.raises(chart.Failed, match="apiServer"):
        chart.render(CHART, {})


@pytest.mark.parametrize("values", VARIANTS[1:])
def test_choices_of_the_chart_have_their_effect(values: Object) -> None:
    objects = by_kind(chart.render(CHART, values))
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    sources = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
    assert sources == [values.get("existingConfigMap", "ipvsproxy")]
    assert ("ConfigMap" in objects) == ("existingConfigMap" not in values)
    assert ("initContainers" in pod) == values.get("privilegedInit", True)
    assert pod["containers"][0]["args"][2:] == values.get("extraArgs", [])
    assert pod["containers"][0]["image"].endswith(f":{values.get('image', {}).get('tag', '0.1.0')}")
    if "config" in values:
        config = yaml.safe_load(objects["ConfigMap"]["data"]["config.conf"])
        assert (config["mode"], config["ipvs"]) == ("ipvs", {"scheduler": "mh"})


@pytest.mark.parametrize("data", [by_kind(base())["ConfigMap"]["data"],
    yaml.safe_load((EXAMPLE / "cluster.yaml").read_text())["data"]], ids=["base", "example"])  # fmt: skip
def test_the_proxy_reads_the_files_without_a_complaint(data: dict[str, str], tmp_path: pathlib.Path) -> None:
    read = document.decode(data["config.conf"].encode(), document.KUBE_PROXY)
    assert read.complaints == []
    assert read.values["mode"] == "ipvs"
    assert read.values["clientConnection.kubeconfig"] == "/var/lib/kube-proxy/kubeconfig.conf"
    # In a pod these two files are there.
    kubeconfig = tmp_path / "kubeconfig.conf"
    kubeconfig.write_text(data["kubeconfig.conf"].replace(ACCOUNT, str(tmp_path)))
    (tmp_path / "ca.crt").touch()
    (tmp_path / "token").touch()
    tree, token_file = read_kubeconfig(kubeconfig, "")
    assert tree["clusters"][0]["cluster"]["server"].startswith("https://")
    assert token_file == tmp_path / "token"


def test_only_the_init_container_is_privileged() -> None:
    pod = by_kind(base())["DaemonSet"]["spec"]["template"]["spec"]
    main, first = pod["containers"][0]["securityContext"], pod["initContainers"][0]
    assert main["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert not main["allowPrivilegeEscalation"]
    assert main["readOnlyRootFilesystem"]
    assert first["securityContext"]["privileged"]
    assert "--init-only" in first["args"]
    assert [set(mount) >= {"readOnly"} for mount in first["volumeMounts"]] == [True, True]


@pytest.mark.skipif(not shutil.which("kubectl") and not shutil.which("kustomize"), reason="no kustomize")
def test_kustomize_builds_what_the_files_say() -> None:
    program = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    built = by_kind(_documents([*program, str(BASE)]))
    assert built == by_kind(base())
    example = by_kind(_documents([*program, str(EXAMPLE)]))
    pod = example["DaemonSet"]["spec"]["template"]["spec"]
    images = {container["image"] for container in pod["containers"] + pod["initContainers"]}
    assert images == {"registry.example.com/ipvsproxy:0.1.0"}
    assert example["ConfigMap"]["data"] == yaml.safe_load((EXAMPLE / "cluster.yaml").read_text())["data"]


@pytest.mark.skipif(not shutil.which("helm"), reason="no helm")
@pytest.mark.parametrize("values", VARIANTS)
def test_helm_renders_as_we_do(values: Object, tmp_path: pathlib.Path) -> None:
    given = tmp_path / "values.yaml"
    given.write_text(yaml.safe_dump(values))
    argv = ["helm", "template", "ipvsproxy", str(CHART), "--namespace=kube-system", f"--values={given}"]
    assert by_kind(_documents(argv)) == by_kind(chart.render(CHART, values))


def _documents(argv: list[str]) -> list[Object]:
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [item for item in yaml.safe_load_all(done.stdout) if item]
