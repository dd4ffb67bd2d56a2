"""The stand-in for cluster DNS: names after the specification, messages after the RFCs."""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from tests.cluster import dns_answers
from tests.cluster.dns_zone import Zone

TCP = [{"name": "http", "port": 80, "protocol": "TCP"}]


def service(name: str, **spec: object) -> dict:
    return {"metadata": {"namespace": "shop", "name": name}, "spec": {"type": "ClusterIP", "ports": TCP, **spec}}


def endpoint_slice(name: str, *endpoints: dict) -> dict:
    labels = {"kubernetes.io/service-name": name}
    ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
    return {
        "metadata": {"namespace": "shop", "name": f"{name}-1", "labels": labels},
        "ports": ports,
        "endpoints": endpoints,
    }


ZONE = Zone(
    [
        service("web", clusterIP="10.96.0.7", clusterIPs=["10.96.0.7", "fd00:10:96::7"]),
        service("db", clusterIP="None"),
        service("early", clusterIP="None", publishNotReadyAddresses=True),
        service("empty", clusterIP="None"),
        {
            "metadata": {"namespace": "shop", "name": "out"},
            "spec": {"type": "ExternalName", "externalName": "Example.org."},
        },
    ],
    [
        endpoint_slice(
            "db",
            {"addresses": ["10.244.1.5"], "hostname": "db-0"},
            {"addresses": ["10.244.2.6"], "conditions": {"ready": True}},
            {"addresses": ["10.244.2.9"], "conditions": {"ready": False}},
        ),
        endpoint_slice("early", {"addresses": ["10.244.2.9"], "conditions": {"ready": False}}),
    ],
)


def values(name: str, kind: str) -> list[tuple[str, str, int]] | None:
    records = ZONE.records(name, kind)
    return None if records is None else [(record.kind, record.value, record.port) for record in records]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web.shop.svc.cluster.local", "A", [("A", "10.96.0.7", 0)]),
        ("web.shop.svc.cluster.local", "AAAA", [("AAAA", "fd00:10:96::7", 0)]),
        ("web.shop.svc.cluster.local", "SRV", [("SRV", "web.shop.svc.cluster.local", 80)]),
        ("_http._tcp.web.shop.svc.cluster.local", "SRV", [("SRV", "web.shop.svc.cluster.local", 80)]),
        ("_http._udp.web.shop.svc.cluster.local", "SRV", None),
        ("db.shop.svc.cluster.local", "A", [("A", "10.244.1.5", 0), ("A", "10.244.2.6", 0)]),
        ("db.shop.svc.cluster.local", "AAAA", []),
        ("db-0.db.shop.svc.cluster.local", "A", [("A", "10.244.1.5", 0)]),
        ("db-1.db.shop.svc.cluster.local", "A", None),
        ("early.shop.svc.cluster.local", "A", [("A", "10.244.2.9", 0)]),
        ("empty.shop.svc.cluster.local", "A", None),
        ("out.shop.svc.cluster.local", "A", [("CNAME", "Example.org.", 0)]),
        ("none.shop.svc.cluster.local", "A", None),
        ("10-244-1-5.shop.pod.cluster.local", "A", [("A", "10.244.1.5", 0)]),
        ("dns-version.cluster.local", "TXT", [("TXT", "1.1.0", 0)]),
        ("example.org", "A", None),
        ("7.0.96.10.in-addr.arpa", "PTR", [("PTR", "web.shop.svc.cluster.local", 0)]),
        ("5.1.244.10.in-addr.arpa", "PTR", [("PTR", "db-0.db.shop.svc.cluster.local", 0)]),
        ("9.9.9.9.in-addr.arpa", "PTR", None),
        ("nonsense.in-addr.arpa", "PTR", None),
    ],
)
def test_names_of_the_specification(name: str, kind: str, expected: list | None):
    assert values(name, kind) == expected


def test_ports_of_a_headless_service_are_those_of_its_endpoints():
    found = values("_http._tcp.db.shop.svc.cluster.local", "SRV")
    names = ["db-0.db.shop.svc.cluster.local", "10-244-2-6.db.shop.svc.cluster.local"]
    assert found == [("SRV", name, 8080) for name in names]


def test_an_ipv6_address_has_a_pointer():
    digits = "".join(f"{part:0>4}" for part in ("fd00", "10", "96", "0", "0", "0", "0", "7"))
    assert values(f"{'.'.join(reversed(digits))}.ip6.arpa", "PTR") == [("PTR", "web.shop.svc.cluster.local", 0)]


def ask(name: str, kind: str, *, is_udp: bool = True, zone: Zone = ZONE, **edns: int) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **edns)
    return dns.message.from_wire(dns_answers.answer(query.to_wire(), zone, is_udp=is_udp))


def test_a_question_in_any_case_is_answered_with_its_records():
    said = ask("Web.Shop.svc.cluster.local.", "A")
    assert said.rcode() == dns.rcode.NOERROR
    assert said.flags & dns.flags.AA
    assert [rrset.to_text() for rrset in said.answer] == ["Web.Shop.svc.cluster.local. 5 IN A 10.96.0.7"]


@pytest.mark.parametrize("kind", ["SRV", "AAAA", "A"])
def test_all_kinds_of_records_can_be_written(kind: str):
    assert ask("web.shop.svc.cluster.local.", kind).answer
    assert ask("dns-version.cluster.local.", "TXT").answer[0].to_text().endswith('TXT "1.1.0"')
    assert ask("out.shop.svc.cluster.local.", kind).answer[0].to_text().endswith("CNAME Example.org.")


def test_a_name_that_does_not_exist_and_one_without_records_differ():
    missing, empty = ask("none.shop.svc.cluster.local.", "A"), ask("db.shop.svc.cluster.local.", "AAAA")
    assert (missing.rcode(), empty.rcode()) == (dns.rcode.NXDOMAIN, dns.rcode.NOERROR)
    assert not missing.answer
    assert not empty.answer
    assert missing.authority[0].rdtype == empty.authority[0].rdtype == dns.rdatatype.SOA


def test_an_answer_that_is_longer_than_the_client_takes_by_udp_is_marked_truncated():
    endpoints = [{"addresses": [f"10.244.1.{number}"]} for number in range(1, 41)]
    zone = Zone([service("db", clusterIP="None")], [endpoint_slice("db", *endpoints)])
    short = ask("db.shop.svc.cluster.local.", "A", zone=zone)
    assert short.flags & dns.flags.TC
    assert not short.answer
    for whole in (
        ask("db.shop.svc.cluster.local.", "A", zone=zone, use_edns=0, payload=4096),
        ask("db.shop.svc.cluster.local.", "A", zone=zone, is_udp=False),
    ):
        assert not whole.flags & dns.flags.TC
        assert sum(len(rrset) for rrset in whole.answer) == 40


@pytest.mark.parametrize("message", [b"", b"\0" * 12, dns.message.make_query("a.", "A").to_wire()[:-3]])
def test_what_is_no_question_is_refused(message: bytes):
    with pytest.raises(dns.exception.DNSException):
        dns_answers.answer(message, ZONE, is_udp=True)
