"""Questions over sockets of this host, and the bytes of names: no kernel, no cluster."""

import http.server
import socket
import struct
import threading
from contextlib import suppress
from typing import ClassVar

import pytest

from ipvsproxy.config import Config, Listen
from ipvsproxy.diagnosis.facts import DnsAnswer
from ipvsproxy.probe import dns, kube_proxy, web
from ipvsproxy.probe.kube_proxy import other_mode
from ipvsproxy.probe.live import open_socket, probe
from ipvsproxy.probe.web import read_proxy

ASKED = DnsAnswer("10.96.0.10", "a.example")


def answer(number, records, code=0, questions=1):
    head = dns.HEADER.pack(number, 0x8180 | code, questions, len(records), 0, 0)
    return head + dns.question(number, "a.example", 1)[dns.HEADER.size :] + b"".join(records)


def record(kind, data, name=b"\xc0\x0c"):
    return name + struct.pack(">HHIH", kind, 1, 5, len(data)) + data


def test_a_question_is_what_rfc_1035_says():
    assert dns.question(7, "a.example.", 1) == bytes.fromhex(
        "0007010000010000000000000161076578616d706c650000010001"
    )
    for name in ("", "a..b", "x" * 64, "ü"):
        with pytest.raises(ValueError):
            dns.question(7, name, 1)


def test_addresses_aliases_and_pointers():
    alias = record(5, b"\x01b\xc0\x0e")
    found = dns.read(answer(7, [alias, record(1, bytes([192, 0, 2, 1])), record(28, bytes(15) + b"\x01")]), ASKED)
    assert (found.canonical, found.addresses, found.error) == ("b.example", ("192.0.2.1", "::1"), "")


def test_errors_have_names():
    assert dns.read(answer(7, [], code=3), ASKED).error == "NXDOMAIN"
    assert dns.read(answer(7, [], code=15), ASKED).error == "code 15"


def test_a_name_that_points_to_itself_is_refused():
    with pytest.raises(ValueError):
        dns.read(answer(7, [record(5, b"\xc0\x27")]), ASKED)


class Fake(socket.socket):
    """A socket that is connected to a test's own one, whatever it is told to connect to."""

    replies: ClassVar[list] = []

    def connect(self, _):
        pass

    def settimeout(self, _):
        pass

    def send(self, data):
        self.sent = data
        return len(data)

    def recv(self, _):
        reply = self.replies.pop(0) if self.replies else None
        if reply is None:
            raise TimeoutError
        return reply(dns.HEADER.unpack_from(self.sent)[0])


def test_answers_to_others_are_passed_over_and_silence_is_told():
    address = [record(1, bytes([192, 0, 2, 1]))]
    Fake.replies = [lambda number: answer(number ^ 1, []), lambda number: answer(number, address)]
    assert dns.resolve("10.96.0.10", "a.example", "A", Fake).addresses == ("192.0.2.1",)
    Fake.replies = []
    assert dns.resolve("10.96.0.10", "a.example", "A", Fake).error == "no answer within 4 s"
    Fake.replies = [lambda _: b"\0"]
    assert dns.resolve("10.96.0.10", "a.example", "A", Fake).error


ANSWERS = {"/healthz": (200, "{}"), "/metrics": (200, ""), "/flagz": (404, "")}


class Pages(http.server.BaseHTTPRequestHandler):
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
    with http.server.HTTPServer(("127.0.0.1", 0), Pages) as server:
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


def test_what_a_proxy_says(config, monkeypatch):
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
def test_a_kube_proxy_of_another_mode_is_told_from_one_of_ours(config, nobody, monkeypatch, body, other):
    monkeypatch.setattr(f"{__name__}.ANSWERS", {"/proxyMode": (200, body)})
    assert other_mode(config) == (f"{config.metrics_bind_address} answers in mode {other}" if other else "")
    assert other_mode(Config("n", metrics_bind_address=None)) == ""


def test_where_nobody_listens_no_kube_proxy_answers(nobody):
    assert list(kube_proxy.answers(Config("n", healthz_bind_address=None), ours_runs=False)) == []


def test_no_proxy_and_no_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        listen = Listen(bytes([127, 0, 0, 1]), taken.getsockname()[1])
        found = read_proxy(Config("node1", healthz_bind_address=listen))
    assert (found.health, found.error) == (0, f"{listen}: Connection refused")
    assert read_proxy(Config("node1", healthz_bind_address=None)) is None


def test_live_questions():
    with socket.socket() as listening, socket.socket() as bound:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        bound.bind(("127.0.0.1", 0))
        answered = asked("127.0.0.1", "TCP", listening.getsockname()[1])
        assert (answered.outcome, answered.source) == ("answered", "127.0.0.1")
        assert asked("127.0.0.1", "TCP", bound.getsockname()[1]).outcome == "refused"
        assert asked("127.0.0.1", "UDP", bound.getsockname()[1]).outcome == "refused"
    silent = asked("192.0.2.1", "UDP", 9, Fake)
    assert (silent.outcome, silent.source) == ("sent", "")


def asked(address, protocol, port, make=socket.socket):
    return probe(open_socket(make, address, protocol), address, port)
