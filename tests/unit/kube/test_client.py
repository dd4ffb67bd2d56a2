"""ApiSource and its client against a real HTTP server."""

import base64
import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import pytest
import urllib3
import yaml
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.exchange.inbox import ApiServers, Inbox, Kind, Listed, Removed, SourceFailed, kinds
from ipvsproxy.kube import answer_frame, connection, kubeconfig
from ipvsproxy.kube import client as client_module
from ipvsproxy.kube.api import RequestFailed, TooLarge
from ipvsproxy.kube.client import ClientLimits, KubeClient
from ipvsproxy.kube.kubeconfig import KubeconfigError, TokenFile
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.source import ApiSource
from ipvsproxy.plan.addresses import OtherNodeAddresses
from tests.support.apiserver import ApiFault, ApiServer, endpoint_slice, named, node, service
from tests.support.clock import Clock

FAST = Pace(wait=ExponentialWait(0.01, 0.05))
SHORT = ClientLimits(connect=60, read=0.3, slack=0.3)


@pytest.fixture(name="server")
def _server():
    with ApiServer() as server:
        yield server


@pytest.fixture(name="logs")
def _logs():
    with capture_logs() as logs:
        yield logs


class SourceRun:
    """A source that runs, and the objects it has told of."""

    def __init__(self, source):
        self.inbox, self.source = Inbox(), source
        self.objects = {kind: {} for kind in source.kinds}
        self.lists = dict.fromkeys(source.kinds, 0)
        self.failed = ""
        self.servers = ()
        source.start(self.inbox)

    def take(self):
        for event in self.inbox.take(0.2):
            if isinstance(event, SourceFailed):
                self.failed = event.reason
            elif isinstance(event, Listed):
                self.objects[event.kind] = dict(event.objects)
                self.lists[event.kind] += 1
            elif isinstance(event, Removed):
                self.objects[event.kind].pop(event.key, None)
            elif isinstance(event, ApiServers):
                self.servers = event.servers
            elif isinstance(event, OtherNodeAddresses):
                self.neighbours = event
            else:
                self.objects[event.kind][event.key] = event.object

    def wait(self, condition, seconds=60):
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, (self.objects, self.failed)
            self.take()

    def wait_for(self, *names):
        """Wait until exactly these Services are there."""
        self.wait(lambda: set(self.objects[Kind.SERVICE]) == {f"default/{name}" for name in names})

    def wait_for_lists(self, count=1):
        self.wait(lambda: all(seen >= count for seen in self.lists.values()))


@pytest.fixture(name="follow")
def _follow(tmp_path):
    views = []

    def start(server, *, pace=FAST, limits=None, path=None, master="", **settings):
        path = path or server.write_kubeconfig(tmp_path / "kubeconfig")
        views.append(SourceRun(ApiSource(path, master, "node1", limits, pace, **settings)))
        return views[-1]

    yield start
    for view in views:
        view.source.stop()
    left = [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("reflector", "api", "neigh"))
    ]
    assert left == []


@pytest.fixture(name="client")
def _client(server, tmp_path):
    client = KubeClient(server.write_kubeconfig(tmp_path / "kubeconfig"), "", "node1")
    client.connect()
    yield client
    client.close()


def ip(view, name):
    return view.objects[Kind.SERVICE][f"default/{name}"].cluster_ips[0][-1]


