"""Which addresses `doctor SERVICE` asks: those that clients dial, also where one server has several ports."""

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.service_survey import HERE, _questions
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.plan.model import Protocol
from tests.support.build import config, service, slice_of

PORTS = ((23, 0, "TCP", "control"), (990, 0, "TCP", "secure"))
NUMBERS = ((23, "TCP", "control"), (990, "TCP", "secure"))
ADDRESSES = {f"10.96.0.10:{port}/TCP" for port in (23, 990)}
ENDPOINTS = {f"10.244.1.1:{port}/TCP" for port in (23, 990)}


def asked(**settings):
    svc = service(ports=PORTS, **settings)
    listed = [
        Listed(Kind.SERVICE, {svc.key: svc}),
        Listed(Kind.ENDPOINT_SLICE, {"default/web": slice_of("web", "10.244.1.1", ports=NUMBERS)}),
        Listed(Kind.NODE, {}),
    ]
    wanted = desired(config(), listed, [parse_ip("192.0.2.1")])
    return {str(question.key): question.frontend for question in _questions(svc, wanted, [HERE])}


def test_each_port_of_a_service_is_asked_at_its_address_and_its_endpoints():
    found = asked()
    assert found.keys() == ADDRESSES | ENDPOINTS
    assert {str(frontend.key) for frontend in found.values() if frontend} == ADDRESSES


def test_ports_with_one_affinity_are_asked_one_by_one():
    found = asked(affinity_seconds=60, affinity_scope="service")
    assert found.keys() == ADDRESSES | ENDPOINTS
    assert {str(frontend.key) for frontend in found.values() if frontend} == {"10.96.0.10:0/TCP"}


def test_a_port_within_a_range_is_asked_at_the_server_of_its_own():
    found = asked(port_ranges=((Protocol.TCP, 1, 65535),))
    assert found.keys() == ADDRESSES | ENDPOINTS
    assert {str(frontend.key) for frontend in found.values() if frontend} == ADDRESSES
