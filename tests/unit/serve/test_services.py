"""healthCheckNodePort: which listeners there are, and what they answer."""

import errno

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.local import LocalView
from ipvsproxy.serve.http import ListenAddress, Request
from ipvsproxy.serve.services import ServicePorts, answer

EVERYWHERE = {4: (bytes(4),), 6: (bytes(16),)}
ASK = Request("GET", "/", {}, {})


def view(name="web", port=31000, endpoints=None):
    return LocalView(f"default/{name}", f"uid-{name}", port, endpoints or {4: 1}, frozenset())


class HealthPorts:
    def __init__(self):
        self.healthy = True
        self.notices = []
        self.ports = ServicePorts(lambda: self.healthy, self.notices.append)
        self.ports.listen_on(EVERYWHERE)

    def listeners(self):
        return {listener.address: listener for listener in self.ports.take_listeners()}


@pytest.fixture
def health():
    return HealthPorts()


@pytest.mark.parametrize(
    ("count", "healthy", "status"), [(0, True, 503), (18, True, 200), (7, False, 503), (0, False, 503)]
)
def test_what_a_load_balancer_gets(count, healthy, status):
    told = answer("ns/svc", count, healthy=healthy)
    assert told.status == status
    assert told.headers == {"X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": str(count)}
    assert told.content_type == "application/json"


def test_the_exact_body():
    assert answer("ns/svc", 1, healthy=True).body.decode() == (
        '{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "svc"\n\t},\n'
        '\t"localEndpoints": 1,\n\t"serviceProxyHealthy": true\n}'
    )


def test_one_listener_a_family_and_answers_follow_without_a_new_one(health):
    health.ports.set("default/web", view(endpoints={4: 2, 6: 0}))
    listeners = health.listeners()
    four, six = ListenAddress(bytes(4), 31000), ListenAddress(bytes(16), 31000)
    assert listeners.keys() == {four, six}
    assert (listeners[four].respond(ASK).status, listeners[six].respond(ASK).status) == (200, 503)
    health.ports.set("default/web", view(endpoints={4: 0, 6: 1}))
    assert health.ports.take_listeners() is None
    assert (listeners[four].respond(ASK).status, listeners[six].respond(ASK).status) == (503, 200)
    health.healthy = False
    assert listeners[six].respond(ASK).status == 503


def test_ports_come_change_and_go(health):
    health.ports.set("default/web", view())
    assert health.listeners().keys() == {ListenAddress(bytes(4), 31000)}
    health.ports.set("default/web", view(port=31001))
    assert health.listeners().keys() == {ListenAddress(bytes(4), 31001)}
    health.ports.set("default/web", view(port=0))
    assert health.listeners() == {}
    health.ports.set("default/web", None)
    assert health.ports.take_listeners() is None


def test_limited_addresses_are_followed(health):
    health.ports.set("default/web", view(endpoints={4: 1, 6: 1}))
    health.listeners()
    first, second = parse_ip("192.0.2.1"), parse_ip("192.0.2.2")
    health.ports.listen_on({4: (first, second), 6: ()})
    assert health.listeners().keys() == {ListenAddress(first, 31000), ListenAddress(second, 31000)}


def test_a_port_of_two_services_is_an_event_of_the_second(health):
    health.ports.set("default/web", view("web"))
    health.ports.set("default/api", view("api"))
    assert [listener.name for listener in health.listeners().values()] == ["healthCheckNodePort/default/api"]
    assert [(n.subject.name, n.note) for n in health.notices] == [
        ("web", "healthCheckNodePort 31000 is in use by default/api")
    ]


def test_a_busy_port_is_an_event_as_kube_proxy_has_it(health):
    health.ports.set("default/web", view())
    ((address, listener),) = health.listeners().items()
    listener.failed(address, OSError(errno.EADDRINUSE, "Address already in use"))
    (notice,) = health.notices
    assert (notice.reason, notice.action, str(notice.severity)) == (
        "FailedToStartServiceHealthcheck", "Listen", "Warning")  # fmt: skip
    assert notice.subject == ("Service", "default", "web", "uid-web")
    assert notice.note == "node failed to start healthcheck on 0.0.0.0:31000: Address already in use"