def test_all_kinds_with_their_selections(server, follow):
    server.put(service("web"))
    server.put(service("headless", clusterIP="None"))
    server.put(service("other", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    server.put(endpoint_slice())
    server.put(endpoint_slice("headless-1", labels={"service.kubernetes.io/headless": ""}))
    server.put(node("node1"))
    server.put(node("node2"))
    view = follow(server)
    view.wait_for_lists()
    assert {kind: set(found) for kind, found in view.objects.items()} == {
        Kind.SERVICE: {"default/web"},
        Kind.ENDPOINT_SLICE: {"default/web-abc"},
        Kind.NODE: {"node1"},
    }
    server.wait_for_watches(3)
    for watch in (request for request in server.requests if request.watch):
        assert watch.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
    assert {request.headers["User-Agent"] for request in server.requests} == {"ipvsproxy"}
    packed = {request.watch: request.headers["Accept-Encoding"] for request in server.requests}
    assert packed == {False: "gzip", True: "identity"}


def test_nothing_is_compressed_where_the_kubeconfig_forbids_it(server, follow, tmp_path):
    path = server.write_kubeconfig(tmp_path / "k", cluster={"disable-compression": True})
    follow(server, path=path).wait_for_lists()
    assert {request.headers["Accept-Encoding"] for request in server.requests} == {"identity"}


def test_namespaces_and_the_pods_of_this_node_where_there_are_tenants(server, follow):
    server.put(named("Namespace", "blue", labels={"a": "b"}))
    server.put(named("Pod", "here", "blue", spec={"nodeName": "node1"}, status={"podIPs": [{"ip": "10.244.1.7"}]}))
    server.put(
        named("Pod", "there", "blue", spec={"nodeName": "node2"}, status={"podIPs": [{"ip": "10.244.2.7"}]})
    )
    view = follow(server, kinds=kinds(tenants=True))
    view.wait_for_lists()
    assert view.objects[Kind.NAMESPACE]["blue"].labels == {"a": "b"}
    assert set(view.objects[Kind.POD]) == {"blue/here"}


def test_all_pods_that_have_not_ended_where_that_is_so_set(server, follow):
    for name, phase in (("here", "Running"), ("there", "Pending"), ("done", "Succeeded"), ("dead", "Failed")):
        status = {"phase": phase, "podIPs": [{"ip": "10.244.2.7"}]}
        server.put(named("Pod", name, "blue", spec={"nodeName": f"node-{name}"}, status=status))
    view = follow(server, kinds=kinds(tenants=True), all_pods=True)
    view.wait_for_lists()
    assert set(view.objects[Kind.POD]) == {"blue/here", "blue/there"}


def test_changes_arrive(server, follow):
    view = follow(server)
    view.wait_for_lists()
    server.put(service("a", clusterIP="10.96.0.1"))
    view.wait_for("a")
    server.put(service("a", clusterIP="10.96.0.2"))
    view.wait(lambda: ip(view, "a") == 2)
    server.put(service("b"))
    server.delete("Service", "a")
    view.wait_for("b")
    server.put(endpoint_slice())
    view.wait(lambda: view.objects[Kind.ENDPOINT_SLICE])
    assert view.lists[Kind.SERVICE] == 1


def test_a_service_changes_hands(server, follow):
    server.put(service("a"))
    view = follow(server)
    view.wait_for("a")
    server.put(service("a", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    view.wait_for()
    server.put(service("a"))
    view.wait_for("a")
    server.put(service("a", clusterIP="None"))
    view.wait_for()


def test_a_list_comes_in_pages(server, follow):
    for number in range(1201):
        server.put(service(f"s{number}"))
    view = follow(server)
    view.wait_for(*(f"s{number}" for number in range(1201)))
    lists = [r for r in server.requests if r.kind == "Service" and not r.watch]
    assert [(r.query["limit"], "continue" in r.query) for r in lists] == [
        ("500", False),
        ("500", True),
        ("500", True),
    ]
    assert not any("resourceVersion" in r.query for r in lists)


def test_a_continue_token_expires(server, follow):
    for number in range(600):
        server.put(service(f"s{number}"))
    first = server.page

    def expire_once(kind, api_version, query):
        answer = first(kind, api_version, query)
        if kind == "Service" and answer[1]["metadata"].get("continue"):
            server.page = first
            server._pages.clear()
        return answer

    server.page = expire_once
    view = follow(server)
    view.wait_for(*(f"s{number}" for number in range(600)))
    assert view.lists[Kind.SERVICE] == 1
    lists = [r.query for r in server.requests if r.kind == "Service" and not r.watch]
    asked = [(query["limit"], "continue" in query) for query in lists]
    assert asked == [("500", False), ("500", True), ("0", False)]


def test_bookmarks_are_where_the_next_watch_begins(server, follow):
    view = follow(server, pace=Pace(watch=(1, 1), wait=ExponentialWait(0.01, 0.05)))
    view.wait_for_lists()
    server.wait_for_watches(3)
    server.bookmark("Service")
    version = str(server.version)
    server.wait_for(lambda: any(r.watch and r.query["resourceVersion"] == version for r in server.requests))
    assert view.lists[Kind.SERVICE] == 1


NO_END = 1 << 30


@pytest.mark.parametrize("as_status", [True, False])
def test_a_version_that_is_gone(server, follow, as_status):
    server.gone_as_status = as_status
    server.put(service("a"))
    server.put(service("b"))
    view = follow(server)
    view.wait_for("a", "b")
    server.wait_for_watches(3)
    server.fail(503, watch=True, times=NO_END)
    server.hang_up()
    server.delete("Service", "a")
    server.put(service("c"))
    server.compact()
    server.be_well()
    view.wait_for("b", "c")
    assert view.lists[Kind.SERVICE] == 2


def test_a_connection_cut_in_an_event(server, follow):
    view = follow(server)
    view.wait_for_lists()
    server.wait_for_watches(3)
    server.send("Service", b'{"type": "ADDED", "object": {"metadata": {"name": "half"')
    server.hang_up()
    server.put(service("a"))
    view.wait_for("a")
    assert view.lists[Kind.SERVICE] == 1


@pytest.mark.parametrize("length", [None, 500])
def test_a_list_cut_short_is_not_acted_on(server, follow, length):
    server.put(service("a"))
    body = b'{"kind": "ServiceList", "metadata": {"resourceVersion": "1"}, "items": []}'
    server.cut(body, kind="Service", watch=False, length=length)
    view = follow(server)
    view.wait_for_lists()
    assert set(view.objects[Kind.SERVICE]) == {"default/a"}


def test_garbage_in_a_watch(server, follow, logs):
    view = follow(server)
    view.wait_for_lists()
    server.wait_for_watches(3)
    server.send("Service", b"<html>\n")
    server.put(service("a"))
    view.wait_for("a")
    assert any("malformed watch event" in entry.get("err", "") for entry in logs)


def test_garbage_for_a_list(server, follow):
    server.put(service("a"))
    server.garble(b"<html>please log in</html>", times=3)
    server.garble(b"{}", times=3)
    view = follow(server)
    view.wait_for("a")


def test_retry_after_is_honoured(server, follow):
    server.fail(429, headers={"Retry-After": "1"}, kind="Service")
    server.put(service("a"))
    started = time.monotonic()
    follow(server).wait_for("a")
    assert time.monotonic() - started >= 1
    assert len([r for r in server.requests if r.kind == "Service" and not r.watch]) == 2


def test_a_redirect_is_not_followed(server, follow):
    server.fail(302, headers={"Location": "http://127.0.0.1:1/"}, kind="Service")
    server.put(service("a"))
    follow(server).wait_for("a")


def test_the_server_restarts_with_its_history(server, follow, logs):
    server.put(service("a"))
    view = follow(server)
    view.wait_for("a")
    server.wait_for_watches(3)
    server.stop()
    view.wait(lambda: len([e for e in logs if e["event"] == messages.WATCH_FAILED]) == 3)
    server.start()
    server.put(service("b"))
    view.wait_for("a", "b")
    assert view.lists[Kind.SERVICE] == 1
    assert messages.WATCH_BACK in [entry["event"] for entry in logs]


@pytest.mark.parametrize("version", [5, 5000])
def test_the_server_restarts_with_other_versions(server, follow, version):
    server.put(service("a"))
    server.put(service("b"))
    view = follow(server)
    view.wait_for("a", "b")
    server.wait_for_watches(3)
    server.stop()
    del server.objects["Service"]["default", "a"]
    server.start()
    server.restart(version=version)
    server.put(service("c"))
    view.wait_for("b", "c")
    server.delete("Service", "b")
    view.wait_for("c")


def test_a_server_that_does_not_answer(server, follow, logs):
    server.stall(kind="Service", watch=False)
    server.put(service("a"))
    follow(server, limits=SHORT).wait_for("a")
    assert any("timed out" in entry.get("err", "") for entry in logs)


def test_a_watch_that_falls_silent(server, follow, logs):
    server.stall(kind="Service", watch=True, times=2)
    view = follow(server, limits=SHORT, pace=Pace(watch=(0, 0), wait=ExponentialWait(0.01, 0.05)))
    view.wait(lambda: any("timed out" in entry.get("err", "") for entry in logs))
    server.put(service("a"))
    view.wait_for("a")


def test_a_server_that_is_not_there_yet(tmp_path, follow, free_port):
    server = ApiServer(port=free_port())
    view = follow(server, path=server.write_kubeconfig(tmp_path / "k"))
    view.take()
    assert not view.failed
    with server:
        server.put(service("a"))
        view.wait_for("a")


# Streams


@pytest.mark.parametrize("headers", [{"Transfer-Encoding": "chunked"}, {"Connection": "close"}])
def test_an_event_is_there_at_once_however_the_body_is_framed(server, client, headers):
    go_on = threading.Event()

    def act(handler, _):
        handler.begin(200, headers)
        handler.close_connection = True
        for data in (b'{"half', b'": 1}\n'):
            if "Connection" in headers:
                handler.wfile.write(data)
            else:
                handler.chunk(data)
        go_on.wait(60)
        if "Connection" not in headers:
            handler.chunk(b"")

    server._faults.append(ApiFault(act, None, True, 1))
    reply = client.watch(Kind.SERVICE, "1", 30)
    chunks = reply.chunks()
    data = b""
    while not data.endswith(b"\n"):
        data += next(chunks)
    assert data == b'{"half": 1}\n'
    go_on.set()
    assert list(chunks) == []
    reply.close()


def _answering(respond):
    """A server of one answer, by a function that is given the connection after the request."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with suppress(OSError), listener, listener.accept()[0] as connection:
            connection.recv(1 << 16)
            respond(connection)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_what_a_compressed_answer_becomes_is_bounded():
    """256 MiB of zeros are 256 KiB then."""
    packed = gzip.compress(bytes(256 << 20), 1)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    client = KubeClient(None, _answering(lambda connection: connection.sendall(head + packed)), "node1")
    client.connect()
    response = client.list(Kind.SERVICE, 500, "", "")
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="more than 1048576 bytes"):
            response.read(1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
        response.close()
        client.close()


@pytest.mark.parametrize("framed", ["Content-Length", "Transfer-Encoding"])
def test_a_compressed_list_is_decompressed(framed):
    body = json.dumps({"items": [service(f"web-{number}") for number in range(2000)]}).encode()
    packed = gzip.compress(body)
    if framed == "Content-Length":
        head, content = f"{framed}: {len(packed)}", packed
    else:
        pieces = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
        head = f"{framed}: chunked"
        content = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    sent = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n{head}\r\n\r\n".encode() + content
    client = KubeClient(None, _answering(lambda connection: connection.sendall(sent)), "node1")
    client.connect()
    response = client.list(Kind.SERVICE, 500, "", "")
    assert response.read() == body
    response.close()
    client.close()


def _assert_not_complete(answer, ended):
    """Read a list that an answer never ends, and have it end."""
    client = KubeClient(None, _answering(answer), "node1", ClientLimits(read=30, whole=0.2))
    client.connect()
    response = client.list(Kind.SERVICE, 500, "", "")
    with pytest.raises(RequestFailed, match=r"not complete within 0\.2 s"):
        response.read()
    ended.set()
    response.close()
    client.close()


def test_an_answer_that_dribbles_has_an_end():
    ended = threading.Event()

    def dribble(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not ended.wait(0.02):
            connection.sendall(b" ")

    _assert_not_complete(dribble, ended)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([b"X-N: " + b"x" * 30_000 + b"\r\n"] * 3, "the headers of the answer are larger than 65536 bytes"),
        ([b"x" * 70_000], "the headers of the answer are larger than 65536 bytes"),
        ([b"X-%d: 1\r\n" % n for n in range(101)], "got more than 100 headers"),
    ],
)
def test_headers_of_an_answer_are_bounded_in_number_and_size(lines, reason):
    def answer(connection):
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"".join(lines))
            connection.recv(1)

    client = KubeClient(None, _answering(answer), "node1", ClientLimits(read=30))
    client.connect()
    with pytest.raises(RequestFailed, match=reason):
        client.list(Kind.SERVICE, 500, "", "")
    client.close()


@pytest.mark.parametrize("piece", [b"x", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_headers_that_dribble_have_an_end(piece, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(answer_frame, "FRAME_SECONDS", 0.2)

    def dribble(connection):
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 100 Continue\r\nX-Slow: ")
            while not ended.wait(0.02):
                connection.sendall(piece)

    client = KubeClient(None, _answering(dribble), "node1", ClientLimits(read=30))
    client.connect()
    with pytest.raises(RequestFailed, match=r"headers of the answer were not complete within 0\.2 s"):
        client.list(Kind.SERVICE, 500, "", "")
    ended.set()
    client.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"


@pytest.mark.parametrize("trailers", [[b"X-N: " + b"x" * 30_000 + b"\r\n"] * 4, [b"X: 1\r\n"] * 20_000])
def test_trailers_of_an_answer_are_bounded_in_number_and_size(trailers):
    def answer(connection):
        with suppress(OSError):
            connection.sendall(CHUNKED + b"0\r\n" + b"".join(trailers))
            connection.recv(1)

    client = KubeClient(None, _answering(answer), "node1", ClientLimits(read=30))
    client.connect()
    response = client.list(Kind.SERVICE, 500, "", "")
    with pytest.raises(RequestFailed, match="trailers of the answer are larger than 65536 bytes"):
        response.read()
    response.close()
    client.close()


@pytest.mark.parametrize("piece", [b"X: 1\r\n", b"x"])
@pytest.mark.parametrize("begin", [b"0\r\n", b"2;"])
def test_what_dribbles_beside_the_content_of_an_answer_has_an_end(begin, piece, monkeypatch):
    ended = threading.Event()

    def dribble(connection):
        with suppress(OSError):
            connection.sendall(CHUNKED + begin)
            while not ended.wait(0.02):
                connection.sendall(piece.strip() if begin == b"2;" else piece)

    client = KubeClient(None, _answering(dribble), "node1", ClientLimits(read=30))
    client.connect()
    response = client.watch(Kind.SERVICE, "1", 300)
    monkeypatch.setattr(answer_frame, "FRAME_SECONDS", 0.2)  # the headers had their time
    with pytest.raises(RequestFailed, match=r"trailers of the answer were not complete within 0\.2 s"):
        list(response.chunks())
    ended.set()
    response.close()
    client.close()


def test_a_watch_may_be_silent_for_longer_than_headers_may_take(monkeypatch):
    clock, go_on = Clock(0.0), threading.Event()
    monkeypatch.setattr(answer_frame, "time", SimpleNamespace(monotonic=clock))

    def answer(connection):
        connection.sendall(CHUNKED)
        go_on.wait(60)
        connection.sendall(b"2\r\n[]\r\n0\r\nX-Last: 1\r\n\r\n")

    client = KubeClient(None, _answering(answer), "node1", ClientLimits(read=60))
    client.connect()
    pieces = client.watch(Kind.SERVICE, "1", 300).chunks()
    assert next(filter(None, pieces)) == b"{}"
    clock.now += 2 * answer_frame.FRAME_SECONDS
    go_on.set()
    assert b"".join(pieces) == b"[]"
    client.close()


EMPTY_BLOCK = b"\0\0\0\xff\xff"
"""Of RFC 1951: stored, no bytes."""


def test_a_compressed_answer_without_content_has_an_end():
    ended = threading.Event()

    def dribble(connection):
        with suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 100000000\r\n\r\n")
            connection.sendall(gzip.compress(b"")[:10])
            while not ended.wait(0.02):
                connection.sendall(EMPTY_BLOCK)

    _assert_not_complete(dribble, ended)


def test_an_honest_answer_with_many_headers_is_read():
    lines = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 500) for n in range(90))

    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n" + lines + b"\r\n" + bytes(200_000))

    client = KubeClient(None, _answering(answer), "node1")
    client.connect()
    assert client.list(Kind.SERVICE, 500, "", "").read() == bytes(200_000)
    client.close()


def test_interrupting_a_read(server, client):
    reply = client.watch(Kind.SERVICE, "100", 30)

    def read():
        with suppress(RequestFailed):
            list(reply.chunks())

    ended = threading.Thread(target=read)
    ended.start()
    reply.interrupt()
    ended.join(60)
    assert not ended.is_alive()
    reply.close()
    reply.interrupt()  # too late is no harm


def test_connections_are_used_again(server, client):
    for _ in range(5):
        reply = client.list(Kind.SERVICE, 500, "", "")
        reply.read()
        reply.close()
    assert len(server._connections) == 1


# Credentials


def test_a_token(server, tmp_path, follow):
    server.bearer = "s3cret"
    follow(server, path=server.write_kubeconfig(tmp_path / "k", user={"token": "s3cret"})).wait_for_lists()


def test_a_token_file_wins_and_is_read_again_after_401(server, tmp_path, follow, monkeypatch, logs):
    monkeypatch.setattr(client_module, "MIN_REFRESH_SECONDS", 0)
    server.bearer = "hush-1"
    (tmp_path / "token").write_text("hush-1\n")
    path = server.write_kubeconfig(tmp_path / "k", user={"tokenFile": "token", "token": "stale"})
    view = follow(server, path=path)
    view.wait_for_lists()
    server.wait_for_watches(3)
    (tmp_path / "token").write_text("hush-2\n")
    server.bearer = "hush-2"
    server.hang_up()
    server.put(service("a"))
    view.wait_for("a")
    assert messages.CREDENTIALS_RELOADED in [entry["event"] for entry in logs]
    assert "hush" not in str(logs)


def test_a_token_file_is_read_again_in_time(tmp_path, logs):
    path, now = tmp_path / "token", [0.0]
    path.write_text("one")
    token = TokenFile(path, lambda: now[0])
    path.write_text("two")
    now[0] = 59
    assert token.token() == "one"
    now[0] = 60
    assert token.token() == "two"
    path.write_text("")
    now[0] = 120
    assert token.token() == "two"
    assert [entry["event"] for entry in logs] == [messages.TOKEN_KEPT]
    path.write_text("three")
    now[0] = 180
    assert token.token() == "three"


def test_many_refusals_read_the_configuration_once(server, client, monkeypatch):
    monkeypatch.setattr(client_module, "MIN_REFRESH_SECONDS", 3600)
    built = []
    monkeypatch.setattr(client_module, "build", lambda *args: built.append(args))
    client.refresh()
    assert built == []


def test_a_configuration_that_went_bad_is_not_taken(server, client, monkeypatch, tmp_path, logs):
    monkeypatch.setattr(client_module, "MIN_REFRESH_SECONDS", 0)
    (tmp_path / "kubeconfig").write_text("[")
    client.refresh()
    assert client.list(Kind.SERVICE, 1, "", "").read()
    assert [entry["event"] for entry in logs] == [messages.CREDENTIALS_KEPT]


def test_a_configuration_that_went_bad_is_not_read_with_every_refusal(client, tmp_path, logs, monkeypatch):
    """All kinds are refused at once, and a plugin may take its time."""
    monkeypatch.setattr(client_module, "MIN_REFRESH_SECONDS", 3600)
    client._built_at -= client_module.MIN_REFRESH_SECONDS
    (tmp_path / "kubeconfig").write_text("[")
    for _ in range(3):
        client.refresh()
    assert [entry["event"] for entry in logs] == [messages.CREDENTIALS_KEPT]


def test_an_exec_plugin(server, tmp_path, follow):
    server.bearer = "from-plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "from-plugin"},
    }
    (tmp_path / "plugin").write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    (tmp_path / "plugin").chmod(0o755)
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "interactiveMode": "Never"}
    path = server.write_kubeconfig(tmp_path / "k", user={"exec": plugin})
    follow(server, path=path).wait_for_lists()


def test_an_exec_plugin_is_asked_again_after_401(server, tmp_path, follow, monkeypatch):
    monkeypatch.setattr(client_module, "MIN_REFRESH_SECONDS", 0)
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}

    def issue(token):
        server.bearer = token
        (tmp_path / "answer").write_text(json.dumps({**credential, "status": {"token": token}}))

    issue("first")
    plugin = {"apiVersion": credential["apiVersion"], "command": "cat", "args": [str(tmp_path / "answer")]}
    view = follow(server, path=server.write_kubeconfig(tmp_path / "k", user={"exec": plugin}))
    view.wait_for_lists()
    server.wait_for_watches(3)
    issue("second")
    server.hang_up()
    server.put(service("a"))
    view.wait_for("a")


OPENSSL_REQUEST = [
    *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
    *("-days", "2", "-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1,DNS:fake"),
]


@pytest.fixture(name="certificates", scope="module")
def _certificates(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("no openssl")
    folder = tmp_path_factory.mktemp("pki")
    certificate, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        [openssl, *OPENSSL_REQUEST, "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.fixture(name="chain", scope="module")
def _chain(tmp_path_factory):
    """An intermediate authority, as openssl makes one that is asked for nothing more, and a certificate of it."""
    folder = tmp_path_factory.mktemp("chain")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    (folder / "ca").write_text("basicConstraints=CA:TRUE\n")
    (folder / "leaf").write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=root", "-keyout", "root.key", "-out", "root.crt")
    for name, signer, extensions in (("between", "root", "ca"), ("tls", "between", "leaf")):
        openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", "request")
        signed = ("-CA", f"{signer}.crt", "-CAkey", f"{signer}.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", "request", *signed, "-extfile", extensions, "-out", f"{name}.crt")
    return folder


def test_an_intermediate_authority_without_extensions_is_trusted_as_go_trusts_it(
    chain, tmp_path, follow, monkeypatch
):
    """As urllib3 has it from Python 3.13 on, the authority would have to have those of RFC 5280."""
    made = urllib3.util.ssl_.create_urllib3_context

    def strict(**kwargs):
        context = made(**kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr("urllib3.util.ssl_.create_urllib3_context", strict)
    monkeypatch.setattr("urllib3.connection.create_urllib3_context", strict)
    with ApiServer(tls=(chain / "tls.crt", chain / "tls.key")) as server:
        server.put(service("a"))
        authority = {"certificate-authority": str(chain / "between.crt")}
        view = follow(server, path=server.write_kubeconfig(tmp_path / "k", cluster=authority))
        view.wait_for("a")
        # Before the server: what it resets between connection and handshake, Python's ssl leaves unclosed.
        view.source.stop()


def test_each_connection_has_a_context_of_its_own(chain, tmp_path):
    """urllib3 loads certificates into it when it connects; OpenSSL does not allow that while others use it."""
    authority = {"certificate-authority": str(chain / "between.crt")}
    with ApiServer(tls=(chain / "tls.crt", chain / "tls.key")) as server:
        path = server.write_kubeconfig(tmp_path / "k", cluster=authority)
        api = connection.build(path, "").api
        pool = api.rest_client.pool_manager.connection_from_url(api.configuration.host)
        made = [pool.ConnectionCls(pool.host, pool.port, ca_certs=str(chain / "between.crt")) for _ in range(2)]
        for each in made:
            each.connect()
            each.close()
    assert made[0].ssl_context is not made[1].ssl_context


def test_tls_with_files_and_a_client_certificate(certificates, tmp_path, follow):
    certificate, key = certificates
    user = {"client-certificate": str(certificate), "client-key": str(key)}
    with ApiServer(tls=certificates) as server:
        server.put(service("a"))
        path = server.write_kubeconfig(
            tmp_path / "k", cluster={"certificate-authority": os.path.relpath(certificate, tmp_path)}, user=user
        )
        view = follow(server, path=path)
        view.wait_for("a")
        server.put(service("b"))
        view.wait_for("a", "b")
        view.source.stop()


def test_tls_with_inline_data_and_a_server_name(certificates, tmp_path, follow):
    certificate, key = (base64.b64encode(path.read_bytes()).decode() for path in certificates)
    cluster = {"certificate-authority-data": certificate, "tls-server-name": "fake"}
    user = {"client-certificate-data": certificate, "client-key-data": key}
    with ApiServer(tls=certificates) as server:
        view = follow(server, path=server.write_kubeconfig(tmp_path / "k", cluster=cluster, user=user))
        view.wait_for_lists()
        view.source.stop()


def _plugin_with(certificates, tmp_path):
    """A program that gives a certificate, as a user of a kubeconfig."""
    certificate, key = (path.read_text() for path in certificates)
    status = {"clientCertificateData": certificate, "clientKeyData": key}
    version = "client.authentication.k8s.io/v1"
    (tmp_path / "answer").write_text(
        json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    )
    return {"exec": {"apiVersion": version, "command": "cat", "args": [str(tmp_path / "answer")]}}


def test_a_certificate_from_an_exec_plugin(certificates, tmp_path, follow):
    with ApiServer(tls=certificates, client_authority=certificates[0]) as server:
        cluster = {"certificate-authority": str(certificates[0])}
        user = _plugin_with(certificates, tmp_path)
        view = follow(server, path=server.write_kubeconfig(tmp_path / "k", cluster=cluster, user=user))
        view.wait_for_lists()
        view.source.stop()


def test_answers_are_bounded_with_a_certificate_from_an_exec_plugin(server, certificates, tmp_path):
    user = _plugin_with(certificates, tmp_path)
    made = connection.build(server.write_kubeconfig(tmp_path / "k", user=user), "")
    made.signed({})
    pools = made.api.rest_client.pool_manager.pool_classes_by_scheme
    assert {pool.ConnectionCls.response_class for pool in pools.values()} == {answer_frame.Answer}


def test_tls_unchecked_is_allowed_and_reported(certificates, tmp_path, follow, logs):
    with ApiServer(tls=certificates) as server:
        path = server.write_kubeconfig(tmp_path / "k", cluster={"insecure-skip-tls-verify": True})
        view = follow(server, path=path)
        view.wait_for_lists()
        view.source.stop()
    assert messages.CERTIFICATE_UNVERIFIED in [entry["event"] for entry in logs]


def test_a_server_with_the_wrong_certificate_is_waited_for(certificates, tmp_path, follow, logs):
    with ApiServer(tls=certificates) as server:
        view = follow(server, path=server.write_kubeconfig(tmp_path / "k"))
        view.wait(lambda: any("CERTIFICATE_VERIFY_FAILED" in entry.get("err", "") for entry in logs))
        assert not view.failed
        view.source.stop()


def test_in_cluster(certificates, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("pod-token")
    shutil.copy(certificates[0], tmp_path / "ca.crt")
    monkeypatch.setattr(connection, "ACCOUNT", tmp_path)
    with ApiServer(tls=certificates) as server:
        server.bearer = "pod-token"
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server._port))
        view = SourceRun(ApiSource(None, "", "node1", None, FAST))
        assert view.source.check() == ""
        view.wait_for_lists()
        view.source.stop()


def test_not_in_a_cluster(monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    view = SourceRun(ApiSource(None, "", "node1"))
    view.wait(lambda: view.failed)
    assert view.failed.startswith("no kubeconfig and no --master, and the in-cluster configuration: ")
    assert view.source.check() == view.failed


def test_the_master_replaces_the_server(server, tmp_path, follow):
    path = server.write_kubeconfig(tmp_path / "k", cluster={"server": "http://127.0.0.1:1"})
    follow(server, path=path, master=server.url).wait_for_lists()


def test_a_master_alone(server):
    view = SourceRun(ApiSource(None, server.url.removeprefix("http://"), "node1", None, FAST))
    view.wait_for_lists()
    view.source.stop()


def base(**changes):
    config = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1"}}],
        "users": [{"name": "u", "user": {}}],
    }
    return yaml.safe_dump({**config, **changes})


def cluster(**fields):
    return base(clusters=[{"name": "k", "cluster": {"server": "https://192.0.2.1", **fields}}])


def user(**fields):
    return base(users=[{"name": "u", "user": fields}])


BAD_KUBECONFIGS = [
    (None, "No such file or directory"),
    ("a: [", "line 1, column 5: did not find expected node content, at the end of the file"),
    ("", "current-context: missing"),
    ("[]", "not a mapping"),
    (b"\xff\xfe\xff", "kubeconfig"),
    (base(**{"current-context": ""}), "current-context: missing"),
    (base(contexts=None), "contexts: none is named 'c'"),
    (base(contexts=[{"name": "c"}]), "clusters: none is named ''"),
    (base(clusters=[]), "clusters: none is named 'k'"),
    (cluster(server=""), "clusters[k].cluster.server: missing"),
    (
        cluster(**{"certificate-authority": "/none/ca"}),
        "clusters[k].cluster.certificate-authority: /none/ca: No such",
    ),
    (cluster(**{"certificate-authority-data": "%"}), "clusters[k].cluster.certificate-authority-data: not base64"),
    (cluster(**{"certificate-authority": "/dev/null"}), "/dev/null"),
    (cluster(**{"certificate-authority": "kubeconfig"}), "clusters[k].cluster.certificate-authority: "),
    (cluster(**{"certificate-authority-data": "YQ=="}), "clusters[k].cluster.certificate-authority: "),
    (
        user(**{"client-certificate": "kubeconfig", "client-key": "kubeconfig"}),
        "kubeconfig: no certificate or key in PEM can be read",
    ),
    (user(**{"client-certificate": "kubeconfig"}), "users[u].user.client-key: missing: a client certificate"),
    (user(**{"client-certificate": "/none/c"}), "users[u].user.client-certificate: /none/c: No such file"),
    (user(**{"client-key": "/none/k"}), "users[u].user.client-key: /none/k: No such file"),
    (user(tokenFile="/none/token"), "users[u].user.tokenFile: /none/token: No such file or directory"),
    (user(tokenFile="/dev/null"), "users[u].user.tokenFile: /dev/null: holds no token"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_KUBECONFIGS, ids=lambda case: str(case)[-40:])
def test_an_unusable_kubeconfig_fails_with_file_and_field(tmp_path, text, reason):
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    view = SourceRun(ApiSource(path, "", "node1"))
    view.wait(lambda: view.failed)
    assert reason in view.failed
    assert view.failed.startswith(f"kubeconfig {path}: ")
    assert view.source.check() == view.failed  # the same, before anything is changed


def test_a_kubeconfig_that_can_be_read_once_only_is_left_for_the_connection(tmp_path):
    os.mkfifo(tmp_path / "kubeconfig")
    assert ApiSource(tmp_path / "kubeconfig", "", "node1").check() == ""


def test_secrets_are_not_quoted(tmp_path):
    path = tmp_path / "kubeconfig"
    path.write_text(
        user(**{"client-key-data": "c2VjcmV0", "client-certificate-data": "c2VjcmV0", "token": "hush"})
    )
    with pytest.raises(KubeconfigError) as info:
        KubeClient(path, "", "n").connect()
    assert "c2VjcmV0" not in str(info.value)
    assert "hush" not in str(info.value)


def test_a_context_without_a_user(server, tmp_path, follow):
    path = server.write_kubeconfig(tmp_path / "k")
    config = json.loads(path.read_text())
    del config["contexts"][0]["context"]["user"]
    config["users"] = None
    path.write_text(json.dumps(config))
    follow(server, path=path).wait_for_lists()


def test_proxies_from_the_environment_and_the_kubeconfig(tmp_path, monkeypatch):
    path = tmp_path / "k"
    path.write_text(cluster(server="http://192.0.2.1", **{"proxy-url": "http://127.0.0.1:1"}))
    client = KubeClient(path, "", "n", ClientLimits(connect=2))
    client.connect()
    with pytest.raises(RequestFailed, match="proxy"):
        client.list(Kind.NODE, 1, "", "")
    client.close()
    path.write_text(cluster(server="http://192.0.2.1"))
    monkeypatch.setenv("http_proxy", "127.0.0.1:1")
    client.connect()
    with pytest.raises(RequestFailed, match="proxy"):
        client.list(Kind.NODE, 1, "", "")
    client.close()
    monkeypatch.setenv("NO_PROXY", "192.0.2.0/24")
    client.connect()
    assert client._connection.api.configuration.proxy is None
    client.close()


@pytest.mark.parametrize(
    ("extra", "begins"),
    [
        ({"server": "http://127.0.0.1:1"}, "127.0.0.1:1: Failed to establish a new connection"),
        ({"server": "https://127.0.0.1:1"}, "127.0.0.1:1: Failed to establish a new connection"),
        ({"server": "http://[::1]:1"}, "[::1]:1: Failed to establish a new connection"),
        (
            {"server": "https://192.0.2.1:6443", "proxy-url": "socks5://127.0.0.1:1"},
            "Error connecting to SOCKS5 proxy 127.0.0.1:1: ",
        ),
    ],
)
def test_a_server_that_does_not_answer_is_named_without_a_name_of_python(tmp_path, monkeypatch, extra, begins):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "k"
    path.write_text(cluster(**extra))
    client = KubeClient(path, "", "n", ClientLimits(connect=2))
    client.connect()
    with pytest.raises(RequestFailed) as info:
        client.list(Kind.NODE, 1, "", "")
    client.close()
    assert str(info.value).startswith(begins)
    assert "HTTP" not in str(info.value)


def test_only_what_is_needed_is_imported():
    program = (
        "import sys, ipvsproxy.kube.source as c; assert 'kubernetes' not in sys.modules;"
        "c.KubeClient(None, 'http://127.0.0.1:1', 'n').connect();"
        "print({'kubernetes.client.api.core_v1_api', 'kubernetes.client.models.v1_pod'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_token_period_is_what_the_contract_specifies():
    assert kubeconfig.TOKEN_SECONDS <= 60


def test_what_stands_before_the_host_is_not_shown(server, tmp_path):
    """Requests are counted by host, for whoever reads the metrics."""
    told = []
    address = server.url.removeprefix("http://")
    path = server.write_kubeconfig(tmp_path / "k", cluster={"server": f"http://me:hush@{address}"})
    client = KubeClient(path, "", "node1", observe=lambda _, host, *__: told.append(host))
    client.connect()
    client.list(Kind.NODE, 1, "", "").close()
    client.close()
    assert told == [address]
