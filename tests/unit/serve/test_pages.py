"""What the metrics port says besides metrics."""

import json

import pytest

from ipvsproxy.serve import pages
from ipvsproxy.serve.http import Request


def ask(book, path, method="GET", query=None, body=b"", headers=None):
    return book.respond(Request(method, path, query or {}, headers or {}, body))


@pytest.fixture
def book():
    return pages.Pages()


def test_proxy_mode(book):
    answer = ask(book, "/proxyMode")
    assert (answer.status, answer.body, answer.content_type) == (200, b"ipvs", "text/plain; charset=utf-8")
    assert answer.headers == {"X-Content-Type-Options": "nosniff"}


@pytest.mark.parametrize(
    ("path", "query", "body"),
    [
        ("/healthz", {}, b"ok"),
        ("/healthz", {"verbose": ""}, b"[+]ping ok\nhealthz check passed\n"),
        ("/healthz", {"verbose": "", "exclude": "ping"}, b"[+]ping excluded: ok\nhealthz check passed\n"),
        ("/healthz/ping", {}, b"ok"),
    ],
)
def test_healthz(book, path, query, body):
    answer = ask(book, path, query=query)
    assert (answer.status, answer.body) == (200, body)


def test_unknown_and_switched_off_pages(book):
    for path in ("/", "/debug/pprof/profile", "/flagz", "/debug/flags/v"):
        assert ask(book, path).status == 404


def test_configz(book):
    book.add("/configz", pages.configz({"kind": "KubeProxyConfiguration", "mode": "ipvs"}, {"vipMode": "route"}))
    answer = ask(book, "/configz")
    assert answer.content_type == "application/json"
    assert json.loads(answer.body) == {
        "kubeproxy.config.k8s.io": {"kind": "KubeProxyConfiguration", "mode": "ipvs"},
        "ipvsproxy.io": {"vipMode": "route"},
    }


def test_flagz(book):
    book.add("/flagz", pages.flagz([("v", "2"), ("config", "/x")]))
    assert ask(book, "/flagz").body.decode().splitlines()[1:] == [
        "kube-proxy flags", pages.DEBUGGING_ONLY, "", "config=/x", "v=2"]  # fmt: skip


def test_statusz(book):
    times = iter([1_790_000_000.0, 1_790_003_661.0])
    book.add("/statusz", pages.statusz("v1.36.2", lambda: next(times)))
    text = ask(book, "/statusz").body.decode()
    assert "Started: Mon Sep 21 14:13:20 UTC 2026\nUp: 1 hr 01 min 01 sec\n" in text
    assert "Binary version: 1.36.2 (ipvsproxy " in text


def test_indicators(book):
    book.add("/metrics/slis", pages.slis)
    assert b'kubernetes_healthcheck{name="ping",type="healthz"} 1\n' in ask(book, "/metrics/slis").body
    assert ask(book, "/metrics/slis", "DELETE").body == b"metrics reset\n"


def test_verbosity_is_put(book):
    levels = []
    book.add("/debug/flags/v", pages.verbosity(levels.append))
    answer = ask(book, "/debug/flags/v", "PUT", body=b"4\n")
    assert (answer.status, answer.body) == (200, b"successfully set verbosity to 4")
    assert ask(book, "/debug/flags/v", "PUT", body=b"loud").status == 400
    assert ask(book, "/debug/flags/v").status == 406
    assert levels == [4]
