"""Where names of Services come from: a proxy that runs, a folder, or nowhere."""

import http.server
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import proxy_pages
from ipvsproxy.commands.invocation import CommandFailed
from ipvsproxy.commands.service_names import names, similar
from ipvsproxy.config import Listen
from ipvsproxy.exchange.report import LookUps, Report
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.http import ListenAddress, Request
from ipvsproxy.serve.pages import Pages
from tests.support.build import config, destination, key

LOOPBACK = parse_ip("127.0.0.1")
WEB = key("10.96.0.10:80")
MANIFEST = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, uid: u}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
"""


@pytest.fixture
def page():
    """A server that answers as the metrics server of a proxy does."""
    board = Board(30.0, lambda _: None)
    board.look_ups(
        LookUps(
            holders=lambda: {WEB: "default/web"},
            maintenance=lambda: {WEB: {destination("10.244.1.1:8080")}},
            tenants=lambda: {2: "blue"},
            tenants_of_namespaces=lambda: {"default": "blue", "other": "green"},
            path_reasons=lambda: {WEB: "session affinity: only with IPVS"},
        )
    )
    respond = board.metrics_listener(ListenAddress(LOOPBACK, 0), Pages()).respond

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = respond(Request("GET", self.path, {}, self.headers, b""))
            self.send_response(answer.status)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_running_proxy_is_asked(page):
    known = names(config(metrics_bind_address=Listen(bytes(4), page)), None)
    assert known.of(WEB) == "default/web"
    assert known.of(key("10.96.0.10:81")) == ""
    assert known.in_maintenance(WEB) == ["10.244.1.1:8080"]
    assert [known.tenant(group) for group in (1, 2, 3)] == ["no tenant", "blue", "group 3"]
    assert (known.owner(WEB), known.owner(key("10.96.0.10:81"))) == ("blue", None)
    assert known.tenants_of_namespaces == {"default": "blue"}
    assert known.path_reasons == {str(WEB): "session affinity: only with IPVS"}


def test_a_proxy_that_does_not_run_costs_only_the_names():
    known = names(config(metrics_bind_address=Listen(LOOPBACK, 1)), None)
    assert known.of(WEB) == ""
    assert "no proxy answers" in known.problem
    assert "Errno" not in known.problem
    assert "serves no metrics" in names(config(metrics_bind_address=None), None).problem


@pytest.fixture
def said():
    """A server at the metrics port that is no proxy, and answers what the test wants."""
    body = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for piece in body:
                    self.wfile.write(piece)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield body, config(metrics_bind_address=Listen(bytes(4), server.server_port))
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        "{}",
        '{"frontends": ["a"]}',
        '{"frontends": {"10.96.0.10:80/TCP": 7}}',
        '{"frontends": {"10.96.0.10:80/TCP": "default/\\u001b]0;gone\\u0007"}}',
        '{"frontends": {"10.96.0.10:80/TCP": "no-namespace"}}',
        '{"frontends": {}, "tenantsOfNamespaces": {"default": "\\u001b[2J"}}',
        "[" * 100_000,
    ],
)
def test_what_is_no_list_of_frontends_costs_only_the_names(said, text):
    body, settings = said
    body.append(text.encode())
    known = names(settings, None)
    assert known.services == {}
    assert "is no list of frontends" in known.problem


def test_an_answer_without_end_is_not_read_to_its_end(said):
    body, settings = said
    body.extend(bytes(1 << 20) for _ in range(40))
    assert "the answer has more than 16777216 bytes" in names(settings, None).problem


def test_an_answer_of_another_user_is_not_taken(said, monkeypatch):
    body, settings = said
    body.append(b'{"frontends": {}}')
    monkeypatch.setattr(proxy_pages, "listening_users", lambda _: {4711})
    assert "user 4711 listens there" in names(settings, None).problem


def surveyed(**more):
    """A host with one address, and nothing that a Service could take from others."""
    addresses = frozenset([parse_ip("192.0.2.1")])
    nothing = {"reserved": tuple, "senders": dict, "listening": frozenset, "server_states": dict}
    return SimpleNamespace(other_addresses=lambda: addresses, **nothing, **more)


def test_objects_are_planned(tmp_path):
    (tmp_path / "web.yaml").write_text(MANIFEST)
    view = surveyed()
    assert names(config(manifests=tmp_path), view).of(WEB) == "default/web"


def test_tenants_of_namespaces_come_from_objects_too(tmp_path):
    (tmp_path / "web.yaml").write_text(
        MANIFEST + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {tenant: blue}}\n"
    )
    view = surveyed(has_table=lambda: False)
    assert names(config(manifests=tmp_path, tenant_label="tenant"), view).owner(WEB) == "blue"


def test_an_api_server_that_is_named_is_asked():
    with pytest.raises(CommandFailed, match="the API server"):
        names(config(master="http://127.0.0.1:1"), None)


def test_nothing_is_held_before_the_loop_reports_it():
    board = Board(30.0, lambda _: None)
    book = Pages()
    board.metrics_listener(ListenAddress(LOOPBACK, 0), book)
    answer = book.respond(Request("GET", "/frontends", {}, {}, b""))
    assert answer.body == b'{"version": 1, "kind": "Frontends", "frontends": {}, "maintenance": {}}'
    assert Report().look_ups(LookUps()) is None


def test_names_that_may_be_meant():
    known = ["default/web", "default/website", "kube-system/dns", "shop/web", "shop/cart"]
    assert similar("other/web", known) == ["default/web", "shop/web", "default/website"]
    assert similar("wbe", known) == ["default/web", "shop/web"]
    assert similar("default/crat", known) == ["shop/cart"]
    assert similar("nothing", known) == similar("default/", known) == []
