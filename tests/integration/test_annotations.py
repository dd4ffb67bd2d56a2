"""What a Service may ask of IPVS for itself: its scheduler, single UDP packets, weights and limits of its pods."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pytest

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.config.annotation_values import SCHEDULERS
from ipvsproxy.kernel.ipvs import PROBE, Ipvs
from ipvsproxy.plan.state import FrontendKey
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, node_object, port, service
from tests.lab.probe import Conversation, ProbeQuestion, spread
from tests.lab.proxy import LabProxy
from tests.lab.published import cluster_ip
from tests.lab.waiting import Patience, eventually, receive
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 97
PODS = ("p11", "p21")
PORTS = [port(80, 8080, "TCP", "web"), port(81, 8081, "UDP", "syslog")]
PACKETS = 12


class AnnotatedService:
    """One Service with two endpoints, and the proxy of node1."""

    def __init__(self, lab: Lab, folder: ManifestFolder, proxy: LabProxy) -> None:
        self.lab, self.folder, self.proxy, self.warnings = lab, folder, proxy, 0

    def put(
        self,
        *,
        affinity: bool = False,
        zones: Sequence[str] = ("", ""),
        pods: Sequence[str] = PODS,
        ending: Sequence[str] = (),
        of_slices: Mapping[str, str] | None = None,
        **annotations: str,
    ) -> None:
        made = service("own", PORTS, [cluster_ip(NUMBER, f) for f in (4, 6)])
        made["metadata"]["annotations"] = {
            f"ipvsproxy.io/{name.replace('_', '-')}": value for name, value in annotations.items()
        }
        if affinity:
            made["spec"]["sessionAffinity"] = "ClientIP"
        hosts = [self.lab.host(name) for name in pods]
        slices = [
            endpoint_slice(
                "own",
                PORTS,
                [
                    _endpoint(self.lab, host, f, ends=host.name in ending) | {"zone": zone}
                    for host, zone in zip(hosts, zones, strict=False)
                ],
                family=f,
            )
            for f in (4, 6)
        ]
        for piece in slices:
            piece["metadata"]["annotations"] = dict(of_slices or {})
        self.folder.write("own", made, *slices)

    @contextlib.contextmanager
    def restarted(self, *more: str) -> Iterator[None]:
        """Run the proxy of node1 with more flags, and as before in the end."""
        self._run([*DEFAULT_PROXY_ARGS, *more])
        try:
            yield
        finally:
            self._run(DEFAULT_PROXY_ARGS)

    def _run(self, arguments: Sequence[str]) -> None:
        self.proxy.kill()
        self.warnings = 0
        self.proxy = self.lab.proxy(self.lab.nodes[0], self.folder.path, arguments)

    def next_warning(self) -> dict[str, object]:
        """Return the next line that says what a Service does not get."""
        self.warnings += 1
        return self.proxy.wait_for(messages.SERVED_IN_PART, self.warnings)

    def question(self, family: int) -> ProbeQuestion:
        return ProbeQuestion(self.lab.host("p12").netns, cluster_ip(NUMBER, family), 80)

    def has_server(self, family: int) -> bool:
        with netns.inside(self.lab.nodes[0].netns):
            opened = Ipvs()
        try:
            return FrontendKey(parse_ip(cluster_ip(NUMBER, family)), 6, 80) in opened.servers()
        finally:
            opened.close()

    def weights(self, family: int) -> dict[str, int]:
        """Return the weight of each pod in IPVS."""
        key = FrontendKey(parse_ip(cluster_ip(NUMBER, family)), 6, 80)
        with netns.inside(self.lab.nodes[0].netns):
            opened = Ipvs()
        with contextlib.closing(opened):
            found = opened.destinations(key)
        names = {parse_ip(self.lab.host(name).address(family)): name for name in PODS}
        return {names[to.address]: attributes.weight for to, attributes in found.items()}

    def share(self, family: int) -> dict[str, int]:
        """How many of so many connections each pod answers."""
        return dict(spread(self.question(family), PACKETS))

    def calls(self, family: int, client: str, names: Iterable[str]) -> set[str]:
        """Send a SIP message of each call from a socket of its own; return who has answered."""
        to, found = (cluster_ip(NUMBER, family), 81), set()
        for name in names:
            with contextlib.closing(netns.open_socket(self.lab.host(client).netns, to[0], "udp")) as asking:
                asking.sendto(f"INVITE sip:a@b SIP/2.0\r\nCall-ID: {name}@lab\r\n\r\n".encode(), to)
                try:
                    found.add(json.loads(receive(asking, Patience(4)))["name"])
                except OSError:  # one that was on its way during a change
                    found.add("nobody")
        return found

    def answered_tcp(self, family: int) -> set[str]:
        """Who answers a client, connection by connection, each from another port."""
        return set(spread(ProbeQuestion(self.lab.host("p12").netns, cluster_ip(NUMBER, family), 80), PACKETS))

    def answered_udp(self, family: int) -> set[str]:
        """Where answers to packets of one socket come from; it takes them from everybody."""
        names = {self.lab.host(name).address(family): name for name in PODS}
        to = (cluster_ip(NUMBER, family), 81)
        found = set()
        with contextlib.closing(netns.open_socket(self.lab.host("p12").netns, to[0], "udp")) as asking:
            asking.settimeout(4)
            with contextlib.suppress(TimeoutError):
                for _ in range(PACKETS):
                    asking.sendto(b"who\n", to)
                    found.add(asking.recvfrom(4096)[1][0])
        return {names.get(source, source) for source in found}


def _endpoint(lab: Lab, host: LabHost, family: int, *, ends: bool) -> ApiObject:
    return endpoint(lab, host, family=family, ready=not ends, serving=not ends, terminating=ends)


@pytest.fixture(scope="module")
def annotated(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnotatedService]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("annotations")))
    nodes = [node_object(node) for node in lab.nodes]
    nodes[0]["metadata"]["labels"]["topology.kubernetes.io/zone"] = "here"
    folder.write("nodes", *nodes)
    for name in PODS:
        for proto, number in (("tcp", 8080), ("udp", 8081)):
            lab.responder.listen(lab.host(name), number, proto)
    proxy = lab.proxy(lab.nodes[0], folder.path, DEFAULT_PROXY_ARGS)
    made = AnnotatedService(lab, folder, proxy)
    yield made
    made.proxy.kill()
    lab.clean_nodes()
    lab.responder.clear()


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_one_socket_go_to_all_endpoints(annotated: AnnotatedService, family: int) -> None:
    annotated.put(one_packet="true")
    eventually(lambda: annotated.answered_udp(family) == set(PODS))
    # One endpoint, that of the first packet: its answers come from the VIP, as those of any Service.
    annotated.put()
    eventually(lambda: annotated.answered_udp(family) == {cluster_ip(NUMBER, family)})


@pytest.mark.parametrize("family", [4, 6])
def test_a_scheduler_of_its_own(annotated: AnnotatedService, family: int) -> None:
    annotated.put()
    eventually(lambda: annotated.answered_tcp(family) == set(PODS))
    with Conversation(ProbeQuestion(annotated.lab.host("p12").netns, cluster_ip(NUMBER, family), 80)) as kept:
        name = kept.ask().name
        annotated.put(scheduler="sh")
        eventually(lambda: len(annotated.answered_tcp(family)) == 1)
        annotated.put()
        eventually(lambda: annotated.answered_tcp(family) == set(PODS))
        assert kept.ask().name == name


@pytest.mark.parametrize("family", [4, 6])
def test_weights_of_pods(annotated: AnnotatedService, family: int) -> None:
    annotated.put(scheduler="wrr", weights="p11=3")
    eventually(lambda: annotated.share(family) == {"p11": 9, "p21": 3})
    annotated.put(scheduler="wrr", weights="p*=1,p21=2")
    eventually(lambda: annotated.share(family) == {"p11": 4, "p21": 8})
    annotated.put()
    eventually(lambda: annotated.share(family) == {"p11": 6, "p21": 6})


@pytest.mark.parametrize("family", [4, 6])
def test_the_weight_of_an_endpoint_slice(annotated: AnnotatedService, family: int) -> None:
    annotated.put(scheduler="wrr", weights="p11=1", of_slices={"service.cilium.io/weight": "3"})
    eventually(lambda: annotated.share(family) == {"p11": 3, "p21": 9})
    annotated.put(scheduler="wrr", weights="p11=1", of_slices={"ipvsproxy.io/weight": "0"})
    eventually(lambda: annotated.share(family) == {"p11": 12})
    annotated.put()
    eventually(lambda: annotated.share(family) == {"p11": 6, "p21": 6})


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_of_weight_0_keeps_its_connections_and_gets_no_more(
    annotated: AnnotatedService, family: int
) -> None:
    annotated.put()
    eventually(lambda: annotated.answered_tcp(family) == set(PODS))
    with Conversation(annotated.question(family)) as kept:
        name = kept.ask().name
        annotated.put(weights=f"{name}=0")
        eventually(lambda: annotated.answered_tcp(family) == set(PODS) - {name})
        assert kept.ask().name == name
        annotated.put()
        eventually(lambda: annotated.answered_tcp(family) == set(PODS))
        assert kept.ask().name == name


@pytest.mark.parametrize("family", [4, 6])
def test_an_endpoint_gets_no_more_connections_than_its_limit(annotated: AnnotatedService, family: int) -> None:
    annotated.put()
    eventually(lambda: annotated.has_server(family))
    annotated.folder.remove("own")  # what the kernel has counted so far goes with the virtual server
    eventually(lambda: not annotated.has_server(family))
    annotated.put(max_connections="2")
    eventually(lambda: annotated.weights(family).keys() == {*PODS})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(Conversation(annotated.question(family))) for _ in range(4)]
        assert sorted(talk.ask().name for talk in held) == ["p11", "p11", "p21", "p21"]
        with pytest.raises(OSError, match="refused"), Conversation(annotated.question(family)):
            pass
        annotated.put()
        eventually(lambda: len(annotated.answered_tcp(family)) == 2)
        annotated.put(max_connections="3")
        assert all(talk.ask().outcome == "answered" for talk in held)


@pytest.mark.parametrize("family", [4, 6])
def test_with_sh_port_the_client_port_counts(annotated: AnnotatedService, family: int) -> None:
    annotated.put(scheduler="sh")
    eventually(lambda: len(annotated.answered_tcp(family)) == 1)
    annotated.put(scheduler="sh", scheduler_flags="sh-port,sh-fallback")
    eventually(lambda: annotated.answered_tcp(family) == set(PODS))


@pytest.mark.parametrize("family", [4, 6])
def test_clients_of_one_network_get_one_endpoint(annotated: AnnotatedService, family: int) -> None:
    """Two pods of one node, both within the prefix of its pods."""
    clients = [
        ProbeQuestion(annotated.lab.host(name).netns, cluster_ip(NUMBER, family), 80) for name in ("p11", "p12")
    ]

    def answered() -> set[str]:
        return {name for question in clients for name in spread(question, 4)}

    annotated.put(affinity=True)
    eventually(lambda: all(len(spread(question, 4)) == 1 for question in clients))
    annotated.put(affinity=True, affinity_netmask="24,64")
    eventually(lambda: len(answered()) == 1)
    annotated.put()
    eventually(lambda: answered() == set(PODS))


@pytest.mark.parametrize("family", [4, 6])
def test_endpoints_of_the_same_zone_get_more(annotated: AnnotatedService, family: int) -> None:
    annotated.put(scheduler="wrr", same_zone_weight="3", zones=("here", "there"))
    eventually(lambda: annotated.share(family) == {"p11": 9, "p21": 3})
    annotated.put(scheduler="wrr", same_zone_weight="3", zones=("there", "here"))
    eventually(lambda: annotated.share(family) == {"p11": 3, "p21": 9})


@pytest.mark.parametrize("family", [4, 6])
def test_a_new_endpoint_gets_its_share_step_by_step(annotated: AnnotatedService, family: int) -> None:
    annotated.put()
    eventually(lambda: annotated.has_server(family))
    annotated.folder.remove("own")
    eventually(lambda: not annotated.has_server(family))
    wish = {"scheduler": "wrr", "slow_start": "2m"}
    annotated.put(pods=("p11",), **wish)
    eventually(lambda: annotated.weights(family) == {"p11": 10})
    annotated.put(**wish)
    eventually(lambda: annotated.weights(family) == {"p11": 10, "p21": 1})
    assert dict(spread(annotated.question(family), 11))["p11"] >= 9
    eventually(lambda: 1 < annotated.weights(family)["p21"] < 10)
    reached = annotated.weights(family)["p21"]
    with annotated.restarted():
        assert reached <= annotated.weights(family)["p21"] < 10
        annotated.put(scheduler="wrr", slow_start="1s")
        eventually(lambda: annotated.weights(family) == {"p11": 10, "p21": 10})
        assert annotated.share(family) == {"p11": 6, "p21": 6}


@pytest.mark.parametrize("family", [4, 6])
def test_a_default_of_the_node_counts_where_a_service_has_no_annotation(
    annotated: AnnotatedService, tmp_path: pathlib.Path, family: int
) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text(
        "apiVersion: ipvsproxy.io/v1alpha1\nkind: IPVSProxyConfiguration\n"
        "serviceDefaults: {scheduler: wrr, weights: 'p11=3'}\n"
    )
    annotated.put()
    with annotated.restarted(f"--extra-config={extra}"):
        eventually(lambda: annotated.share(family) == {"p11": 9, "p21": 3})
        annotated.put(weights="*=1")
        eventually(lambda: annotated.share(family) == {"p11": 6, "p21": 6})
        annotated.put()
        eventually(lambda: annotated.share(family) == {"p11": 9, "p21": 3})
    eventually(lambda: annotated.share(family) == {"p11": 6, "p21": 6})


def test_a_scheduler_that_the_kernel_does_not_have_leaves_the_service_served(annotated: AnnotatedService) -> None:
    with netns.inside(annotated.lab.nodes[0].netns), contextlib.closing(Ipvs()) as opened:
        missing = next((name for name in SCHEDULERS if not opened.has(name)), None)
        assert PROBE not in opened.servers()
    if missing is None:
        pytest.skip("this kernel has every scheduler")
    annotated.put()
    eventually(lambda: annotated.answered_tcp(4) == set(PODS))
    with Conversation(annotated.question(4)) as kept:
        name = kept.ask().name
        annotated.put(scheduler=missing)
        warning = annotated.next_warning()
        assert f"the kernel has no scheduler {missing}" in str(warning["reason"])
        assert annotated.answered_tcp(4) == set(PODS)
        assert kept.ask().name == name


@pytest.mark.parametrize("family", [4, 6])
def test_messages_of_a_call_get_one_endpoint(annotated: AnnotatedService, family: int) -> None:
    """From pods with addresses of their own; where the kernel lacks the engine, clients are known by these."""
    with netns.inside(annotated.lab.nodes[0].netns), contextlib.closing(Ipvs()) as opened:
        is_there = opened.has("pe_sip")
    annotated.put()
    eventually(lambda: annotated.answered_tcp(family) == set(PODS))
    annotated.put(affinity=True, affinity_engine="sip")
    if not is_there:
        assert "the kernel has no persistence engine sip" in str(annotated.next_warning()["reason"])
        eventually(lambda: annotated.calls(family, "p12", ["a"] * 4) in ({"p11"}, {"p21"}))
        return
    eventually(lambda: annotated.calls(family, "p12", map(str, range(8))) == {*PODS})
    for call in ("one", "two", "three", "four"):
        found = [annotated.calls(family, client, [call] * 2) for client in ("p12", "p22", "client")]
        assert len(set.union(*found)) == 1, found


def test_weights_with_a_scheduler_that_does_not_know_them_are_reported(annotated: AnnotatedService) -> None:
    annotated.put(scheduler="lc", weights="p11=3")
    warning = annotated.next_warning()
    assert warning["service"] == "default/own"
    assert "no effect with the scheduler lc" in warning["reason"]


def test_a_scheduler_that_is_none_costs_only_the_wish(annotated: AnnotatedService) -> None:
    annotated.put(scheduler="round-robin")
    told = annotated.proxy.wait_for(messages.MANIFEST_PART_IGNORED)
    assert told["object"] == "default/own"
    assert "metadata.annotations[ipvsproxy.io/scheduler]: 'round-robin'" in told["err"]
    assert annotated.answered_tcp(4) == set(PODS)


@pytest.mark.parametrize("family", [4, 6])
def test_connections_last_as_long_as_the_pod(annotated: AnnotatedService, family: int) -> None:
    """With the drain timeout `pod`: while it ends they go on, and when it is gone they are cut."""
    annotated.put(drain_timeout="pod")
    eventually(lambda: set(spread(annotated.question(family), 8)) == {*PODS})
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(annotated.question(family))) for _ in range(8)]
        names = [talk.ask().name for talk in talks]
        assert set(names) == {*PODS}
        annotated.put(drain_timeout="pod", ending=("p11",))
        eventually(lambda: set(spread(annotated.question(family), 8)) == {"p21"})
        assert [talk.ask().name for talk in talks] == names
        annotated.put(drain_timeout="pod", pods=("p21",))
        ended = [talk for talk, name in zip(talks, names, strict=True) if name == "p11"]
        eventually(lambda: all(talk.ask().name == "" for talk in ended))
        assert all(talk.ask().name == "p21" for talk in talks if talk not in ended)
