"""The commands that look, on a live node: what they say is what is there, and they change nothing.

Called in this process with the thread in the node's namespace: starting Python takes seconds under emulation.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ipvsproxy import cli
from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import Conversation, ProbeQuestion
from tests.lab.published import PublishedServices, cluster_ip

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

WEB4 = cluster_ip(PublishedServices.WEB, 4)
WEB = FrontendKey(parse_ip(WEB4), 6, 80)


BOTH_PATHS = pytest.mark.parametrize("services", ["ipvs", "auto"], indirect=True)


class ServedServices(PublishedServices):
    """Every kind of Service of the traffic tests, and the flags of the proxy that serves them."""

    def __init__(self, lab: Lab, folder: ManifestFolder, data_path: str) -> None:
        super().__init__(lab, folder)
        self.flags = [*DEFAULT_PROXY_ARGS, f"--data-path={data_path}"]

    def serve(self) -> None:
        """Have a proxy on node1."""
        self.lab.proxy(self.lab.nodes[0], self.folder.path, self.flags)


@pytest.fixture(scope="module")
def services(
    session_lab: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[ServedServices]:
    folder = ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("commands")))
    services = ServedServices(session_lab, folder, getattr(request, "param", "ipvs"))
    services.write()
    for pod in session_lab.pods:
        session_lab.responder.listen(pod, 8080)
    services.serve()
    yield services
    session_lab.take_back()


def call(services: ServedServices, *words: str, node: int = 0) -> tuple[int, dict[str, Any]]:
    """Return the exit status of a command, and its document."""
    out = io.StringIO()
    with netns.inside(services.lab.nodes[node].netns), contextlib.redirect_stdout(out):
        status = cli.main([*words, "-o", "json"])
    return status, json.loads(out.getvalue())


def diff(services: ServedServices, node: int = 0) -> tuple[int, list[dict[str, str]]]:
    name = services.lab.nodes[node].name
    settings = [f"--manifests={services.folder.path}", f"--hostname-override={name}", *services.flags]
    status, document = call(services, "diff", *settings, node=node)
    return status, document["changes"]


WAY = "192.0.2.1:31510/TCP"


def of_the_way(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in document["items"] if row["frontend"] == WAY]


def eventually_counted(services: ServedServices) -> dict[str, dict[str, Any]]:
    """Look until the kernel has added its counters up, which it does every two seconds."""
    while True:
        shown = {
            name: call(services, "show", name)[1] for name in ("services", "endpoints", "connections", "rules")
        }
        counted = [row for name in ("services", "endpoints") for row in of_the_way(shown[name])]
        if sum(row["outBytes"] > 0 for row in counted) > 1:
            return shown
        time.sleep(0.5)


def test_names_and_counters(services: ServedServices) -> None:
    with Conversation(ProbeQuestion(services.lab.client.netns, services.lab.nodes[0].ipv4, 31510)) as talk:
        assert talk.ask().outcome == "answered"
        shown = eventually_counted(services)
        status, said = call(services, "explain", "192.0.2.100", "192.0.2.1:31510")
    assert (status, said["service"], said["outcome"]) == (0, "default/web", "accepted")
    assert all(document["named"] for document in shown.values())
    rows = {name: of_the_way(document) for name, document in shown.items()}
    (service,), (rule,) = rows["services"], rows["rules"]
    assert (service["namespace"], service["service"], service["endpoints"]) == ("default", "web", 2)
    assert service["connections"] == 1
    assert service["active"] == 1
    assert service["inPackets"] >= 3
    assert service["outBytes"] > 0
    assert {row["endpoint"] for row in rows["endpoints"]} == {"10.244.1.10:8080", "10.244.2.10:8080"}
    assert sum(row["connections"] for row in rows["endpoints"]) == 1
    (connection,) = rows["connections"]
    assert connection["client"].startswith("192.0.2.100:")
    assert connection["state"] == "ESTABLISHED"
    assert (rule["verdict"], rule["masquerade"], rule["address"]) == ("accept", "always", "node")


def test_rules_and_filters(services: ServedServices) -> None:
    _, document = call(services, "show", "rules", "default/ranged", "-n", "default")
    by_frontend = {row["frontend"]: row for row in document["items"]}
    vip = by_frontend["203.0.113.57:80/TCP"]
    assert (vip["sourceRanges"], vip["address"]) == (["192.0.2.100"], "vip")
    assert {row["service"] for row in document["items"]} == {"ranged"}
    _, document = call(services, "show", "rules", "local")
    inside = {row["frontend"]: row["inside"] for row in document["items"]}
    assert inside[f"203.0.113.{PublishedServices.LOCAL}:80/TCP"] == f"{cluster_ip(PublishedServices.LOCAL, 4)}:80"
    assert call(services, "show", "services", "-n", "other")[1]["items"] == []


@BOTH_PATHS
def test_a_node_in_order_has_no_difference(services: ServedServices) -> None:
    assert diff(services) == (0, [])


def test_without_flags_commands_take_the_settings_of_the_proxy_that_runs(services: ServedServices) -> None:
    """As in the pod of the DaemonSet."""
    status, document = call(services, "diff")
    assert (status, document["changes"]) == (0, [])
    assert document["settings"] == "those of the running proxy, from http://127.0.0.1:10249/configz"
    status, document = call(services, "doctor")
    found = {f["check"]: f for f in document["findings"]}
    assert {f["check"] for f in document["findings"] if f["verdict"] != "ok"} <= {"DNS"}, document
    assert found["settings"]["summary"] == "those of the running proxy, from http://127.0.0.1:10249/configz"
    assert found["node"]["summary"] == "Node node1 was found"


def test_doctor_with_other_settings_than_the_proxy_reports_it_and_not_that_all_is_wrong(
    services: ServedServices,
) -> None:
    settings = [f"--manifests={services.folder.path}", "--hostname-override=node1"]
    status, document = call(services, "doctor", *settings)
    found = {finding["check"]: finding for finding in document["findings"] if finding["verdict"] != "ok"}
    assert (status, found.keys()) == (0, {"settings", "drift", "DNS"}), found
    assert found["settings"]["evidence"] == [
        "--cluster-cidr is 10.244.0.0/16,fd00:10:244::/48 there, and empty here"
    ]
    assert found["drift"]["verdict"] == "not checked"
    status, document = call(services, "doctor", *settings, *DEFAULT_PROXY_ARGS)
    assert {f["check"] for f in document["findings"] if f["verdict"] != "ok"} == {"DNS"}


def nft(services: ServedServices, command: str) -> None:
    services.lab.run(services.lab.nodes[0], ["nft", command])


def step(services: ServedServices, *steps: IpvsStep) -> None:
    with netns.inside(services.lab.nodes[0].netns):
        ipvs = Ipvs()
        assert ipvs.apply(steps) == []
        ipvs.close()


def ip(services: ServedServices, command: str) -> None:
    services.lab.run(services.lab.nodes[0], ["ip", *command.split()])


ENDPOINT = Destination(parse_ip("10.244.1.10"), 8080)
STRANGER = Destination(parse_ip("10.244.9.9"), 8080)
ELEMENT = f"{WEB4} . tcp . 80"
BREAKS: dict[str, tuple[Callable[[ServedServices], None], set[tuple[str, str, str]]]] = {
    "an element that is gone": (
        lambda services: nft(services, f"delete element inet ipvsproxy frontends4 {{ {ELEMENT} }}"),
        {("add", "element", f"frontends4 {{ {ELEMENT} }}")},
    ),
    "an element too many": (
        lambda services: nft(services, "add element inet ipvsproxy pod_cidrs4 { 10.99.0.0/16 }"),
        {("remove", "element", "pod_cidrs4 { 10.99.0.0/16 }")},
    ),
    "a range that is gone": (
        lambda services: nft(
            services, "delete element inet ipvsproxy allowed4 { 203.0.113.57 . tcp . 80 . 192.0.2.100 }"
        ),
        {("add", "element", "allowed4 { 203.0.113.57 . tcp . 80 . 192.0.2.100 }")},
    ),
    "a place": (
        lambda services: nft(services, f"delete element inet ipvsproxy endpoints4 {{ {ELEMENT} . 1 }}"),
        {("add", "element", f"endpoints4 {{ {ELEMENT} . 1 }}")},
    ),
    "a mark": (
        lambda services: nft(services, f"delete element inet ipvsproxy short_frontends4 {{ {ELEMENT} }}"),
        {("add", "element", f"short_frontends4 {{ {ELEMENT} }}")},
    ),
    "a weight": (
        lambda services: step(services, IpvsStep(Verb.SET_DEST, WEB, None, (ENDPOINT,), DestinationAttributes(7))),
        {("change", "endpoint", str(ENDPOINT))},
    ),
    "an endpoint too few and one too many": (
        lambda services: step(
            services,
            IpvsStep(Verb.DEL_DEST, WEB, None, (ENDPOINT,)),
            IpvsStep(Verb.NEW_DEST, WEB, None, (STRANGER,)),
        ),
        {("add", "endpoint", str(ENDPOINT)), ("change", "endpoint", str(STRANGER))},
    ),
    "a server": (
        lambda services: step(services, IpvsStep(Verb.DEL_SERVICE, WEB)),
        {
            ("add", "server", str(WEB)),
            ("add", "endpoint", "10.244.1.10:8080"),
            ("add", "endpoint", "10.244.2.10:8080"),
        },
    ),
    "a VIP": (
        lambda services: ip(services, f"address del {WEB4}/32 dev kube-ipvs0"),
        {("add", "VIP", WEB4)},
    ),
    "a kernel setting": (
        lambda services: netns.set_sysctls(services.lab.nodes[0].netns, {"net/ipv4/vs/conntrack": 0}),
        {("change", "setting", "net.ipv4.vs.conntrack")},
    ),
}


OF_IPVS = ("a weight", "an endpoint too few and one too many", "a server")
OF_SHORT_PATH = ("a place", "a mark")


@pytest.mark.parametrize(
    ("services", "name"),
    [
        *(("ipvs", name) for name in BREAKS if name not in OF_SHORT_PATH),
        *(("auto", name) for name in BREAKS if name not in OF_IPVS),
    ],
    indirect=["services"],
)
def test_one_difference_is_found_and_left_as_it_is(services: ServedServices, name: str) -> None:
    break_it, wanted = BREAKS[name]
    stopped(services)
    break_it(services)
    status, found = diff(services)
    assert status == 1
    assert {(change["action"], change["object"], change["name"]) for change in found} == wanted
    assert diff(services) == (1, found)
    served_again(services)
    assert diff(services) == (0, [])


def stopped(services: ServedServices) -> None:
    """No program repairs anything meanwhile."""
    for proxy in services.lab.proxies:
        proxy.kill()


def served_again(services: ServedServices) -> None:
    services.serve()


def test_on_an_empty_node_everything_is_to_be_made_and_nothing_is(services: ServedServices) -> None:
    status, found = diff(services, node=1)
    assert status == 1
    assert {change["action"] for change in found if change["object"] != "setting"} == {"add"}
    made = {change["object"] for change in found}
    assert made >= {"link", "table", "server", "endpoint", "VIP", "element"}
    node = services.lab.nodes[1]
    assert "kube-ipvs0" not in services.lab.run(node, ["ip", "link"])
    assert services.lab.run(node, ["nft", "list", "tables"]) == ""
    assert diff(services, node=1) == (1, found)
