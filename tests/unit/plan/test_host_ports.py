"""Ports on which programs of the node listen are theirs, and only Services that ask for them notice."""

from ipvsproxy.plan.host_ports import HostPorts
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.tally import Tally
from tests.support.build import config, key, node, service, slice_of

TCP, UDP = 6, 17
WEB = service("web", ports=((80, 30080), (53, 30053, "UDP")))
OUTSIDE = service("outside", ["10.96.0.11"], ((443, 0),), load_balancer_ips=["203.0.113.7"])
PLAIN = service("plain", ["10.96.0.12"], ((443, 0),))


def asked_for(*services):
    ports = HostPorts()
    for made in services:
        ports.service(made.key, None, made)
    return ports


def test_only_services_that_ask_for_a_port_notice_who_listens_on_it():
    ports = asked_for(WEB, OUTSIDE, PLAIN)
    assert ports.listening(frozenset({(TCP, 30080), (TCP, 22)})) == {"default/web"}
    assert ports.listening(frozenset({(TCP, 30080), (TCP, 443)})) == {"default/outside"}
    assert ports.listening(frozenset()) == {"default/web", "default/outside"}


def test_the_protocol_counts():
    assert asked_for(WEB).listening(frozenset({(UDP, 30080), (TCP, 30053)})) == set()


def test_a_service_that_goes_or_changes_leaves_nothing():
    ports = asked_for(WEB, service("twin", ["10.96.0.13"], ((80, 30080),)))
    ports.service(WEB.key, WEB, None)
    assert ports.listening(frozenset({(TCP, 30080)})) == {"default/twin"}
    ports.service("default/twin", service("twin", ["10.96.0.13"], ((80, 30080),)), None)
    assert ports.listening(frozenset()) == set()
    assert not ports._askers


def test_a_port_asked_for_anew_is_looked_up_and_one_known_is_not():
    ports = asked_for(WEB)
    assert ports.has_news
    ports.listening(frozenset())
    ports.service(WEB.key, WEB, service("web", ports=((80, 30080), (53, 30053, "UDP")), affinity_seconds=9))
    assert not ports.has_news
    ports.service(PLAIN.key, None, PLAIN)
    assert not ports.has_news


def test_a_node_port_on_which_a_program_listens_is_not_served():
    tally = Tally()
    here = node(ports_in_use=frozenset({(TCP, 30080), (UDP, 80)}))
    planned = plan_service(WEB, [slice_of("web", "10.244.2.1")], here, config(), tally)
    assert key("10.96.0.10:80") in planned
    assert key("10.96.0.10:53/UDP") in planned
    assert {name.port for name in planned} == {80, 53, 30053}
    assert set(tally.complaints) == {"NodePort 30080/TCP: a program of this node listens on this port"}


FRONT = service("front", ["10.96.0.14"], external_local=True, health_check_port=443)


def test_the_port_of_a_health_check_is_in_use_as_soon_as_its_service_is_there():
    ports = asked_for(WEB, OUTSIDE, PLAIN)
    ports.listening(frozenset({(TCP, 22)}))
    assert ports.service(FRONT.key, None, FRONT) == {"default/outside"}
    assert ports.in_use == {(TCP, 22), (TCP, 443)}
    assert ports.in_use is ports.in_use
    # The proxy listens there by now, which is no news.
    assert ports.listening(frozenset({(TCP, 22), (TCP, 443)})) == {"default/outside"}
    assert ports.service(FRONT.key, FRONT, None) == {"default/outside"}
    ports.listening(frozenset({(TCP, 22)}))
    assert ports.in_use == {(TCP, 22)}
