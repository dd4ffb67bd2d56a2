"""Looks at the addresses of other nodes: what is asked, when, and how much all nodes together ask for."""

import json

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip, parse_cidr, parse_ip
from ipvsproxy.exchange.inbox import Inbox
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.client import KubeClient
from ipvsproxy.kube.other_nodes import FAILED, WHOLE_UP_TO, OtherNodes, QueryLimits, look
from ipvsproxy.kube.pace import Pace
from ipvsproxy.plan.addresses import OtherNodeAddresses
from tests.support.apiserver import ApiServer, node


@pytest.fixture(name="server")
def _server():
    with ApiServer() as server:
        server.put(node("node1", "192.0.2.1"))
        yield server


@pytest.fixture(name="client")
def _client(server, tmp_path):
    client = KubeClient(server.write_kubeconfig(tmp_path / "kubeconfig"), "", "node1")
    client.connect()
    yield client
    client.close()


def dual(name, *addresses, **more):
    made = node(name)
    made["status"]["addresses"] = [{"type": "InternalIP", "address": text} for text in addresses]
    made["status"]["addresses"] += [{"type": kind, "address": text} for kind, text in more.items()]
    made["spec"] = {"podCIDRs": ["10.244.2.0/24"]}
    return made


def test_of_a_few_nodes_all_addresses_and_ranges_of_pods_are_read(server, client):
    server.put(dual("node2", "192.0.2.2", "2001:db8::2", ExternalIP="203.0.113.2", Hostname="node2"))
    found = look(client, "node1")
    assert set(map(format_ip, found.nodes)) == {"192.0.2.2", "2001:db8::2", "203.0.113.2"}
    assert found.pod_cidrs == (parse_cidr("10.244.1.0/24"), parse_cidr("10.244.2.0/24"))
    table, whole = server.requests
    assert table.headers["Accept"] == "application/json;as=Table;v=v1;g=meta.k8s.io"
    # From the cache of the server, and all nodes, not only ours.
    assert table.query == {"resourceVersion": "0", "includeObject": "None"}
    assert whole.query == {"resourceVersion": "0"}


def test_of_many_nodes_only_the_table_is_read(server, client):
    for number in range(2, WHOLE_UP_TO + 2):
        server.put(dual(f"node{number}", f"192.0.2.{number}", f"2001:db8::{number}"))
    found = look(client, "node1")
    assert found.nodes == {parse_ip(f"192.0.2.{n}") for n in range(2, WHOLE_UP_TO + 2)}
    assert (found.pod_cidrs, len(server.requests)) == ((), 1)
    assert 50 * (WHOLE_UP_TO + 1) ** 2 < found.load < 500 * (WHOLE_UP_TO + 1) ** 2


class TableReply:
    def __init__(self, body, status=200):
        self.headers = {}
        self.body, self.status, self.closed = body, status, False

    def read(self):
        return self.body

    def close(self):
        self.closed = True


COLUMNS = [{"name": name} for name in ("Name", "Internal-IP", "External-IP")]


def table(*rows, columns=COLUMNS, kind="Table"):
    shown = [{"cells": list(row), "object": None} for row in rows]
    return json.dumps({"kind": kind, "columnDefinitions": columns, "rows": shown}).encode()


NO_NODES = b'{"kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": []}'


class RepeatedApi:
    """A way to an API server that answers what it was told to, again and again the last one."""

    def __init__(self, *bodies, whole=NO_NODES):
        self.bodies, self.whole, self.asked = list(bodies), whole, 0

    def node_table(self):
        self.asked += 1
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        if isinstance(body, Exception):
            raise body
        return TableReply(body) if isinstance(body, bytes) else body

    def nodes(self):
        return TableReply(self.whole)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'{"kind": "Table"}', NO_NODES, table(kind="Status"), table(columns=COLUMNS[:2]),
        TableReply(b'{"message": "no"}', 403), TableReply(b"", 406), RequestFailed("no way"),
    ],
)  # fmt: skip
def test_what_is_no_table_of_nodes_is_a_request_error(body):
    with pytest.raises(RequestFailed):
        look(RepeatedApi(body), "node1")


def test_odd_rows_affect_nothing_else():
    odd = [
        ["x"],
        ["a", 5, None],
        ["b", "<none>", "nonsense"],
        ["c", "fe80::1", "127.0.0.1"],
        ["d", "192.0.2.4", ""],
    ]
    assert look(RepeatedApi(table(*odd)), "node1").nodes == {parse_ip("192.0.2.4")}


class SteppedNeighbourhood:
    """A neighbourhood on a clock that stands still until it is moved; chance gives the latest moment."""

    def __init__(self, *bodies, whole=NO_NODES):
        self.now, self.inbox, self.api = 1000.0, Inbox(), RepeatedApi(*bodies, whole=whole)
        limits = QueryLimits(pace=Pace(wait=FAILED, clock=lambda: self.now, uniform=max))
        self.here = OtherNodes(self.api, "node1", self.inbox, limits)

    def step(self, seconds=0.0):
        """Move the clock, do what is due and return what was told and the seconds until the next step."""
        self.now += seconds
        wait = self.here.step()
        return self.inbox.take(0), wait


ONE = table(["node2", "192.0.2.2", "<none>"])
SEEN = OtherNodeAddresses(frozenset((parse_ip("192.0.2.2"),)))


