"""DNS by tenant with name servers that are such: what pods can resolve, and what `ipvsproxy doctor` finds.

Each tenant has a DNS Service of its own. doctor is the command as an operator calls it, on the node.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib
from collections.abc import Callable, Iterator

import pytest

from ipvsproxy import cli
from ipvsproxy.kernel.read.netns import socket_in
from ipvsproxy.probe.dns import REFUSED_HERE, resolve
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, node_object, port, service
from tests.lab.name_server import NameServer
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

LABEL, DOMAIN = "ipvsproxy.io/tenant", "svc.cluster.local"
FLAGS = [*DEFAULT_PROXY_ARGS, f"--tenant-label={LABEL}"]
PORTS = [port(53, 53, proto, proto.lower()) for proto in ("UDP", "TCP")]
NUMBERS = {"kube-dns": 53, "blue": 54, "green": 55, "shop-blue": 56, "shop-green": 57, "kubernetes": 58}
BLUE, GREEN = f"shop.blue.{DOMAIN}", f"shop.green.{DOMAIN}"
# Pods of node1 that ask, and of node2 that answer.
PODS = {"blue": ("p11", "p21"), "green": ("p12", "p22")}


def address(name: str, family: int) -> str:
    number = NUMBERS[name]
    return f"10.96.78.{number}" if family == 4 else f"fd00:10:96::78:{number}"


class TenantsWithDns:
    """Two tenants with a Service and a DNS each, and the cluster's DNS, in a cluster of one family."""

    def __init__(self, lab: Lab, folder: ManifestFolder, family: int) -> None:
        self.lab, self.folder, self.family = lab, folder, family
        self.names = {tenant: self._names(tenant) for tenant in PODS}
        api = {f"kubernetes.default.{DOMAIN}": address("kubernetes", family)}
        self.of_all = NameServer(
            api | {name: a for names in self.names.values() for name, a in names.addresses.items()}, {}
        )

    def _names(self, tenant: str) -> NameServer:
        numbers = {"shop": f"shop-{tenant}", "dns": tenant}
        return NameServer(
            {f"{name}.{tenant}.{DOMAIN}": address(n, self.family) for name, n in numbers.items()}, {}
        )

    def write(self, *, has_endpoint: bool = True) -> None:
        made = [node_object(node) for node in self.lab.nodes]
        for name in ("kube-system", "default"):
            made += [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}]
        made += [self._service("default", "kubernetes", "kubernetes", [port(443, 6443)])]
        made += self._dns("kube-system", "kube-dns", "kube-dns", "p11")
        for tenant, pods in PODS.items():
            labels = {LABEL: tenant}
            made += [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant, "labels": labels}}]
            made += [self._pod(tenant, pod) for pod in pods]
            made += [self._service(tenant, "shop", f"shop-{tenant}", [port(80, 8080)])]
            dns = self._dns(tenant, "dns", tenant, pods[1] if has_endpoint or tenant == "green" else "")
            dns[0]["metadata"]["annotations"] = {"ipvsproxy.io/tenant-dns": "true"}
            made += dns
        self.folder.write("cluster", *made)

    def _pod(self, namespace: str, name: str) -> ApiObject:
        host = self.lab.host(name)
        ips = [{"ip": host.ipv4}, {"ip": host.ipv6}]
        return {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": self.lab.node_of(host).name},
            "status": {"phase": "Running", "podIP": host.ipv4, "podIPs": ips},
        }  # fmt: skip

    def _service(self, namespace: str, name: str, number: str, ports: list[ApiObject]) -> ApiObject:
        made = service(name, ports, [address(number, self.family)])
        made["metadata"]["namespace"] = namespace
        return made

    def _dns(self, namespace: str, name: str, number: str, pod: str) -> list[ApiObject]:
        made = [self._service(namespace, name, number, PORTS)]
        for family in (4, 6):
            ends = [endpoint(self.lab, self.lab.host(pod), family=family)] if pod else []
            made.append(endpoint_slice(name, PORTS, ends, family=family))
            made[-1]["metadata"]["namespace"] = namespace
        return made

    @contextlib.contextmanager
    def serving(self, *, only_tcp: bool = False) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            # The cluster's DNS is a pod of blue here, which does not matter: it is in a shared namespace's slice.
            stack.enter_context(self.of_all.serving(self.lab.host("p11")))
            for tenant, names in self.names.items():
                stack.enter_context(names.serving(self.lab.host(PODS[tenant][1]), only_tcp=only_tcp))
            yield

    def told(self, asker: str, name: str) -> str:
        """What the cluster's DNS tells somebody about a name: the address, or why there is none."""
        host = self.lab.nodes[0] if asker == "node1" else self.lab.host(asker)
        make = functools.partial(socket_in, host.netns)
        found = resolve(address("kube-dns", self.family), name, "A" if self.family == 4 else "AAAA", make)
        return found.error or " ".join(found.addresses)

    def doctor(self) -> tuple[int, list[tuple[str, str]]]:
        """The exit status of `ipvsproxy doctor`, and what it finds about tenants."""
        argv = ["doctor", "-o", "json", *FLAGS, f"--manifests={self.folder.path}", "--hostname-override=node1"]
        with netns.inside(self.lab.nodes[0].netns), contextlib.redirect_stdout(io.StringIO()) as printed:
            status = cli.main(argv)
        found = json.loads(printed.getvalue())["findings"]
        return status, [(f["verdict"], f["summary"]) for f in found if f["check"] == "tenants"]


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def cluster(lab: Lab, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[TenantsWithDns]:
    made = TenantsWithDns(lab, ManifestFolder(tmp_path), request.param)
    made.write()
    proxy = lab.proxy(lab.nodes[0], made.folder.path, FLAGS)
    yield made
    proxy.kill()
    lab.clean_nodes()


@pytest.mark.parametrize("only_tcp", [False, True], ids=["UDP", "TCP after a truncated response"])
def test_pods_resolve_the_names_of_their_own_tenant_only(cluster: TenantsWithDns, only_tcp: bool) -> None:
    blue, green = (address(f"shop-{tenant}", cluster.family) for tenant in PODS)
    with cluster.serving(only_tcp=only_tcp):
        eventually(lambda: cluster.told("p11", BLUE) == blue)
        assert cluster.told("p11", GREEN) == cluster.told("p12", BLUE) == "NXDOMAIN"
        assert cluster.told("p12", GREEN) == green
        # Everybody else is told all names.
        assert (cluster.told("node1", BLUE), cluster.told("node1", GREEN)) == (blue, green)


RIGHT = "2 DNS Services of tenants: each answers, and resolves names of its own tenant only"
TITLE = "the DNS of tenant blue (blue/dns)"


def tells_names_of_others(cluster: TenantsWithDns) -> None:
    cluster.names["blue"].addresses.update(cluster.of_all.addresses)


def is_silent(cluster: TenantsWithDns) -> None:
    cluster.names["blue"].is_silent = True


def has_no_endpoint(cluster: TenantsWithDns) -> None:
    cluster.write(has_endpoint=False)
    eventually(lambda: cluster.told("p11", BLUE) == "Connection refused")


def knows_nothing(cluster: TenantsWithDns) -> None:
    cluster.names["blue"].addresses.clear()


@pytest.mark.parametrize(
    ("breaking", "status", "found"),
    [
        (lambda _: None, 0, ("ok", RIGHT)),
        (tells_names_of_others, 1, ("problem", f"{TITLE} resolves dns.green.{DOMAIN}, a Service of tenant green")),
        (is_silent, 1, ("problem", f"{TITLE} does not answer: no answer within 4 s")),
        (has_no_endpoint, 1, ("problem", f"{TITLE} does not answer: {REFUSED_HERE}")),
        (knows_nothing, 0, ("warning", f"{TITLE} does not resolve dns.blue.{DOMAIN}: NXDOMAIN")),
    ],
    ids=["right", "names of others", "silent", "no endpoint", "knows nothing"],
)
def test_doctor_finds_what_the_dns_of_a_tenant_does(
    cluster: TenantsWithDns, breaking: Callable[[TenantsWithDns], None], status: int, found: tuple[str, str]
) -> None:
    with cluster.serving():
        eventually(lambda: cluster.told("p11", BLUE) == address("shop-blue", cluster.family))
        breaking(cluster)
        seen, findings = cluster.doctor()
        assert found in findings
        assert (seen, [verdict for verdict, _ in findings if verdict != "ok"]) == (
            status, [found[0]] if found[0] != "ok" else [],
        )  # fmt: skip
