"""Questions over sockets of this host: no kernel, no cluster."""

import http.server
import socket
import threading
from contextlib import suppress

import pytest

from ipvsproxy.config import Config, Listen
from ipvsproxy.probe import kube_proxy, web
from ipvsproxy.probe.kube_proxy import other_mode
from ipvsproxy.probe.live import open_socket, probe
from ipvsproxy.probe.web import read_proxy

ANSWERS = {"/healthz": (200, "{}"), "/metrics": (200, ""), "/flagz": (404, "")}


class ProbedPages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status, text = ANSWERS.get(self.path, (404, ""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def config():
    """Both ports of a proxy are one on loopback, with the answers above."""
    with http.server.HTTPServer(("127.0.0.1", 0), ProbedPages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        listen = Listen(bytes(4), server.server_port)
        yield Config("node1", healthz_bind_address=listen, metrics_bind_address=listen)
        server.shutdown()
        thread.join()


METRICS = """# HELP x y
ipvsproxy_build_info{version="0.1"} 1.0
ipvsproxy_pending_objects 2.0
a_total{ip_family="IPv4"} 1
a_total{ip_family="IPv6"} 2e1
a_timestamp_seconds{ip_family="IPv4"} 7.5
a_timestamp_seconds{ip_family="IPv6"} 5.5
nonsense
"""


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["in its head", "in its body"])
def test_an_answer_that_dribbles_has_an_end(monkeypatch, head):
    monkeypatch.setattr(web, "SECONDS", 0.3)
    ended = threading.Event()

    def dribble(listener):
        with listener.accept()[0] as connection, suppress(OSError):
            connection.sendall(head)
            while not ended.wait(0.02):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble, args=(listener,))
        thread.start()
        with pytest.raises(TimeoutError, match=r"no complete answer within 0\.3 s"):
            web.get(Listen(bytes(4), listener.getsockname()[1]), "/healthz")
        ended.set()
        thread.join()


@pytest.mark.parametrize("text", ["[" * 4000, "7", '"lastUpdated"', '{"healthy": true}', "\ud800"])
def test_what_is_no_health_is_nobodys(config, nobody, monkeypatch, text):
    monkeypatch.setitem(ANSWERS, "/healthz", (200, text.encode("utf-8", "surrogatepass").decode("latin-1")))
    assert list(kube_proxy.answers(config, ours_runs=False)) == []


def test_what_a_proxy_reports(config, monkeypatch):
    monkeypatch.setitem(ANSWERS, "/metrics", (200, METRICS))
    assert read_proxy(config).flags == {}
    monkeypatch.setitem(
        ANSWERS, "/flagz", (200, "\nkube-proxy flags\nWarning: no = sign\n\nvip-mode=auto\nconfig=\n")
    )
    found = read_proxy(config)
    assert (found.health, found.health_body, found.is_ours) == (200, "{}", True)
    assert (found.flags["vip-mode"], found.flags["config"]) == ("auto", "")
    assert found.metrics == {
        "ipvsproxy_build_info": 1, "ipvsproxy_pending_objects": 2, "a_total": 21, "a_timestamp_seconds": 5.5,
    }  # fmt: skip


def test_another_proxy_is_known_by_its_metrics(config, monkeypatch):
    monkeypatch.setitem(ANSWERS, "/metrics", (200, "kubeproxy_x 1\n"))
    monkeypatch.setitem(ANSWERS, "/healthz", (503, "ill"))
    found = read_proxy(config)
    assert (found.health, found.is_ours) == (503, False)


@pytest.fixture
def nobody(monkeypatch):
    """Nobody listens at the default ports."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        listen = Listen(bytes([127, 0, 0, 1]), taken.getsockname()[1])
        monkeypatch.setattr(kube_proxy, "METRICS", listen)
        monkeypatch.setattr(kube_proxy, "HEALTH", listen)
        yield listen


OURS = '{"version": 1, "kind": "Frontends", "frontends": {}}'
LIVE = (200, '{"lastUpdated":"2026-09-21T14:13:20Z","nodeEligible":true}')


@pytest.mark.parametrize(
    ("pages", "ours_runs", "modes"),
    [
        ({"/proxyMode": (200, "iptables")}, False, ["iptables"]),
        ({"/proxyMode": (200, "nftables"), "/healthz": LIVE}, False, ["nftables", ""]),
        ({"/healthz": LIVE}, False, [""]),
        ({"/healthz": LIVE}, True, []),
        ({"/proxyMode": (200, "ipvs"), "/frontends": (200, OURS), "/healthz": LIVE}, False, []),
        ({"/proxyMode": (200, "ipvs"), "/healthz": LIVE}, True, ["ipvs"]),
        ({"/proxyMode": (200, "<html>"), "/healthz": (200, "[]")}, False, []),
        ({"/proxyMode": (404, "ipvs"), "/healthz": (200, "ok")}, False, []),
    ],
)
def test_a_kube_proxy_is_known_by_what_it_answers(config, nobody, monkeypatch, pages, ours_runs, modes):
    monkeypatch.setattr(f"{__name__}.ANSWERS", pages)
    found = list(kube_proxy.answers(config, ours_runs=ours_runs))
    assert [mode for _, mode in found] == modes
    assert all(str(config.metrics_bind_address.port) in words for words, _ in found)


@pytest.mark.parametrize(
    ("body", "other"), [("iptables", "iptables"), ("nftables\n", "nftables"), ("ipvs", ""), ("<html>", "")]
)
def test_a_kube_proxy_of_another_mode_is_distinguished_from_one_of_ours(config, nobody, monkeypatch, body, other):
    monkeypatch.setattr(f"{__name__}.ANSWERS", {"/proxyMode": (200, body)})
    assert other_mode(config) == (f"{config.metrics_bind_address} answers in mode {other}" if other else "")
    assert other_mode(Config("n", metrics_bind_address=None)) == ""


def test_where_no_one_listens_no_kube_proxy_answers(nobody):
    assert list(kube_proxy.answers(Config("n", healthz_bind_address=None), ours_runs=False)) == []


def test_no_proxy_and_no_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        listen = Listen(bytes([127, 0, 0, 1]), taken.getsockname()[1])
        found = read_proxy(Config("node1", healthz_bind_address=listen))
    assert (found.health, found.error) == (0, f"{listen}: Connection refused")
    assert read_proxy(Config("node1", healthz_bind_address=None)) is None


class Silent(socket.socket):
    """A socket that is never answered, whatever it is told to connect to."""

    def connect(self, _):
        pass

    def send(self, data):
        return len(data)

    def recv(self, _):
        raise TimeoutError


def test_test_connections():
    with socket.socket() as listening, socket.socket() as bound:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        bound.bind(("127.0.0.1", 0))
        answered = asked("127.0.0.1", "TCP", listening.getsockname()[1])
        assert (answered.outcome, answered.source) == ("answered", "127.0.0.1")
        assert asked("127.0.0.1", "TCP", bound.getsockname()[1]).outcome == "refused"
        assert asked("127.0.0.1", "UDP", bound.getsockname()[1]).outcome == "refused"
    silent = asked("192.0.2.1", "UDP", 9, Silent)
    assert (silent.outcome, silent.source) == ("sent", "")


def asked(address, protocol, port, make=socket.socket):
    return probe(open_socket(make, address, protocol), address, port)
