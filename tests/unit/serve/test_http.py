"""The HTTP server, over real sockets on the loopback."""

import errno
import http.client
import socket
import threading
import time
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base.address import parse_ip
from ipvsproxy.serve import http as serve
from ipvsproxy.serve.http import HttpAnswer, HttpServer, ListenAddress, Listener

LOOPBACK = parse_ip("127.0.0.1")
LONGEST_LINE = 65536
"""Of a request: http.server reads one byte more, to see that there is more."""


def echo(request):
    body = f"{request.method} {request.path} {dict(request.query)} {request.body.decode()}".encode()
    return HttpAnswer(200, body, headers={"X-Test": "1"})


@pytest.fixture
def server():
    made = HttpServer()
    yield made
    if made._thread.is_alive():
        made.stop()
    else:
        made.close()


@pytest.fixture
def address(free_port):
    return ListenAddress(LOOPBACK, free_port())


def ask(address, method="GET", path="/", body=None, host="127.0.0.1"):
    with closing(http.client.HTTPConnection(host, address.port, timeout=60)) as connection:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.headers)


def raw(address, data):
    with socket.create_connection(("127.0.0.1", address.port), timeout=60) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts).decode()


def refused(address):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", address.port)) == errno.ECONNREFUSED


@pytest.fixture
def settled(server, free_port):
    """Wait until the server's thread has carried out everything that was ordered before."""

    def wait():
        listener = Listener("marker/x", ListenAddress(LOOPBACK, free_port()), echo)
        server.set_listeners("marker", [listener])
        while refused(listener.address):
            time.sleep(0.01)

    return wait


def test_any_method_path_query_and_body(server, address):
    server.start([Listener("a", address, echo)])
    assert ask(address, "GET", "/x/y?b=1&b=2&c=")[1] == "GET /x/y {'b': '1', 'c': ''} "
    assert ask(address, "BREW", "/pot", b"coffee")[1] == "BREW /pot {} coffee"


def test_head_has_no_body(server, address):
    server.start([Listener("a", address, echo)])
    status, body, headers = ask(address, "HEAD", "/x")
    assert (status, body) == (200, "")
    assert headers["Content-Length"] == str(len("HEAD /x {} "))


def test_the_status_line_has_its_phrase_and_no_one_is_named(server, address):
    server.start([Listener("a", address, echo)])
    answer = raw(address, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-Test: 1\r\nDate: ")
    assert "Server:" not in answer


def test_connections_are_kept(server, address):
    server.start([Listener("a", address, echo)])
    with closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
        for _ in range(3):
            connection.request("PUT", "/", b"12")
            assert connection.getresponse().read() == b"PUT / {} 12"


def test_a_body_too_long_ends_the_connection(server, address):
    server.start([Listener("a", address, echo)])
    answer = raw(address, b"PUT / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nGET / HTTP/1.1\r\n\r\n")
    assert answer.count("HTTP/1.1") == 1
    assert "Connection: close" in answer


def test_nonsense_costs_only_its_connection(server, address):
    server.start([Listener("a", address, echo)])
    assert "400" in raw(address, b"\x16\x03\x01 nonsense here\r\n\r\n")
    # As much as is read of it: what a server has not read when it hangs up becomes a reset of the connection.
    answer = raw(address, b"GET /".ljust(LONGEST_LINE + 1, b"x"))
    assert answer.startswith("HTTP/1.1 414 ")
    assert "Server:" not in answer
    assert ask(address)[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02 <b>\r\n\r\n",
        b"PUT /<b>\r\n",
        b"a <b> c d e\r\n\r\n",
        b"a <b> c d HTTP/0.9\r\n\r\n",
        b"GET / HTTP/9<b>\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_a_status_line_and_nothing_of_its_own_words(server, address, data):
    server.start([Listener("a", address, echo)])
    answer = raw(address, data)
    assert answer.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith("\r\n\r\n400 Bad Request\n")
    assert "<b>" not in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://[ HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 200),
        (b"GET / HTTP/0.9\r\n\r\n", 200),
    ],
)
def test_odd_requests_fill_no_log(server, address, request_, status):
    with capture_logs() as logs:
        server.start([Listener("a", address, echo)])
        assert raw(address, request_).startswith(f"HTTP/1.1 {status} ")
        assert ask(address)[0] == 200
    assert not [entry for entry in logs if entry["log_level"] == "error"]


def test_an_unspecified_address_takes_both_families(server, free_port):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    address = ListenAddress(bytes(4), free_port(), both=True)
    server.start([Listener("a", address, echo)])
    assert ask(address, host="::1")[0] == ask(address, host="127.0.0.1")[0] == 200