def test_the_first_look_is_at_once_and_without_questions_there_is_no_other():
    stepped = SteppedNeighbourhood(ONE)
    assert stepped.step() == ([SEEN], float("inf"))
    assert stepped.step(1e6) == ([], float("inf"))


def test_a_question_is_answered_by_a_look_that_begins_later_and_looks_go_on_from_then():
    stepped = SteppedNeighbourhood(ONE)
    stepped.step()
    stepped.now += 60
    assert [stepped.here.ask(), stepped.here.ask()] == [1, 2]
    told, wait = stepped.step()
    assert (told, wait < 1e-3) == ([], True)
    told, wait = stepped.step(wait)
    assert told == [replace(SEEN, answers=2)]
    assert wait == pytest.approx(1.2 * 300)
    assert stepped.step(wait) == ([replace(SEEN, answers=2)], wait)
    assert stepped.api.asked == 3


def of(nodes):
    """A table of so many nodes, as large as a real one."""
    addresses = (format_ip((0x0A000000 + number).to_bytes(4)) for number in range(nodes))
    return table(*([f"{address}.example.internal", address, "<none>" + " " * 300] for address in addresses))


@pytest.mark.parametrize("nodes", [101, 1000, 5000])
def test_however_many_nodes_there_are_the_load_of_all_has_a_bound(nodes):
    body = of(nodes)
    load = nodes * len(body)
    stepped = SteppedNeighbourhood(body)
    stepped.step()
    # A question long after: all nodes of the cluster look within a time in which the servers send 50 MB/s.
    stepped.now += 1e5
    stepped.here.ask()
    told, wait = stepped.step()
    spread = load / 50e6
    assert (told, wait) == ([], pytest.approx(min(spread, 10.0)))
    while stepped.api.asked < 2:
        _, wait = stepped.step(wait)
    assert stepped.now == pytest.approx(1000 + 1e5 + spread)
    # Questions again and again, as of a Service that is changed each second: 2.5 MB/s.
    looks, began = stepped.api.asked, stepped.now
    while stepped.now < began + 4000:
        stepped.here.ask()
        stepped.step(1.0)
    assert (stepped.api.asked - looks) * load <= 2.5e6 * 4000 + load
    assert stepped.api.asked > looks


def test_a_question_waits_no_longer_than_ten_seconds_for_its_answer():
    stepped = SteppedNeighbourhood(of(5000))
    stepped.step()
    stepped.now += 1e5
    ticket = stepped.here.ask()
    assert stepped.step() == ([], pytest.approx(10.0))
    told, wait = stepped.step(10.0)
    assert [(found.answers, len(found.nodes)) for found in told] == [(ticket, 5000)]
    assert wait > 100


def test_a_look_that_fails_is_reported_once_answers_and_is_repeated():
    stepped = SteppedNeighbourhood(
        RequestFailed("no route to host"), RequestFailed("no route to host"), TableReply(b"", 403), ONE
    )
    with capture_logs() as lines:
        waits = [stepped.step() for _ in range(1)]
        assert [told for told, _ in waits] == [[OtherNodeAddresses(None)]]
        for _ in range(3):
            waits.append(stepped.step(waits[-1][1]))
    assert [round(wait, 3) for _, wait in waits[:3]] == [1.0, 2.0, 4.0]
    assert waits[3][0] == [SEEN]
    assert [(line["event"], line.get("err")) for line in lines] == [
        (messages.NODES_UNAVAILABLE, "no route to host"),
        (messages.NODES_UNAVAILABLE, "403 no reason given"),
        (messages.NODES_LISTED_AGAIN, None),
    ]


def test_a_look_that_fails_tells_again_what_was_known():
    stepped = SteppedNeighbourhood(ONE, RequestFailed("away"))
    stepped.step()
    stepped.now += 1.0
    stepped.here.ask()
    stepped.step()
    assert stepped.step(1.0)[0] == [replace(SEEN, answers=1)]
    assert stepped.api.asked == 2


def test_a_question_after_a_failure_is_asked_within_a_second():
    stepped = SteppedNeighbourhood(RequestFailed("away"), RequestFailed("away"), RequestFailed("away"), ONE)
    for _ in range(3):
        _, wait = stepped.step(300)
    assert wait == 4.0
    stepped.here.ask()
    assert stepped.step() == ([], 1.0)
    assert stepped.step(1.0)[0] == [replace(SEEN, answers=1)]


def test_what_no_one_foresaw_ends_nothing():
    stepped = SteppedNeighbourhood(ValueError("odd"))
    with capture_logs() as lines:
        assert stepped.step() == ([OtherNodeAddresses(None)], 1.0)
    assert lines[0]["event"] == messages.NODES_CRASHED


def test_the_thread_looks_answers_and_ends(client, server):
    server.put(node("node2", "192.0.2.2"))
    inbox = Inbox()
    here = OtherNodes(client, "node1", inbox)
    here.start()
    assert inbox.take(10)[0].nodes == {parse_ip("192.0.2.2")}
    server.put(node("node3", "192.0.2.3"))
    ticket = here.ask()
    (found,) = inbox.take(10)
    assert (found.answers, found.nodes) == (ticket, {parse_ip("192.0.2.2"), parse_ip("192.0.2.3")})
    here.stop()
