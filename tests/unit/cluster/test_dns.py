"""The stand-in for cluster DNS: names after the specification, messages after the RFCs."""

from __future__ import annotations

import struct

import pytest

from tests.cluster import dns_wire
from tests.cluster.dns_wire import Malformed, Record
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


def question(name: str, kind: str, extra: bytes = b"") -> bytes:
    header = dns_wire.HEADER.pack(7, 0x0100, 1, 0, 0, 1 if extra else 0)
    return header + dns_wire.encode_name(name) + struct.pack(">2H", dns_wire.KINDS[kind], 1) + extra


def test_a_question_is_read_and_answered_with_its_records():
    asked = dns_wire.parse(question("Web.Shop", "A"))
    assert (asked.number, asked.name, asked.kind, asked.size) == (7, "web.shop", "A", 512)
    said = dns_wire.answer(asked, [Record("A", "web.shop", "10.96.0.7")], "cluster.local")
    assert dns_wire.HEADER.unpack_from(said) == (7, 0x8580, 1, 1, 0, 0)
    assert said.endswith(bytes([10, 96, 0, 7]))


def test_a_name_that_does_not_exist_and_one_without_records_differ():
    asked = dns_wire.parse(question("web.shop", "A"))
    assert dns_wire.HEADER.unpack_from(dns_wire.answer(asked, None, "cluster.local")) == (7, 0x8583, 1, 0, 1, 0)
    assert dns_wire.HEADER.unpack_from(dns_wire.answer(asked, [], "cluster.local")) == (7, 0x8580, 1, 0, 1, 0)


def test_an_answer_that_is_too_long_for_udp_says_so():
    records = [Record("A", "web.shop", f"10.96.0.{number}") for number in range(1, 41)]
    asked = dns_wire.parse(question("web.shop", "A"))
    said = dns_wire.answer(asked, records, "cluster.local", asked.size)
    assert dns_wire.HEADER.unpack_from(said) == (7, 0x8780, 1, 0, 0, 0)
    large = dns_wire.parse(question("web.shop", "A", b"\0" + struct.pack(">2HIH", 41, 1232, 0, 0)))
    assert large.size == 1232
    assert len(dns_wire.answer(large, records, "cluster.local", large.size)) > 512


@pytest.mark.parametrize(
    "message", [b"", b"\0" * 12, question("a", "A")[:-3], question("a", "A")[:12] + b"\xc0\x0c\0\1\0\1"]
)
def test_what_is_no_question_is_refused(message: bytes):
    with pytest.raises(Malformed):
        dns_wire.parse(message)
