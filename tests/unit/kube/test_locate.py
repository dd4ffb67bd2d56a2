"""Where the API server is: addresses and names, names that move, and names that cannot be resolved."""

import socket

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import ApiServers
from ipvsproxy.kube.locate import RESOLVED_SECONDS, UNRESOLVED_SECONDS, Locator, locate
from tests.support.recording import RecordingInbox

HERE, THERE = parse_ip("192.0.2.10"), parse_ip("192.0.2.11")


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("https://192.0.2.10", "192.0.2.10", 443),
        ("http://192.0.2.10", "192.0.2.10", 80),
        ("https://192.0.2.10:6443/prefix", "192.0.2.10", 6443),
        ("https://[2001:db8::1]:6443", "2001:db8::1", 6443),
        ("https://[fe80::1%25lo]:6443", "fe80::1", 6443),
        ("https://localhost:6443", "127.0.0.1", 6443),
    ],
)
def test_addresses_and_names(url, address, port):
    assert (parse_ip(address), port) in locate(url)


@pytest.mark.parametrize("url", ["https://nowhere.invalid", "https://a..b", "https://h:99999", "https://"])
def test_hosts_that_are_nowhere(url):
    with pytest.raises((OSError, ValueError)):
        locate(url)


@pytest.fixture
def names(monkeypatch):
    """A resolver that knows what a test tells it."""
    known = {}

    def resolve(host, port, **_):
        if host not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known


def told(inbox):
    return [event.servers for event in inbox.take(0)]


def test_a_name_is_resolved_again_and_reported_when_it_has_moved(names):
    inbox = RecordingInbox()
    locator = Locator(lambda: "https://api.example:6443", inbox)
    names["api.example"] = ["192.0.2.10"]
    assert locator.look() == RESOLVED_SECONDS
    assert inbox.take(0) == [ApiServers(((HERE, 6443),))]
    names["api.example"] = ["192.0.2.11", "192.0.2.10"]
    locator.look()
    assert told(inbox) == [((HERE, 6443), (THERE, 6443))]
    names["api.example"].reverse()
    locator.look()
    assert told(inbox) == []


def test_a_name_that_cannot_be_resolved_is_one_warning_and_what_was_known_stays(names):
    inbox = RecordingInbox()
    locator = Locator(lambda: "https://api.example:6443", inbox)
    with capture_logs() as logs:
        assert [locator.look() for _ in range(3)] == [UNRESOLVED_SECONDS] * 3
        names["api.example"] = ["192.0.2.10"]
        locator.look()
        assert told(inbox) == [((HERE, 6443),)]
        del names["api.example"]
        for _ in range(3):
            locator.look()
    assert told(inbox) == []
    assert [(line["log_level"], line["server"], line["known"]) for line in logs] == [
        ("warning", "api.example", 0),
        ("warning", "api.example", 1),
    ]


def test_a_configuration_that_was_read_again_may_name_another_host(names):
    names.update({"old": ["192.0.2.10"], "new": ["192.0.2.11"]})
    inbox, urls = RecordingInbox(), iter(["http://old", "http://new"])
    locator = Locator(lambda: next(urls), inbox)
    locator.look()
    locator.look()
    assert told(inbox) == [((HERE, 80),), ((THERE, 80),)]
