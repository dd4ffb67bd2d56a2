"""healthCheckNodePort: which listeners there are, and what they answer."""

import errno

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.local import LocalView
from ipvsproxy.serve.http import Address, Request
from ipvsproxy.serve.services import ServicePorts, answer

EVERYWHERE = {4: (bytes(4),), 6: (bytes(16),)}
ASK = Request("GET", "/", {}, {})


def view(name="web", port=31000, endpoints=None):
    return LocalView(f"default/{name}", f"uid-{name}", port, endpoints or {4: 1}, frozenset())


class World:
    def __init__(self):
        self.healthy = True
        self.notices = []
        self.ports = ServicePorts(lambda: self.healthy, self.notices.append)
        self.ports.listen_on(EVERYWHERE)

    def listeners(self):
        return {listener.address: listener for listener in self.ports.take_listeners()}


@pytest.fixture
def world():
    return World()


@pytest.mark.parametrize(
    ("count", "healthy", "status"), [(0, True, 503), (18, True, 200), (7, False, 503), (0, False, 503)]
)
def test_what_a_load_balancer_is_told(count, healthy, status):
    told = answer("ns/svc", count, healthy=healthy)
    assert told.status == status
    assert told.headers == {"X-Content-Type-Options": "nosniff", "X-Load-Balancing-Endpoint-Weight": str(count)}
    assert told.content_type == "application/json"


def test_the_exact_body():
    assert answer("ns/svc", 1, healthy=True).body.decode() == (
        '{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "svc"\n\t},\n'
        '\t"localEndpoints": 1,\n\t"serviceProxyHealthy": true\n}'
    )


def test_one_listener_a_family_and_answers_follow_without_a_new_one(world):
    world.ports.set("default/web", view(endpoints={4: 2, 6: 0}))
    listeners = world.listeners()
    four, six = Address(bytes(4), 31000), Address(bytes(16), 31000)
    assert listeners.keys() == {four, six}
    assert (listeners[four].respond(ASK).status, listeners[six].respond(ASK).status) == (200, 503)
    world.ports.set("default/web", view(endpoints={4: 0, 6: 1}))
    assert world.ports.take_listeners() is None
    assert (listeners[four].respond(ASK).status, listeners[six].respond(ASK).status) == (503, 200)
    world.healthy = False
    assert listeners[six].respond(ASK).status == 503


def test_ports_come_change_and_go(world):
    world.ports.set("default/web", view())
    assert world.listeners().keys() == {Address(bytes(4), 31000)}
    world.ports.set("default/web", view(port=31001))
    assert world.listeners().keys() == {Address(bytes(4), 31001)}
    world.ports.set("default/web", view(port=0))
    assert world.listeners() == {}
    world.ports.set("default/web", None)
    assert world.ports.take_listeners() is None


def test_limited_addresses_are_followed(world):
    world.ports.set("default/web", view(endpoints={4: 1, 6: 1}))
    world.listeners()
    first, second = parse_ip("192.0.2.1"), parse_ip("192.0.2.2")
    world.ports.listen_on({4: (first, second), 6: ()})
    assert world.listeners().keys() == {Address(first, 31000), Address(second, 31000)}


def test_a_port_of_two_services_is_an_event_of_the_second(world):
    world.ports.set("default/web", view("web"))
    world.ports.set("default/api", view("api"))
    assert [listener.name for listener in world.listeners().values()] == ["healthCheckNodePort/default/api"]
    assert [(n.subject.name, n.note) for n in world.notices] == [
        ("web", "healthCheckNodePort 31000 is in use by default/api")
    ]


def test_a_busy_port_is_an_event_as_kube_proxy_has_it(world):
    world.ports.set("default/web", view())
    ((address, listener),) = world.listeners().items()
    listener.failed(address, OSError(errno.EADDRINUSE, "Address already in use"))
    (notice,) = world.notices
    assert (notice.reason, notice.action, str(notice.severity)) == (
        "FailedToStartServiceHealthcheck", "Listen", "Warning")  # fmt: skip
    assert notice.subject == ("Service", "default", "web", "uid-web")
    assert notice.note == "node failed to start healthcheck on 0.0.0.0:31000: Address already in use"
