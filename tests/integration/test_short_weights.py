"""Weights on the short path: shares of new connections, and endpoints in maintenance."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.manifests import dual_slices
from tests.lab.probe import ENOUGH, Conversation, ProbeQuestion, spread
from tests.lab.published import balancer, cluster_ip, published
from tests.lab.short_services import PORTS, WEB, ShortServices, short_services
from tests.lab.waiting import eventually

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables"), pytest.mark.parametrize("family", [4, 6])]

LOCAL = 92
ASKED, PATIENCE = 320, 60.0
WITHIN = 50
"""Of the connections that an endpoint with three of four shares gets: more than six standard deviations."""


def weights(text: str, scheduler: str = "wrr") -> dict[str, str]:
    return {"scheduler": scheduler, "weights": text}


@pytest.fixture(scope="module")
def short(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortServices]:
    with short_services(session_lab, pathlib.Path(tmp_path_factory.mktemp("short"))) as services:
        yield services


def shares(short: ShortServices, asker: str, target: str) -> dict[str, float]:
    """Return the share of each endpoint as `explain` has it, by the name of its pod."""
    source = short.lab.host(asker).address(6 if "[" in target else 4)
    argv = [sys.executable, "-m", "ipvsproxy", "explain", source, target, "-o", "json"]
    answer = json.loads(netns.run(short.lab.nodes[0].netns, argv))
    pods = {short.lab.host(pod).address(family): pod for pod in ("p11", "p21", "p22") for family in (4, 6)}
    return {pods[row["endpoint"].rpartition(":")[0].strip("[]")]: row["share"] for row in answer["endpoints"]}


def target(address: str) -> str:
    return f"[{address}]:80" if ":" in address else f"{address}:80"


def is_about(count: int, expected: int) -> bool:
    return abs(count - expected) <= WITHIN


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_endpoints_get_their_shares(short: ShortServices, family: int, proto: str) -> None:
    short.put(WEB, "p11 p21", annotations=weights("p11=30,p21=10"))
    at = target(cluster_ip(WEB, family))
    eventually(lambda: shares(short, "p12", at) == {"p11": 0.75, "p21": 0.25})
    assert not short.has_server(family)
    found = spread(short.question("p12", family, proto), ASKED, PATIENCE)
    assert found.keys() == {"p11", "p21"}
    assert is_about(found["p11"], ASKED * 3 // 4), found
    assert sorted(short.weights(family)) == [("p11", 3), ("p21", 1)]


def test_each_audience_of_a_local_policy_has_its_shares(short: ShortServices, family: int) -> None:
    made = published("local", LOCAL, PORTS, externalTrafficPolicy="Local")
    made["metadata"]["annotations"] = {
        f"ipvsproxy.io/{name}": value for name, value in weights("p11=2,p21=6").items()
    }
    pods = [short.lab.host(pod) for pod in ("p11", "p21")]
    short.folder.write("local", made, *dual_slices(short.lab, "local", PORTS, pods))
    vip = balancer(LOCAL, family)
    eventually(lambda: shares(short, "p12", target(vip)) == {"p11": 0.25, "p21": 0.75})
    assert shares(short, "client", target(vip)) == {"p11": 1.0}
    ask = lambda who: spread(ProbeQuestion(short.lab.host(who).netns, vip, 80), ASKED, PATIENCE)  # noqa: E731
    found = ask("p12")
    assert found.keys() == {"p11", "p21"}
    assert is_about(found["p21"], ASKED * 3 // 4), found
    assert ask("client").keys() == {"p11"}
    short.folder.remove("local")


@pytest.mark.parametrize("scheduler", ["rr", "wrr"])
def test_an_endpoint_in_maintenance_keeps_its_connections(
    short: ShortServices, family: int, scheduler: str
) -> None:
    """Without limit, and no drain timeout counts: it is wanted."""
    annotations = {"scheduler": scheduler, "drain-timeout": "1s"}
    short.put(WEB, "p11 p21", annotations=annotations)
    eventually(lambda: short.names("p12", family) == {"p11", "p21"})
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(short.question("p12", family), 4)) for _ in range(ENOUGH)]
        first = [talk.ask().name for talk in talks]
        assert set(first) == {"p11", "p21"}
        short.put(WEB, "p11 p21", annotations=annotations | {"weights": "p11=0"})
        eventually(lambda: short.names("p12", family) == {"p21"})
        assert ("p11", "maintenance", first.count("p11")) in short.endpoints(family)
        short.put(WEB, "p11 p21", annotations=annotations | {"weights": "p11=0,p21=0"})
        eventually(lambda: short.names("p12", family) == {"refused"})
        eventually(lambda: {state for _, state, _ in short.endpoints(family)} == {"maintenance"})
        short.wait_for_all(family)
        assert [talk.ask().name for talk in talks] == first
        short.put(WEB, "p11 p21", annotations=annotations)
        eventually(lambda: short.names("p12", family) == {"p11", "p21"})
        assert [talk.ask().name for talk in talks] == first
    assert not short.has_server(family)


def test_weights_change_under_connections_and_lead_to_ipvs_where_they_are_too_large(
    short: ShortServices, family: int
) -> None:
    short.put(WEB, "p11 p21", annotations=weights("p11=3"))
    at = target(cluster_ip(WEB, family))
    eventually(lambda: shares(short, "p12", at) == {"p11": 0.75, "p21": 0.25})
    with contextlib.ExitStack() as stack:
        talks, names = [], []
        for text, by_ipvs in (("p11=1", False), ("p11=64", True), ("p11=1,p21=63", False), ("p11=64", True)):
            more = [stack.enter_context(Conversation(short.question("p12", family), 4)) for _ in range(4)]
            talks += more
            names += [talk.ask().name for talk in more]
            short.put(WEB, "p11 p21", annotations=weights(text))
            short.wait_for_all(family)
            if by_ipvs:
                assert short.has_server(family)
            assert [talk.ask().name for talk in talks] == names
    assert set(names) <= {"p11", "p21"}


def test_the_scheduler_decides_whether_weights_count(short: ShortServices, family: int) -> None:
    at = target(cluster_ip(WEB, family))
    for scheduler, first in (("rr", 0.5), ("wrr", 0.75), ("rr", 0.5), ("wrr", 0.75)):
        short.put(WEB, "p11 p21", annotations=weights("p11=3", scheduler))
        eventually(lambda first=first: shares(short, "p12", at) == {"p11": first, "p21": 1 - first})
    short.put(WEB, "p11", annotations=weights("p11=3"))
    eventually(lambda: short.names("p12", family) == {"p11"})