def test_families_can_answer_differently_on_one_port(server, free_port):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    four, six = ListenAddress(bytes(4), port), ListenAddress(bytes(16), port)
    listeners = [
        Listener("g/4", four, lambda _: HttpAnswer(200, b"4")),
        Listener("g/6", six, lambda _: HttpAnswer(503, b"6")),
    ]
    server.start(listeners)
    assert ask(four)[:2] == (200, "4")
    assert ask(six, host="::1")[:2] == (503, "6")


def test_listeners_come_and_go_and_those_of_others_stay(server, address, free_port, settled):
    server.start([Listener("main", address, echo)])
    one, two = (ListenAddress(LOOPBACK, free_port()) for _ in range(2))
    server.set_listeners("g", [Listener("g/1", one, echo), Listener("g/2", two, echo)])
    settled()
    assert ask(one)[0] == ask(two)[0] == 200
    server.set_listeners("g", [Listener("g/2", two, lambda _: HttpAnswer(503, b""))])
    settled()
    assert refused(one)
    assert ask(two)[0] == 503
    assert ask(address)[0] == 200


def test_an_address_passes_from_one_to_another(server, address, settled):
    server.start([])
    server.set_listeners("g", [Listener("g/1", address, echo)])
    settled()
    server.set_listeners("g", [Listener("g/2", address, lambda _: HttpAnswer(503, b""))])
    settled()
    assert ask(address)[0] == 503


def test_a_busy_port_is_reported_once_and_tried_again(server, address, settled, monkeypatch):
    monkeypatch.setattr(serve, "RETRY_SECONDS", 0.01)
    failures = []
    with socket.create_server(("127.0.0.1", address.port)):
        server.start([Listener("a", address, echo, lambda where, error: failures.append((where, error.errno)))])
        settled()
    while refused(address):
        time.sleep(0.01)
    assert ask(address)[0] == 200
    assert failures == [(address, errno.EADDRINUSE)]


def test_a_busy_port_ends_a_hard_start(address):
    server = HttpServer()
    with (
        socket.create_server(("127.0.0.1", address.port)),
        pytest.raises(OSError, match=rf"healthz: 127.0.0.1:{address.port}: Address already in use"),
    ):
        server.start([Listener("healthz", address, echo)], hard=True)
    server.close()


def test_two_servers_on_one_address_are_an_error(address):
    server = HttpServer()
    with pytest.raises(OSError, match=r"metrics: .*Address already in use"):
        server.start([Listener("healthz", address, echo), Listener("metrics", address, echo)], hard=True)
    server.close()


def test_a_failing_answer_costs_only_its_connection(server, address):
    def fail(_):
        raise RuntimeError("planned")

    server.start([Listener("a", address, lambda r: fail(r) if r.path == "/bad" else echo(r))])
    assert raw(address, b"GET /bad HTTP/1.1\r\n\r\n") == ""
    assert ask(address)[0] == 200


def test_silent_clients_do_not_keep_others_out(server, address, monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)
    server.start([Listener("a", address, echo)])
    with (
        socket.create_connection(("127.0.0.1", address.port), 60) as first,
        socket.create_connection(("127.0.0.1", address.port), 60) as second,
    ):
        assert ask(address)[0] == 200
        assert first.recv(1) == b""
        second.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert second.recv(8) == b"HTTP/1.1"


@pytest.fixture
def pauses(monkeypatch):
    """The pauses of the server, and not of all threads of this process."""
    found = []
    monkeypatch.setattr(serve, "time", SimpleNamespace(sleep=found.append))
    return found


@pytest.mark.parametrize(
    ("code", "waits"), [(errno.EMFILE, 1), (errno.ENFILE, 1), (errno.ENOMEM, 1), (errno.ECONNABORTED, 0)]
)
def test_without_descriptors_it_pauses_instead_of_trying_all_the_time(server, address, pauses, code, waits):
    class Full:
        def accept(self):
            raise OSError(code, "no")

    server._accept(Listener("a", address, echo), Full())
    assert len(pauses) == waits


def test_without_threads_a_connection_is_closed_and_the_server_goes_on(server, address, pauses, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "answer":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        server.start([Listener("a", address, echo)])
        with suppress(ConnectionResetError):
            assert raw(address, b"GET / HTTP/1.0\r\n\r\n") == ""
        assert not server._connections
    assert ask(address)[0] == 200
    assert len(pauses) == 1
