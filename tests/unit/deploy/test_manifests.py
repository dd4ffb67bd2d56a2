"""The kustomize base and the chart: valid by Kubernetes' schemas, equal to each other, readable by the proxy."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import kubernetes.client
import pytest
import yaml

from ipvsproxy.config import document
from ipvsproxy.kube.kubeconfig import read_kubeconfig
from tests.support.api_object import ApiObject
from tests.support.chart_values import API_SERVER, VARIANTS, by_kind, installed
from tests.support.deploy_tools import documents, render
from tests.support.repository import VERSION

DEPLOY = pathlib.Path(__file__).resolve().parents[3] / "deploy"
BASE, EXAMPLE = DEPLOY / "kustomize/base", DEPLOY / "kustomize/example"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# The client's models are generated from the OpenAPI schemas: field names, types, what is required.
SCHEMAS = {
    ("v1", "ServiceAccount"): kubernetes.client.V1ServiceAccount,
    ("v1", "ConfigMap"): kubernetes.client.V1ConfigMap,
    ("v1", "Pod"): kubernetes.client.V1Pod,
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): kubernetes.client.V1ClusterRoleBinding,
    ("rbac.authorization.k8s.io/v1", "Role"): kubernetes.client.V1Role,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): kubernetes.client.V1RoleBinding,
    ("apps/v1", "DaemonSet"): kubernetes.client.V1DaemonSet,
    ("batch/v1", "Job"): kubernetes.client.V1Job,
}


def base() -> list[ApiObject]:
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return [found for name in names for found in documents((BASE / name).read_text())]


def check(item: ApiObject) -> None:
    """Hold an object against its schema; what is not in the schema is an error."""
    model = SCHEMAS[item["apiVersion"], item["kind"]].model_validate(item)
    # The models also take Python's spelling of a field; what Kubernetes would be sent must be what is written.
    assert model.model_dump(by_alias=True, exclude_none=True) == item


@pytest.mark.parametrize("item", base(), ids=lambda item: item["kind"])
def test_the_base_is_valid(item: ApiObject) -> None:
    check(item)


def test_an_overloaded_node_starts_no_proxy_again_before_kubeadm_would_its_control_plane() -> None:
    """Its static pods have 15 s for an answer, eight failures, and four minutes for a start.

    (cmd/kubeadm/app/util/staticpod/utils.go)
    """
    container = by_kind(base())["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]
    alive, started = container["livenessProbe"], container["startupProbe"]
    assert (alive["timeoutSeconds"], alive["periodSeconds"], alive["failureThreshold"]) == (15, 10, 8)
    assert started["httpGet"] == alive["httpGet"]
    assert started["initialDelaySeconds"] + started["periodSeconds"] * started["failureThreshold"] >= 240


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_the_chart_is_valid_whatever_is_chosen(values: ApiObject) -> None:
    objects = render(values)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    for item in objects:
        if item["apiVersion"] != "monitoring.coreos.com/v1":
            check(item)
        if item["kind"] != "ClusterRoleBinding":
            assert item["metadata"]["namespace"] == "kube-system"


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
    ours, theirs = by_kind(base()), by_kind(installed(API_SERVER))
    for objects in (ours, theirs):
        data = objects["ConfigMap"]["data"]
        objects["ConfigMap"]["data"] = {name: yaml.safe_load(text) for name, text in data.items()}
    assert ours == theirs


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
    (tmp_path / "token").write_text("a")
    read_config = read_kubeconfig(kubeconfig, "")
    assert read_config.server.startswith("https://")
    assert read_config.token_file is not None
    assert read_config.token_file.path == tmp_path / "token"


def test_the_proxy_has_a_memory_limit_above_what_its_ceilings_let_it_hold() -> None:
    """Without one, other pods would be killed first: its OOM score is lower than theirs."""
    (daemonset,) = (item for item in base() if item["kind"] == "DaemonSet")
    (proxy,) = daemonset["spec"]["template"]["spec"]["containers"]
    assert proxy["resources"]["limits"] == {"memory": "3Gi"}


def test_only_the_init_container_is_privileged() -> None:
    pod = by_kind(base())["DaemonSet"]["spec"]["template"]["spec"]
    main, first = pod["containers"][0]["securityContext"], pod["initContainers"][0]
    assert main["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert not main["allowPrivilegeEscalation"]
    assert main["readOnlyRootFilesystem"]
    assert first["securityContext"]["privileged"]
    assert "--init-only" in first["args"]
    assert [set(mount) >= {"readOnly"} for mount in first["volumeMounts"]] == [True, True]


def test_the_example_works_where_it_is_copied_with_the_base(tmp_path: pathlib.Path) -> None:
    """Kustomize takes no file from outside, and a patch and an image must be those of an object of the base."""
    copy = shutil.copytree(DEPLOY / "kustomize", tmp_path / "mine") / "example"
    overlay = yaml.safe_load((copy / "kustomization.yaml").read_text())
    for name in overlay["resources"]:
        assert (copy / name).resolve().is_relative_to(tmp_path)
        assert (copy / name / "kustomization.yaml").is_file()
        below = yaml.safe_load((copy / name / "kustomization.yaml").read_text())
        assert all((copy / name / entry).is_file() for entry in below["resources"])
    made = {(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")) for item in base()}
    for patch in overlay["patches"]:
        item = yaml.safe_load((copy / patch["path"]).read_text())
        assert (item["kind"], item["metadata"]["name"], item["metadata"]["namespace"]) in made
    pod = by_kind(base())["DaemonSet"]["spec"]["template"]["spec"]
    images = {container["image"].rpartition(":")[0] for container in pod["containers"] + pod["initContainers"]}
    assert {image["name"] for image in overlay["images"]} == images
    assert overlay.keys() <= {"apiVersion", "kind", "resources", "images", "patches"}


@pytest.mark.skipif(not shutil.which("kubectl") and not shutil.which("kustomize"), reason="no kustomize")
def test_kustomize_builds_what_the_files_contain(tmp_path: pathlib.Path) -> None:
    program = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    copy = shutil.copytree(DEPLOY / "kustomize", tmp_path / "mine")
    built = by_kind(_documents([*program, str(copy / "base")]))
    assert built == by_kind(base())
    example = by_kind(_documents([*program, str(copy / "example")]))
    pod = example["DaemonSet"]["spec"]["template"]["spec"]
    images = {container["image"] for container in pod["containers"] + pod["initContainers"]}
    assert images == {f"registry.example.com/ipvsproxy:{VERSION}"}
    assert example["ConfigMap"]["data"] == yaml.safe_load((EXAMPLE / "cluster.yaml").read_text())["data"]


def _documents(argv: list[str]) -> list[ApiObject]:
    return documents(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
