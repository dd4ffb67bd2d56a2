"""The DNS of one tenant: valid by Kubernetes' schemas, led to by the proxy, limited to the tenant's namespaces."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import kubernetes.client
import pytest
import yaml

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.plan.model import Service
from tests.support.api_object import ApiObject
from tests.support.chart_values import by_kind
from tests.support.deploy_tools import documents

REPO = pathlib.Path(__file__).resolve().parents[3]
KUSTOMIZE = REPO / "deploy/kustomize"
BASE, BLUE = KUSTOMIZE / "tenant-dns", KUSTOMIZE / "tenant-dns-blue"
SCHEMAS = {
    "Namespace": kubernetes.client.V1Namespace,
    "ServiceAccount": kubernetes.client.V1ServiceAccount,
    "ClusterRole": kubernetes.client.V1ClusterRole,
    "ClusterRoleBinding": kubernetes.client.V1ClusterRoleBinding,
    "Service": kubernetes.client.V1Service,
    "Deployment": kubernetes.client.V1Deployment,
}


def written(folder: pathlib.Path) -> list[ApiObject]:
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [found for name in names if name.endswith(".yaml") for found in documents((folder / name).read_text())]


def namespaces(text: str) -> list[str]:
    """Return the namespaces that the plugin `kubernetes` is limited to."""
    (found,) = re.findall(r"^    namespaces (.+)$", text, re.MULTILINE)
    return found.split()


@pytest.mark.parametrize("item", [*written(BASE), *written(BLUE)], ids=lambda item: item["kind"])
def test_the_manifests_are_valid(item: ApiObject) -> None:
    model = SCHEMAS[item["kind"]].model_validate(item)
    assert model.model_dump(by_alias=True, exclude_none=True) == item


def test_the_proxy_takes_its_service_for_the_dns_of_the_tenant() -> None:
    tree = by_kind(written(BASE))["Service"]
    tree = {**tree, "metadata": {**tree["metadata"], "namespace": "blue-dns", "uid": "u"}}
    tree["spec"] = {**tree["spec"], "clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"]}
    service = decode_mapping(Kind.SERVICE, tree).object
    assert isinstance(service, Service)
    assert service.tenant_dns
    assert sorted((port.port, port.protocol.name) for port in service.ports) == [(53, "TCP"), (53, "UDP")]
    container = by_kind(written(BASE))["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert {port["targetPort"] for port in tree["spec"]["ports"]} == {port["name"] for port in container["ports"]}


def test_its_pods_do_not_ask_the_dns_that_leads_back_to_them() -> None:
    pod = by_kind(written(BASE))["Deployment"]["spec"]["template"]["spec"]
    corefile = (BASE / "Corefile").read_text()
    assert pod["dnsPolicy"] == "Default"
    assert "forward . /etc/resolv.conf" in corefile
    ports = {str(port["containerPort"]) for port in pod["containers"][0]["ports"]}
    assert set(re.findall(r"^\.:(\d+) \{$", corefile, re.MULTILINE)) == ports
    for probe, plugin in (("livenessProbe", "health"), ("readinessProbe", "ready")):
        assert f"    {plugin} :{pod['containers'][0][probe]['httpGet']['port']}\n" in corefile


def test_nothing_resolves_before_the_placeholder_is_replaced() -> None:
    (placeholder,) = namespaces((BASE / "tenant.conf").read_text())
    assert not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", placeholder)


@pytest.mark.skipif(not shutil.which("kubectl") and not shutil.which("kustomize"), reason="no kustomize")
def test_the_example_is_built_for_its_tenant_alone(tmp_path: pathlib.Path) -> None:
    program = ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]
    copy = shutil.copytree(KUSTOMIZE, tmp_path / "mine") / BLUE.name
    argv = [*program, str(copy)]
    built = by_kind(documents(subprocess.run(argv, capture_output=True, text=True, check=True).stdout))
    config, pod = built["ConfigMap"], built["Deployment"]["spec"]["template"]["spec"]
    assert namespaces(config["data"]["tenant.conf"]) == ["blue-web", "blue-db", "default"]
    assert config["data"]["Corefile"] == (BASE / "Corefile").read_text()
    assert pod["volumes"][0]["configMap"]["name"] == config["metadata"]["name"]
    assert (
        f"import {pod['containers'][0]['volumeMounts'][0]['mountPath']}/tenant.conf" in config["data"]["Corefile"]
    )
    home, tenant = built["Namespace"]["metadata"]["name"], built["Namespace"]["metadata"]["labels"]
    assert (home, tenant) == ("blue-dns", {"ipvsproxy.io/tenant": "blue"})
    for kind in ("ServiceAccount", "Service", "Deployment", "ConfigMap"):
        assert built[kind]["metadata"]["namespace"] == home
    # Names of the whole cluster are another one's for each tenant, and the account is that of the pods.
    assert {built[kind]["metadata"]["name"] for kind in ("ClusterRole", "ClusterRoleBinding")} == {
        "tenant-dns-blue"
    }
    (subject,) = built["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (pod["serviceAccountName"], home)


def test_the_page_about_tenants_leads_to_them() -> None:
    page = (REPO / "docs/tenants.md").read_text()
    assert "../deploy/kustomize/tenant-dns-blue" in page
