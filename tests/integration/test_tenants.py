"""Pods reach the Services of their own tenant, and shared ones; who changes the tenant loses what was open."""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, node_object, port, service
from tests.lab.probe import Conversation, ProbeQuestion, probe_many
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

LABEL = "ipvsproxy.io/tenant"
PORTS = [port(80, 8080, "TCP", "web"), port(81, 8081, "UDP", "udp")]
NUMBERS = {"blue": 1, "green": 2, "plain": 3}
DNS, OWN_DNS = ("10.96.77.53", "fd00:10:96::77:53"), ("10.96.77.54", "fd00:10:96::77:54")
FETCH = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10249/metrics').read().decode())"
SERVED, REFUSED, UNKNOWN = "answered", "refused", "timeout"


def cluster_ip(namespace: str, family: int) -> str:
    number = NUMBERS[namespace]
    return f"10.96.77.{number}" if family == 4 else f"fd00:10:96::77:{number}"


def balancer(namespace: str, family: int) -> str:
    number = NUMBERS[namespace]
    return f"203.0.113.{170 + number}" if family == 4 else f"2001:db8:113::77:{number}"


def node_port(namespace: str) -> int:
    return 31770 + 2 * NUMBERS[namespace]


class TwoTenants:
    """The namespaces blue and green of two tenants, and `plain` of none, each with a Service; p21 answers all."""

    proxy: LabProxy

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder
        self.tenants = {"blue": "blue", "green": "green", "plain": ""}
        self.pods = {"p11": "blue", "p12": "green"}
        self.shares: dict[str, str] = {}
        # What slices of blue name beside p21, as someone may write them by hand.
        self.named_by_blue: tuple[str, ...] = ()

    def write(self) -> None:
        """Bring the folder to what the attributes say."""
        self.folder.write("cluster", *self._namespaces(), *self._pods(), *self._services())

    def _namespaces(self) -> Iterator[ApiObject]:
        for name, tenant in self.tenants.items():
            labels = {LABEL: tenant} if tenant else {}
            yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}

    def _pods(self) -> Iterator[ApiObject]:
        for name, namespace in self.pods.items():
            host = self.lab.host(name)
            ips = [{"ip": host.ipv4}, {"ip": host.ipv6}]
            yield {
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
                "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIP": host.ipv4, "podIPs": ips},
            }  # fmt: skip

    def _services(self) -> Iterator[ApiObject]:
        for namespace in NUMBERS:
            for made in self._service(namespace):
                made["metadata"]["namespace"] = namespace
                yield made

    def _service(self, namespace: str) -> Iterator[ApiObject]:
        number = node_port(namespace)
        ports = [PORTS[0] | {"nodePort": number}, PORTS[1] | {"nodePort": number + 1}]
        ips = [cluster_ip(namespace, family) for family in (4, 6)]
        vips = [balancer(namespace, family) for family in (4, 6)]
        made: dict[str, Any] = service("web", ports, ips, type_="LoadBalancer", ingress=vips)
        if namespace in self.shares:
            made["metadata"]["annotations"] = {"ipvsproxy.io/share-with": self.shares[namespace]}
        yield made
        for family in (4, 6):
            pods = ("p21", *(self.named_by_blue if namespace == "blue" else ()))
            ends = [endpoint(self.lab, self.lab.host(pod), family=family) for pod in pods]
            yield endpoint_slice("web", ports, ends, family=family)

    def write_dns(self, **settings: str) -> None:
        """Write the cluster's DNS, which p21 is, and that of blue, of a pod or of none."""
        made = [*self._dns("kube-dns", "kube-system", "p21"), *self._dns("own", "blue", settings["blue"])]
        made[3]["metadata"]["annotations"] = {"ipvsproxy.io/tenant-dns": "true"}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}
        self.folder.write("dns", space, *made)

    def _dns(self, name: str, namespace: str, pod: str) -> Iterator[ApiObject]:
        ports = [port(53, 8080, "TCP", "tcp"), port(53, 8081, "UDP", "udp")]
        made = [service(name, ports, DNS if name == "kube-dns" else OWN_DNS)]
        for family in (4, 6):
            ends = [endpoint(self.lab, self.lab.host(pod), family=family)] if pod else []
            made.append(endpoint_slice(name, ports, ends, family=family))
        for item in made:
            item["metadata"]["namespace"] = namespace
            yield item

    def told_by(self, asker: str) -> set[str]:
        """Who answers at the address of the cluster's DNS."""
        host = self.lab.nodes[0] if asker == "node1" else self.lab.host(asker)
        asked = [ProbeQuestion(host.netns, address, 53, proto) for address in DNS for proto in ("tcp", "udp")]
        return {result.name or result.outcome for result in probe_many(asked, 3)}

    def ways(self, asker: LabHost, namespace: str) -> list[ProbeQuestion]:
        """All ways from somewhere to the Service of a namespace."""
        node, found = self.lab.nodes[0], []
        for family in (4, 6):
            addresses = (cluster_ip(namespace, family), balancer(namespace, family))
            for more, proto in enumerate(("tcp", "udp")):
                found += [ProbeQuestion(asker.netns, address, 80 + more, proto) for address in addresses]
                found.append(ProbeQuestion(asker.netns, node.address(family), node_port(namespace) + more, proto))
        return found

    def outcomes(self, asker: str, namespace: str, timeout: float = 3) -> set[str]:
        host = self.lab.nodes[0] if asker == "node1" else self.lab.host(asker)
        return {result.outcome for result in probe_many(self.ways(host, namespace), timeout)}

    def may(self, pod: str, name: str) -> bool:
        """Whether a pod may connect to the Service of a namespace, as docs/tenants.md has it."""
        asker, owner = self.tenants[self.pods[pod]], self.tenants[name]
        shares = self.shares.get(name, "").split(",")
        return not asker or not owner or asker == owner or asker in shares or "*" in shares

    def allowed(self) -> set[tuple[str, str]]:
        """Which pods may connect to the Services of which namespaces."""
        return {(pod, name) for pod in self.pods for name in NUMBERS if self.may(pod, name)}

    def change(self, chance: random.Random) -> None:
        """Change one to three things at once, at random."""
        for _ in range(chance.choice((1, 1, 2, 3))):
            what, name = chance.randrange(3), chance.choice(list(NUMBERS))
            if what == 0:
                self.tenants[name] = chance.choice(("", "blue", "green", "red"))
            elif what == 1:
                self.pods[chance.choice(list(self.pods))] = name
            else:
                self.shares[name] = chance.choice(("", "*", "blue", "green,red"))
        self.write()

    def answering(self, asker: str, namespace: str) -> set[str]:
        """Who answers for the Service of a namespace, each way asked several times."""
        return {result.name for result in probe_many(self.ways(self.lab.host(asker), namespace) * 4, 3)}

    def table(self) -> dict[str, dict[str, set[str]]]:
        """What becomes of connections of each pod of node1 to each Service."""
        return {pod: {name: self.outcomes(pod, name) for name in NUMBERS} for pod in ("p11", "p12")}


