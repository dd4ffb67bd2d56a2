"""Live changes under traffic: nothing is lost but what the change itself demands.

Each row of the table is a change that is made and taken back under load from outside client, pod and node, over
both families. What it demands is written down: `ends` are the ways in that are not there afterwards, whose
connections are cut at once and which answer nobody; `closed` are those that stay, with their connections, and
answer no new ones. Every other way must lose neither a request nor a connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator

import pytest

from tests.conformance.forked import ForkedProxy
from tests.conformance.proxy import Zygote
from tests.lab.lab import Lab
from tests.lab.load import Load
from tests.lab.manifests import ManifestFolder, port, service
from tests.lab.probe import QUESTION, Conversation, ProbeQuestion, probe, probe_many
from tests.lab.transitions import BALANCERS, CLUSTER_IPS, EXTERNAL, Stage, Web, without

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PACE = 0.4


@dataclasses.dataclass(frozen=True)
class Transition:
    """From one state to another, and back."""

    before: Web
    after: Web
    ends: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()


LOCAL, BOTH_LOCAL = Web(external_policy="Local"), Web(external_policy="Local", internal_policy="Local")
FAR = Web(pods="p21 p22")
OUTSIDE = ("client -> LoadBalancer", "client -> NodePort", "client -> external IP")
CHANGES = {
    # A frontend that goes is cut; so the ways in of a type are demanded to end with it.
    "ClusterIP, NodePort": Transition(
        Web("NodePort", external_ip=False), Web("ClusterIP", external_ip=False), ends=("NodePort",)
    ),
    "NodePort, LoadBalancer": Transition(Web(), Web("NodePort"), ends=("LoadBalancer",)),
    "ClusterIP, LoadBalancer": Transition(Web(), Web("ClusterIP"), ends=("NodePort", "LoadBalancer")),
    # Policies choose endpoints for new connections.
    "external policy": Transition(Web(), LOCAL),
    "internal policy": Transition(Web(), Web(internal_policy="Local")),
    "both policies": Transition(Web(), BOTH_LOCAL),
    "internal policy beside an external Local": Transition(LOCAL, BOTH_LOCAL),
    "external policy beside an internal Local": Transition(Web(internal_policy="Local"), BOTH_LOCAL),
    "external policy without local endpoint": Transition(FAR, dataclasses.replace(FAR, external_policy="Local"),
                                                     closed=OUTSIDE),
    "both policies without local endpoint": Transition(
        FAR, dataclasses.replace(FAR, external_policy="Local", internal_policy="Local"),
        closed=(*OUTSIDE, "-> ClusterIP"),
    ),
    "data path": Transition(Web(data_path="ipvs"), Web(data_path="auto")),
    "target ports renumbered on the short path": Transition(
        Web(data_path="auto"), Web(target=9090, data_path="auto")
    ),
    "affinity": Transition(Web(), Web(affinity="ClientIP")),
    "ports renamed": Transition(Web(), Web(port_name="web")),
    # A port number that goes is a frontend that goes; the NodePort is the same one.
    "ports renumbered": Transition(Web(), Web(port=8000), ends=("ClusterIP", "LoadBalancer", "external IP")),
    "target ports renumbered": Transition(Web(), Web(target=9090)),
    "NodePort renumbered": Transition(Web(), Web(node_port=32090), ends=("NodePort",)),
    "a pod in the host's network instead of one of its own": Transition(Web(), Web(pods="node1 p21")),
}  # fmt: skip


def on_short_path(change: Transition) -> Transition:
    webs = (dataclasses.replace(web, data_path="auto") for web in (change.before, change.after))
    return dataclasses.replace(change, **dict(zip(("before", "after"), webs, strict=True)))


OF_IPVS = ("data path", "affinity", "target ports renumbered on the short path")
SHORT = {f"{name}, short path": on_short_path(change) for name, change in CHANGES.items() if name not in OF_IPVS}
CHANGES |= SHORT
"""On the short path the same is demanded."""
LOCAL_PATHS = {
    "data path with a Local policy": Transition(
        dataclasses.replace(LOCAL, data_path="ipvs"), dataclasses.replace(LOCAL, data_path="auto")
    ),
    "data path with both Local": Transition(
        dataclasses.replace(BOTH_LOCAL, data_path="auto"), dataclasses.replace(BOTH_LOCAL, data_path="ipvs")
    ),
}
CHANGES |= LOCAL_PATHS
# Much like others of the table: left to the long run.
RARELY = {
    "NodePort, LoadBalancer", "internal policy", "external policy", "external policy beside an internal Local",
    "external policy without local endpoint", "NodePort renumbered", "target ports renumbered on the short path",
    "data path with a Local policy", *SHORT,
} - {"both policies, short path", "ClusterIP, NodePort, short path"}  # fmt: skip


def some_slow(names: dict[str, object]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in RARELY else name for name in names]


@pytest.fixture(scope="module")
def stage(session_lab: Lab, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("transitions")))
    folder.write_nodes(lab)
    for host in (*lab.pods, lab.nodes[0]):
        for target in (8080, 9090):
            lab.responder.listen(host, target)
            lab.responder.listen(host, target, "udp")
    ForkedProxy(zygote, lab, lab.nodes[0], folder.path, "--ipvs-sync-period=2s").started()
    stage = Stage(lab, folder)
    yield stage
    stage.close()
    lab.take_back()


@contextlib.contextmanager
def conversations(ways: dict[str, ProbeQuestion]) -> Iterator[dict[str, Conversation]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Conversation(question, timeout=20))
            for name, question in ways.items()
            if question.proto == "tcp"
        }


def answers(talks: dict[str, Conversation]) -> dict[str, str]:
    return {name: (result := talk.ask()).name or result.outcome for name, talk in talks.items()}


def still_served(talks: dict[str, Conversation], seconds: float = 2.0) -> list[str]:
    """Return which of some connections that should be cut still answer; waits once for all."""
    for talk in talks.values():
        with contextlib.suppress(OSError):
            talk.socket.sendall(QUESTION)
    deadline = time.monotonic() + seconds
    return [name for name, talk in talks.items() if _answers(talk, deadline - time.monotonic())]


def _answers(talk: Conversation, seconds: float) -> bool:
    talk.socket.settimeout(max(0.01, seconds))
    try:
        return bool(talk.socket.recv(65536))
    except OSError:
        return False


def outcomes(ways: dict[str, ProbeQuestion], timeout: float = 2.0) -> dict[str, str]:
    results = probe_many(ways.values(), timeout)
    return {name: result.outcome for name, result in zip(ways, results, strict=True)}


def among(ways: dict[str, ProbeQuestion], parts: tuple[str, ...]) -> dict[str, ProbeQuestion]:
    return {name: question for name, question in ways.items() if any(part in name for part in parts)}


@pytest.mark.parametrize("name", some_slow(CHANGES))
def test_a_change_loses_only_what_it_demands(stage: Stage, name: str) -> None:
    change = CHANGES[name]
    stage.put(change.before)
    ways = change.before.ways(stage.lab)
    ends, closed = among(ways, change.ends), among(ways, change.closed)
    kept = without(ways, (*change.ends, *change.closed))
    assert set(outcomes(ways, timeout=10).values()) == {"answered"}
    with conversations(ends) as ending, conversations(closed) as open_ones:
        assert "timeout" not in answers(ending).values()
        served_by = answers(open_ones)
        with Load(kept, every=PACE) as load:
            stage.put(change.after)
            load.mark("changed")
            assert answers(open_ones) == served_by
            assert still_served(ending) == []
            assert not {"answered"} & set(outcomes(ends | closed).values())
            new = without(change.after.ways(stage.lab), change.closed)
            assert set(outcomes(new, timeout=10).values()) == {"answered"}
            with conversations(kept) as made_meanwhile:
                served_meanwhile = answers(made_meanwhile)
                stage.put(change.before)
                load.mark("changed back")
                assert answers(made_meanwhile) == served_meanwhile
            time.sleep(1)
        assert load.failures == [], load.report()
        assert set(outcomes(ways, timeout=10).values()) == {"answered"}
        assert answers(open_ones) == served_by


def test_udp_clients_of_an_internal_view_go_on_when_it_goes(stage: Stage) -> None:
    """A UDP client sends from one port all the time, and conntrack leads it where it went at first."""
    stage.put(BOTH_LOCAL)
    question = BOTH_LOCAL.ways(stage.lab)["pod -> LoadBalancer UDP"]
    talks = [Conversation(question, timeout=8) for _ in range(4)]
    served_by = [talk.ask().name for talk in talks]
    assert set(served_by) == {"p11", "p21"}
    for web in (LOCAL, BOTH_LOCAL, Web(internal_policy="Local"), Web()):
        stage.put(web)
        assert [talk.ask().name for talk in talks] == served_by, web
    for talk in talks:
        talk.socket.close()


def test_ports_renamed_in_the_service_first(stage: Stage) -> None:
    """Until the endpoints follow, none has a port of that name: new connections are refused, open ones go on."""
    stage.put(Web())
    renamed = Web(port_name="web")
    with conversations(Web().ways(stage.lab)) as talks:
        served_by = answers(talks)
        stage.folder.write("web", renamed.service(), *Web().slices(stage.lab))
        stage.settle()
        assert set(outcomes(Web().ways(stage.lab), timeout=10).values()) == {"refused"}
        assert answers(talks) == served_by
        stage.put(renamed)
        assert set(outcomes(Web().ways(stage.lab), timeout=10).values()) == {"answered"}
        assert answers(talks) == served_by


@contextlib.contextmanager
def nothing_lost(stage: Stage, ways: dict[str, ProbeQuestion]) -> Iterator[Load]:
    with Load(ways, every=PACE) as load:
        yield load
        time.sleep(1)
    assert load.failures == [], load.report()


def test_a_vip_moves_to_a_real_link_and_back(stage: Stage) -> None:
    """As keepalived does it. For milliseconds no link has the VIP: TCP repeats what is lost then, UDP does not."""
    stage.put(Web())
    ways = Web().ways(stage.lab)
    with nothing_lost(stage, {name: way for name, way in ways.items() if way.proto != "udp"}) as load:
        for verb in ("add", "del"):
            stage.ip(f"address {verb} {BALANCERS[0]}/32 dev eth0", f"address {verb} {EXTERNAL}/32 dev eth0")
            load.mark(verb)
            stage.settle()
            on_link = stage.lab.run(stage.node, ["ip", "-o", "address", "show", "kube-ipvs0"])
            assert (f"{BALANCERS[0]}/" in on_link) is (verb == "del")
            assert set(outcomes(ways, timeout=10).values()) == {"answered"}


def other(name: str, created: str, *, external: bool) -> list[object]:
    made = service(name, [port(80, 8080, "TCP", "http")], [f"10.96.8.{len(name)}"],
                   externalIPs=[EXTERNAL] if external else [])  # fmt: skip
    made["metadata"]["creationTimestamp"] = created
    return made


MOVES = {
    "removed, then added": [(False, False), (False, True)],
    "added, then removed": [(True, True), (False, True)],
    "in one step": [(False, True)],
}


@pytest.mark.parametrize("steps", MOVES)
@pytest.mark.parametrize("heir", [pytest.param("older", marks=pytest.mark.slow), "younger"])
def test_an_external_ip_moves_between_services(stage: Stage, steps: str, heir: str) -> None:
    """Removed first, there is a moment in which nobody has the address: that demands its connections."""
    lab = stage.lab
    ages = {"older": "2026-01-01T00:00:00Z", "younger": "2026-03-01T00:00:00Z"}

    def put(first: bool, second: bool) -> None:
        one = Web(type="ClusterIP", external_ip=first, pods="p11")
        made = one.service()
        made["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
        two = other("second", ages[heir], external=second)
        slices = [piece for piece in Web(pods="p21").slices(lab) if piece["addressType"] == "IPv4"]
        for piece in slices:
            piece["metadata"] = {"name": "second", "namespace": "default",
                                 "labels": {"kubernetes.io/service-name": "second"}}  # fmt: skip
        stage.folder.write("web", made, two, *one.slices(lab), *slices)
        stage.settle()

    put(True, False)
    gap = steps == "removed, then added"
    ways = Web(type="ClusterIP").ways(lab)
    external = among(ways, ("external IP",))
    with conversations(external) as talks:
        assert set(answers(talks).values()) == {"p11"}
        with nothing_lost(stage, without(ways, ("external IP",)) if gap else ways):
            for first, second in MOVES[steps]:
                put(first, second)
                if gap:
                    assert still_served(talks) == []
                else:
                    assert set(answers(talks).values()) == {"p11"}
            assert {probe(lab.client.netns, EXTERNAL, 80).name for _ in range(3)} == {"p21"}


ADDRESS = "192.0.2.77"


def test_a_node_address_is_added_replaced_and_removed(stage: Stage) -> None:
    """Connections to an address that goes end with it; all others go on."""
    stage.put(Web())
    lab, another = stage.lab, "192.0.2.78"
    with nothing_lost(stage, Web().ways(lab)):
        stage.ip(f"address add {ADDRESS}/24 dev eth0")
        stage.until(lambda: stage.serves(ADDRESS, 32080), "a new address is not served")
        assert probe(lab.client.netns, ADDRESS, 32080).outcome == "answered"
        with conversations({"NodePort": ProbeQuestion(lab.client.netns, ADDRESS, 32080)}) as talks:
            assert set(answers(talks).values()) <= {"p11", "p21"}
            stage.ip(f"address add {another}/24 dev eth0", f"address del {ADDRESS}/24 dev eth0")
            stage.until(lambda: stage.serves(another, 32080), "a new address is not served")
            stage.until(lambda: not stage.serves(ADDRESS, 32080), "an old address is still served")
            assert probe(lab.client.netns, another, 32080).outcome == "answered"
            assert still_served(talks) == []
        stage.ip(f"address del {another}/24 dev eth0")
        stage.until(lambda: not stage.serves(another, 32080), "an old address is still served")


def test_kube_ipvs0_is_set_up_and_down(stage: Stage) -> None:
    """The kernel takes the IPv6 addresses of a link that goes down: new connections fail until they are back."""
    stage.put(Web())
    ways = Web().ways(stage.lab)
    address = ProbeQuestion(stage.lab.client.netns, CLUSTER_IPS[1], 80)
    with conversations(among(ways, ("IPv6",))) as talks:
        served_by = answers(talks)
        with nothing_lost(stage, without(ways, ("IPv6",))):
            for state in ("up", "down"):
                stage.ip(f"link set kube-ipvs0 {state}")
                stage.until(lambda: outcomes({"": address})[""] == "answered", "IPv6 addresses are not back")
        assert answers(talks) == served_by


def test_the_scheduler_is_changed_by_a_restart(stage: Stage, zygote: Zygote) -> None:
    """A server has no scheduler for a moment then (docs/internals-packets.md), and refuses new connections.

    No open one is lost, and no new one at any other time.
    """
    stage.put(Web())
    changing: list[tuple[float, float]] = []
    with Load(Web().ways(stage.lab), every=PACE) as load:
        for scheduler in ("lc", "mh", "rr"):
            (running,) = [proxy for proxy in stage.lab.proxies if proxy.is_running()]
            running.stop()
            began = load.now()
            ForkedProxy(
                zygote, stage.lab, stage.node, stage.folder.path, f"--ipvs-scheduler={scheduler}",
                "--ipvs-sync-period=2s",
            ).started()  # fmt: skip
            changing.append((began, load.now()))
            load.mark(scheduler)
            stage.settle()
            assert stage.schedulers() == {scheduler}
        time.sleep(1)
    others = [
        failure
        for failure in load.failures
        if (failure.what, failure.reason[:7]) != ("request", "refused")
        or not any(begin < failure.at < end for begin, end in changing)
    ]
    assert others == [], load.report()
