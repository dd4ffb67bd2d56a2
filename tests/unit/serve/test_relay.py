"""The relay for NodePorts on localhost: what it passes on, how it ends, and its bounds."""

import asyncio
import contextlib
import select
import socket
import struct
import threading
import time

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.serve.http import ListenAddress
from ipvsproxy.serve.relay import Relay, _both

LOOPBACKS = ["127.0.0.1", "::1"]


class RelayedCalls:
    def __init__(self):
        self.refused = []

    def __call__(self, service, reason):
        self.refused.append((service, reason))


def eventually(check, seconds=60.0):
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address(host, port):
    return ListenAddress(parse_ip(host), port)


class EchoServer:
    """Says back what it is sent, and `end` when the client has no more to say."""

    def __init__(self, host):
        self.listener = socket.create_server((host, 0), family=family(host), backlog=512)
        self.open, self.lock = 0, threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def address(self):
        return address(*self.listener.getsockname()[:2])

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=[self.listener.accept()[0]], daemon=True).start()

    def _answer(self, client):
        with self.lock:
            self.open += 1
        with client, contextlib.suppress(OSError):
            while data := client.recv(65536):
                client.sendall(data)
            client.sendall(b"end")
        with self.lock:
            self.open -= 1


@pytest.fixture(params=LOOPBACKS)
def host(request):
    return request.param


@pytest.fixture
def server(host):
    made = EchoServer(host)
    yield made
    made.listener.close()


@pytest.fixture
def relay():
    made = Relay(RelayedCalls())
    yield made
    for service in list(made._targets):
        made.serve(service, {})


@pytest.fixture
def listening(free_port, host, server):
    """Have a relay listen; return where."""

    def listen(relay, name="default/web"):
        port = free_port(host)
        relay.serve(name, {address(host, port): server.address})
        eventually(lambda: can_connect(host, port))
        return host, port

    return listen


def can_connect(host, port):
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=60):
        return True
    return False


def talk(where, data=b"hello"):
    """Say something, say that it is all, and return all that comes back."""
    with socket.create_connection(where, timeout=60) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_what_both_sides_send_and_their_ends_are_passed_on(relay, listening):
    assert talk(listening(relay)) == b"helloend"


def test_much_data(relay, listening):
    where, data = listening(relay), bytes(range(256)) * 8192
    found = []
    with socket.create_connection(where, timeout=60) as client:
        reader = threading.Thread(target=lambda: found.append(b"".join(iter(lambda: client.recv(65536), b""))))
        reader.start()
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        reader.join(60)
    assert found == [data + b"end"]


def test_many_short_connections(relay, listening, server):
    where = listening(relay)

    def some():
        answers.extend(talk(where) for _ in range(250))

    answers: list[bytes] = []
    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == [b"helloend"] * 2000
    eventually(lambda: server.open == 0)


def test_a_service_has_no_more_connections_at_a_time_than_a_quarter_of_all(listening):
    relay = Relay(RelayedCalls(), most_connections=16)
    where = listening(relay)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(where, timeout=60)) for _ in range(12)]
        for client in held[:4]:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        for client in held[4:]:
            client.sendall(b"x")
        assert not select.select(held[4:], [], [], 0.3)[0]
        for client in held[:11]:
            client.close()
        held[11].settimeout(60)
        assert held[11].recv(1) == b"x"
    relay.serve("default/web", {})


def test_one_service_does_not_keep_others_waiting(listening, server):
    relay = Relay(RelayedCalls(), most_connections=4)
    busy, other = listening(relay), listening(relay, "other/web")
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(socket.create_connection(busy, timeout=60)).sendall(b"x")
        eventually(lambda: server.open == 1)
        assert talk(other) == b"helloend"
    for name in ("default/web", "other/web"):
        relay.serve(name, {})


def test_no_more_connections_at_a_time_than_there_is_room_for(listening):
    relay = Relay(RelayedCalls(), most_connections=2)
    names = [f"default/web{n}" for n in range(4)]
    places = [listening(relay, name) for name in names]
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(where, timeout=60)) for where in places]
        for client in held:
            client.sendall(b"x")
        eventually(lambda: len(select.select(held, [], [], 0)[0]) == 2)
        time.sleep(0.2)
        answered = select.select(held, [], [], 0)[0]
        assert len(answered) == 2
        answered[0].close()
        held.remove(answered[0])
        eventually(lambda: len(select.select(held, [], [], 0)[0]) == 2)
    for name in names:
        relay.serve(name, {})


def test_a_refused_connection_is_a_reset(relay, host, free_port):
    port = free_port(host)
    relay.serve("default/web", {address(host, port): address(host, free_port(host))})
    eventually(lambda: can_connect(host, port))
    with pytest.raises(ConnectionResetError), socket.create_connection((host, port), timeout=60) as client:
        client.recv(1)  # the reset may be there even before


def test_a_reset_is_passed_on(relay, listening, server):
    where = listening(relay)
    with socket.create_connection(where, timeout=60) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    eventually(lambda: server.open == 0)


def test_where_one_direction_fails_the_other_has_ended_before_its_sockets_are_closed():
    """Or the loop would still wait for a descriptor that may be another connection's by then."""
    ended = []

    async def fails():
        await asyncio.sleep(0)
        raise ConnectionResetError

    async def waits():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(ConnectionResetError):
        asyncio.run(_noting(fails(), waits(), ended))
    assert ended == [True, "returned"]


async def _noting(first, second, ended):
    try:
        await _both(first, second)
    finally:
        ended.append("returned")


def test_a_service_that_goes_takes_its_connections_with_it(relay, listening, server):
    host, port = listening(relay)
    with socket.create_connection((host, port), timeout=60) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        relay.serve("default/web", {})
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: not can_connect(host, port))
    eventually(lambda: server.open == 0)


def test_a_change_of_one_port_leaves_the_others(relay, listening, free_port, server):
    host, port = listening(relay)
    other = free_port(host)
    with socket.create_connection((host, port), timeout=60) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        relay.serve("default/web", {address(host, port): server.address, address(host, other): server.address})
        eventually(lambda: can_connect(host, other))
        client.sendall(b"y")
        assert client.recv(1) == b"y"


def test_an_address_that_is_taken_is_reported_once_and_opened_later(monkeypatch, host, server, free_port):
    monkeypatch.setattr("ipvsproxy.serve.relay.RETRY_SECONDS", 0.02)
    heard = RelayedCalls()
    relay = Relay(heard)
    port = free_port(host)
    with socket.create_server((host, port), family=family(host)):
        relay.serve("default/web", {address(host, port): server.address})
        eventually(lambda: heard.refused)
        time.sleep(0.1)
    ((service, reason),) = heard.refused
    assert service == "default/web"
    assert reason.startswith(f"NodePort {port} cannot be had on ")
    eventually(lambda: can_connect(host, port) and talk((host, port)) == b"helloend")
    relay.serve("default/web", {})


def test_nothing_runs_where_nothing_is_asked_for():
    before = set(threading.enumerate())
    Relay(RelayedCalls()).serve("default/web", {})
    assert set(threading.enumerate()) <= before