BOTH_PATHS = pytest.mark.parametrize("cluster", [[], ["--data-path=auto"]], ids=["ipvs", "auto"], indirect=True)
SEPARATE = {
    "p11": {"blue": {SERVED}, "green": {REFUSED}, "plain": {SERVED}},
    "p12": {"blue": {REFUSED}, "green": {SERVED}, "plain": {SERVED}},
}


@pytest.fixture
def cluster(lab: Lab, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[TwoTenants]:
    folder = ManifestFolder(tmp_path)
    folder.write("nodes", *(node_object(node) for node in lab.nodes))
    for pod in ("p21", "p22"):
        for proto, number in (("tcp", 8080), ("udp", 8081)):
            lab.responder.listen(lab.host(pod), number, proto)
    made = TwoTenants(lab, folder)
    made.write()
    more = getattr(request, "param", [])
    made.proxy = lab.proxy(lab.nodes[0], folder.path, [*DEFAULT_PROXY_ARGS, f"--tenant-label={LABEL}", *more])
    yield made
    made.proxy.kill()
    lab.clean_nodes()
    lab.responder.clear()


@BOTH_PATHS
def test_each_tenant_reaches_its_own_services_and_shared_ones(cluster: TwoTenants) -> None:
    eventually(lambda: cluster.table() == SEPARATE)
    # Who is no pod of this node is not judged: outside clients, the node itself.
    for asker in ("client", "node1"):
        assert {name: cluster.outcomes(asker, name) for name in NUMBERS} == {key: {SERVED} for key in NUMBERS}


def test_commands_know_the_tenants_however_they_are_numbered(cluster: TwoTenants) -> None:
    cluster.tenants = {"aaa": "last", **cluster.tenants, "plain": "first"}
    cluster.write()
    eventually(lambda: cluster.outcomes("p11", "plain") == {REFUSED})
    command = [sys.executable, "-m", "ipvsproxy"]
    flags = [*DEFAULT_PROXY_ARGS, f"--tenant-label={LABEL}", f"--manifests={cluster.folder.path}"]
    node = cluster.lab.nodes[0]
    settings = [*flags, f"--hostname-override={node.name}"]
    assert "would change nothing" in cluster.lab.run(node, [*command, "diff", *settings])
    asked = [cluster.lab.host("p11").ipv4, f"{cluster_ip('green', 4)}:80"]
    told = cluster.lab.run(node, ["sh", "-c", '"$0" "$@" || true', *command, "explain", *settings, *asked])
    assert "REFUSED: the Service is another tenant's" in told
    assert "(blue)" in told
    shown = json.loads(cluster.lab.run(node, [*command, "show", "rules", "-o", "json"]))["items"]
    assert {row["namespace"]: row["tenants"] for row in shown} == {
        "blue": ["blue"],
        "green": ["green"],
        "plain": ["first"],
    }


@pytest.mark.parametrize("cluster", [["--tenant-refusal=drop"]], indirect=True)
def test_connections_to_others_get_no_answer_if_so_set(cluster: TwoTenants) -> None:
    eventually(lambda: cluster.outcomes("p11", "blue") == {SERVED})
    assert cluster.outcomes("p11", "green") == {UNKNOWN}


def test_refused_connections_are_counted_by_tenant(cluster: TwoTenants) -> None:
    eventually(lambda: cluster.table() == SEPARATE)
    node = cluster.lab.nodes[0]

    def counts() -> dict[str, int]:
        page = cluster.lab.run(node, [sys.executable, "-c", FETCH])
        return {
            line.split(" ")[0]: int(float(line.split(" ")[1]))
            for line in page.splitlines()
            if "refused_conn" in line and line[0] != "#"
        }

    blue, green = (f'ipvsproxy_tenant_refused_connections_total{{tenant="{name}"}}' for name in ("blue", "green"))
    unknown = "ipvsproxy_unknown_pod_refused_connections_total"
    before = counts()
    asked = [
        ProbeQuestion(cluster.lab.host("p11").netns, address, 80)
        for address in (cluster_ip("green", 4), cluster_ip("green", 6))
    ]
    assert {result.outcome for result in probe_many(asked, 3)} == {REFUSED}
    after = counts()
    assert {name: after[name] - before[name] for name in (blue, green, unknown)} == {blue: 2, green: 0, unknown: 0}
    # What is served is not counted, a pod that is not known is.
    assert cluster.outcomes("p11", "blue") == cluster.outcomes("p11", "plain") == {SERVED}
    assert counts() == after
    del cluster.pods["p11"]
    cluster.write()
    eventually(lambda: cluster.outcomes("p11", "blue") == {UNKNOWN})
    assert counts()[unknown] > after[unknown]


def test_a_service_can_be_shared(cluster: TwoTenants) -> None:
    eventually(lambda: cluster.table() == SEPARATE)
    cluster.shares = {"green": "red, blue"}
    cluster.write()
    eventually(lambda: cluster.outcomes("p11", "green") == {SERVED})
    assert cluster.outcomes("p12", "blue") == {REFUSED}
    cluster.shares = {"blue": "*"}
    cluster.write()
    eventually(lambda: cluster.outcomes("p12", "blue") == {SERVED})
    assert cluster.outcomes("p11", "green") == {REFUSED}


def test_a_pod_that_is_not_known_yet_gets_no_answer_and_its_retry_succeeds(cluster: TwoTenants) -> None:
    del cluster.pods["p11"]
    cluster.write()
    eventually(lambda: cluster.outcomes("p11", "blue") == {UNKNOWN})
    assert cluster.outcomes("p11", "plain") == {SERVED}
    question = ProbeQuestion(cluster.lab.host("p11").netns, cluster_ip("blue", 4), 80)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(probe_many, [question], 20)
        time.sleep(0.5)
        cluster.pods["p11"] = "blue"
        cluster.write()
        assert [result.outcome for result in asked.result()] == [SERVED]


def test_a_pod_of_no_tenant_reaches_everything(cluster: TwoTenants) -> None:
    cluster.pods["p11"] = "plain"
    cluster.write()
    eventually(
        lambda: {name: cluster.outcomes("p11", name) for name in NUMBERS} == {key: {SERVED} for key in NUMBERS}
    )


def test_an_endpoint_that_is_another_tenants_pod_gets_nothing(cluster: TwoTenants) -> None:
    """Blue has written the address of p12 into its slices."""
    for proto, number in (("tcp", 8080), ("udp", 8081)):
        cluster.lab.responder.listen(cluster.lab.host("p12"), number, proto)
    cluster.named_by_blue = ("p12",)
    cluster.pods["p12"] = "blue"
    cluster.write()
    # As a pod of its own tenant it is one of two.
    eventually(lambda: cluster.answering("p11", "blue") == {"p21", "p12"})
    cluster.pods["p12"] = "green"
    cluster.write()
    eventually(lambda: cluster.answering("p11", "blue") == {"p21"})
    line = cluster.proxy.wait_for(messages.SERVED_IN_PART)
    assert (line["service"], line["level"]) == ("blue/web", "warning")
    assert cluster.lab.host("p12").ipv4 in str(line["reason"])


NOTRACK = """table inet elsewhere {
    chain prerouting { type filter hook prerouting priority raw; meta l4proto { tcp, udp } notrack; }
}"""


@BOTH_PATHS
def test_no_other_tenant_is_reached_past_conntrack(cluster: TwoTenants) -> None:
    eventually(lambda: cluster.table() == SEPARATE)
    node = cluster.lab.nodes[0]
    cluster.lab.run(node, ["nft", "-f", "-"], NOTRACK)
    try:
        assert (cluster.outcomes("p11", "green"), cluster.outcomes("p12", "blue")) == ({UNKNOWN}, {UNKNOWN})
    finally:
        cluster.lab.run(node, ["nft", "delete table inet elsewhere"])


@BOTH_PATHS
@pytest.mark.parametrize("loose", [1, 0])
def test_a_namespace_that_changes_its_tenant_loses_what_was_open(cluster: TwoTenants, loose: int) -> None:
    netns.set_sysctls(cluster.lab.nodes[0].netns, {"net/netfilter/nf_conntrack_tcp_loose": loose})
    eventually(lambda: cluster.table() == SEPARATE)
    asker = cluster.lab.host("p11")
    blue, plain = cluster.ways(asker, "blue"), cluster.ways(asker, "plain")
    with contextlib.ExitStack() as stack:
        ending = [stack.enter_context(Conversation(question, timeout=4)) for question in blue]
        staying = [stack.enter_context(Conversation(question, timeout=20)) for question in plain]
        assert {talk.ask().outcome for talk in (*ending, *staying)} == {SERVED}
        # Its pods and Services go over to green; what pods of green have at others stays as it was.
        cluster.pods["p12"] = "green"
        cluster.tenants["blue"] = "red"
        cluster.pods["p11"] = "green"
        cluster.write()
        eventually(lambda: cluster.outcomes("p11", "green") == {SERVED})
        assert SERVED not in {talk.ask().outcome for talk in ending}
        assert {talk.ask().outcome for talk in staying} == {SERVED}
    assert cluster.outcomes("p11", "blue") == {REFUSED}
    netns.set_sysctls(cluster.lab.nodes[0].netns, {"net/netfilter/nf_conntrack_tcp_loose": 1})


@BOTH_PATHS
def test_connections_that_are_still_allowed_go_on(cluster: TwoTenants) -> None:
    """Pods and Services of a namespace change together: connections among them go on."""
    eventually(lambda: cluster.table() == SEPARATE)
    with contextlib.ExitStack() as stack:
        ways = cluster.ways(cluster.lab.host("p11"), "blue")
        talks = [stack.enter_context(Conversation(question, timeout=20)) for question in ways]
        before = [talk.ask() for talk in talks]
        assert {result.outcome for result in before} == {SERVED}
        cluster.tenants["blue"] = "red"
        cluster.write()
        time.sleep(1)
        after = [talk.ask() for talk in talks]
        assert [(r.outcome, r.name, r.seen_port) for r in after] == [
            (r.outcome, r.name, r.seen_port) for r in before
        ]


@pytest.mark.parametrize("seed", range(2))
def test_no_random_history_lets_a_connection_through_that_is_never_allowed(cluster: TwoTenants, seed: int) -> None:
    """In samples, with packets, what the unit test of this name looks at in each transaction."""
    chance = random.Random(seed)
    eventually(lambda: cluster.table() == SEPARATE)
    for _ in range(6):
        before = cluster.allowed()
        cluster.change(chance)
        after = cluster.allowed()
        seen = {(pod, name) for pod, row in cluster.table().items() for name in row if SERVED in row[name]}
        assert seen <= before | after

        def is_settled(after: set[tuple[str, str]] = after) -> bool:
            return all(
                found == ({SERVED} if (pod, name) in after else {REFUSED})
                for pod, row in cluster.table().items()
                for name, found in row.items()
            )

        eventually(is_settled)


def test_pods_ask_the_dns_of_their_tenant(cluster: TwoTenants) -> None:
    cluster.write_dns(blue="p22")
    eventually(lambda: cluster.told_by("p11") == {"p22"})
    assert cluster.told_by("p12") == cluster.told_by("node1") == {"p21"}
    cluster.write_dns(blue="")
    eventually(lambda: cluster.told_by("p11") == {REFUSED})
    cluster.pods["p12"] = "blue"
    cluster.pods["p11"] = "green"
    cluster.write_dns(blue="p22")
    cluster.write()
    eventually(lambda: (cluster.told_by("p11"), cluster.told_by("p12")) == ({"p21"}, {"p22"}))


@pytest.mark.parametrize("cluster", [["--tenant-dns-fallback"]], indirect=True)
def test_the_dns_of_the_cluster_answers_while_that_of_the_tenant_has_no_endpoint(cluster: TwoTenants) -> None:
    cluster.write_dns(blue="p22")
    eventually(lambda: cluster.told_by("p11") == {"p22"})
    cluster.write_dns(blue="")
    eventually(lambda: cluster.told_by("p11") == {"p21"})
