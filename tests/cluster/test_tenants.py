"""Two tenants with real pods: who is refused, and what a pod gets that asks as soon as it starts.

Rights and setting are added as docs/tenants.md says. NAME is of a cluster that is up and is to stay.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import application, lifecycle, programs, proxies
from tests.cluster.application import HTTP, PATIENT, RunningApplication
from tests.cluster.binaries import Kube
from tests.cluster.daemonset import DAEMONSET, SYSTEM, ready
from tests.cluster.images import AGNHOST
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import REPO, Cluster
from tests.cluster.traffic import Origin, run_at

NAME = "tenants"
LABEL, SHARE = "ipvsproxy.io/tenant", "ipvsproxy.io/share-with"
TENANTS = {"blue": 30190, "green": 30191}
"""NodePorts of their Services."""
EXTRA = "/var/lib/kube-proxy/extra.conf"
SETTINGS = {"apiVersion": "ipvsproxy.io/v1alpha1", "kind": "IPVSProxyConfiguration", "tenantLabel": LABEL}
SECONDS = 600
SERVED, REFUSED = 0, 7
"""Exit codes of curl; 28 would be a timeout."""


def have_tenants(kubectl: Kubectl) -> None:
    """Turn tenants on: rights, a file beside the configuration, and the argument that names it."""
    kubectl("apply", f"--filename={REPO}/deploy/kustomize/tenants/rbac.yaml")
    data = json.dumps({"data": {"extra.conf": json.dumps(SETTINGS)}})
    kubectl("patch", "configmap", "ipvsproxy", SYSTEM, "--type=merge", f"--patch={data}")
    argument = f"--extra-config={EXTRA}"
    adding = [
        {"op": "add", "path": f"/spec/template/spec/{name}/0/args/-", "value": argument}
        for name in ("initContainers", "containers")
    ]
    if argument in kubectl.get(DAEMONSET, SYSTEM)["spec"]["template"]["spec"]["containers"][0]["args"]:
        return
    kubectl("patch", DAEMONSET, SYSTEM, "--type=json", f"--patch={json.dumps(adding)}")


def pod(namespace: str, name: str, node: str, *args: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": AGNHOST,
        "args": [*args],
        "imagePullPolicy": "IfNotPresent",
    }
    if args[0] == "netexec":
        probe = {"httpGet": {"path": "/hostname", "port": HTTP}, "periodSeconds": 2, **PATIENT}
        container["readinessProbe"] = probe
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "restartPolicy": "Never",
        "containers": [container],
    }
    metadata = {"name": name, "namespace": namespace, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def objects(tenant: str, asking: str, answering: str) -> list[dict[str, Any]]:
    """A namespace with a Service shop, a pod that answers and one that asks."""
    shop = application.service("shop", "NodePort", selector={"app": "shop"})
    shop["metadata"]["namespace"] = tenant
    shop["spec"]["ports"] = [{"port": 80, "targetPort": HTTP, "nodePort": TENANTS[tenant]}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant, "labels": {LABEL: tenant}}},
        pod(tenant, "shop", answering, "netexec", f"--http-port={HTTP}"),
        pod(tenant, "client", asking, "pause"),
        shop,
    ]


class Shops:
    """The addresses of what was installed, and requests to it."""

    def __init__(self, running: RunningApplication) -> None:
        self.running, self.kubectl = running, running.kubectl
        self.asking, self.answering = running.cluster.nodes[:2]
        for tenant in TENANTS:
            self.kubectl.apply(objects(tenant, self.asking.name, self.answering.name))
        for tenant in TENANTS:
            wanted = ("pod/shop", "pod/client", f"--namespace={tenant}")
            self.kubectl("wait", "--for=condition=Ready", *wanted, f"--timeout={SECONDS}s")
        self.ips = {tenant: self._shop(tenant)["spec"]["clusterIP"] for tenant in TENANTS}
        self.clients = {tenant: self._client(tenant) for tenant in TENANTS}

    def _shop(self, tenant: str) -> Any:
        return self.kubectl.get("service", "shop", f"--namespace={tenant}")

    def _client(self, tenant: str) -> Origin:
        found = self.kubectl.get("pod", "client", f"--namespace={tenant}")
        return Origin(self.asking, found["status"]["podIP"])

    def ask(self, where: Origin, address: str) -> int:
        """The exit code of one request."""
        curl = ["curl", "-sS", "--output", "/dev/null", "--max-time", "20", f"http://{address}/hostname"]
        return run_at(self.running.cluster, where, *curl).returncode

    def table(self) -> dict[str, dict[str, int]]:
        """What becomes of a request of each tenant's pod to each shop."""
        return {
            name: {to: self.ask(place, ip) for to, ip in self.ips.items()} for name, place in self.clients.items()
        }

    def annotate(self, tenant: str, value: str) -> None:
        self.kubectl("annotate", "service", "shop", f"--namespace={tenant}", f"{SHARE}{value}", "--overwrite")


SEPARATE = {"blue": {"blue": SERVED, "green": REFUSED}, "green": {"blue": REFUSED, "green": SERVED}}


@pytest.fixture(scope="module")
def shops(kube: Kube) -> Iterator[Shops]:
    name = os.environ.get("NAME")
    cluster = lifecycle.remembered(name)[0] if name else Cluster(NAME)
    with contextlib.nullcontext() if name else lifecycle.temporary(cluster, kube, proxies.OURS, ""):
        running = RunningApplication(
            cluster, kube, Kubectl(cluster, kube), application.Application(cluster, {}, "", "", {})
        )
        have_tenants(running.kubectl)
        ready(running)
        yield Shops(running)
        running.kubectl("delete", "namespaces", *TENANTS)


def becomes(shops: Shops, table: dict[str, dict[str, int]]) -> None:
    programs.wait(f"it did not become {table}", lambda: shops.table() == table, SECONDS)


def test_pods_reach_the_shop_of_their_own_tenant(shops: Shops):
    becomes(shops, SEPARATE)
    green = shops.clients["green"]
    for node in (shops.asking, shops.answering):
        # The node of the pod refuses; another one does not know it.
        assert shops.ask(green, f"{node.ips[0]}:{TENANTS['blue']}") != SERVED
        # Who is no pod is not judged.
        assert shops.ask(Origin(node), shops.ips["blue"]) == SERVED
    assert shops.ask(green, f"{shops.asking.ips[0]}:{TENANTS['blue']}") == REFUSED


def test_a_share_counts_as_long_as_it_is_there(shops: Shops):
    shops.annotate("blue", "=green")
    becomes(shops, {"blue": SEPARATE["blue"], "green": {"blue": SERVED, "green": SERVED}})
    shops.annotate("blue", "-")
    becomes(shops, SEPARATE)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("tenant", TENANTS)
def test_a_pod_that_asks_as_soon_as_it_starts(shops: Shops, tenant: str, number: int):
    """Its first packets may come before its address is known: then they get no answer, and the next ones do."""
    name = f"early-{number}"
    made = pod(tenant, name, shops.asking.name, "connect", "--timeout=60s", f"{shops.ips['blue']}:80")
    shops.kubectl.apply([made])

    def phase() -> str:
        return str(shops.kubectl.get("pod", name, f"--namespace={tenant}")["status"]["phase"])

    programs.wait("it did not end", lambda: phase() in ("Succeeded", "Failed"), SECONDS)
    assert phase() == ("Succeeded" if tenant == "blue" else "Failed")
    assert shops.kubectl("logs", name, f"--namespace={tenant}").strip() == ("" if tenant == "blue" else "REFUSED")


def test_a_namespace_that_changes_its_tenant(shops: Shops):
    shops.kubectl("label", "namespace", "green", f"{LABEL}=blue", "--overwrite")
    becomes(shops, {name: dict.fromkeys(TENANTS, SERVED) for name in TENANTS})
    shops.kubectl("label", "namespace", "green", f"{LABEL}=green", "--overwrite")
    becomes(shops, SEPARATE)


def test_the_commands_in_the_pod_of_the_proxy_know_the_tenants(shops: Shops):
    proxy = shops.kubectl.get(
        "pods", SYSTEM, "--selector=app.kubernetes.io/name=ipvsproxy",
        f"--field-selector=spec.nodeName={shops.asking.name}",
    )["items"][0]["metadata"]["name"]  # fmt: skip
    run = ["exec", proxy, SYSTEM, "--container=ipvsproxy", "--", "sh", "-c"]
    found = json.loads(shops.kubectl(*run, "ipvsproxy doctor -o json || true"))["findings"]
    tenants = [(each["verdict"], each["summary"]) for each in found if each["check"] == "tenants"]
    assert tenants == [("ok", "2 tenants in 2 namespaces")]
    settings = (
        f"--config=/var/lib/kube-proxy/config.conf --extra-config={EXTRA} --hostname-override={shops.asking.name}"
    )
    asked = f"{shops.clients['green'].pod_ip} {shops.ips['blue']}:80"
    told = shops.kubectl(*run, f"ipvsproxy explain {settings} {asked} || true")
    assert "green -> blue: another tenant's Service, not shared with green" in told
