"""Bytes of set elements into the planner's words. That the kernel has these bytes is seen in tests/integration."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.inspect.elements import SHAPES, RawElement, key, text, texts, value
from nft import ruleset

FRONTEND = bytes.fromhex("0a600001 06000000 01bb0000")


def test_every_set_of_the_ruleset_has_a_shape():
    names = {line.split()[1] for line in ruleset().splitlines() if line.startswith(("\tset ", "\tmap "))}
    assert names == SHAPES.keys()


@pytest.mark.parametrize(
    ("name", "parts", "data"),
    [
        ("frontends4", (parse_ip("10.96.0.1"), 6, 443), FRONTEND),
        ("allowed4", (parse_ip("10.96.0.1"), 6, 443, parse_ip("1.2.3.4")), FRONTEND + bytes((1, 2, 3, 4))),
        ("frontends6", (parse_ip("fd00::1"), 132, 53), parse_ip("fd00::1") + bytes.fromhex("84000000 00350000")),
        ("health_check_ports", (30000,), b"\x75\x30"),
        ("pod_interfaces", ("cni0",), b"cni0" + bytes(12)),
        ("vips4", (parse_ip("10.96.0.1"),), parse_ip("10.96.0.1")),
    ],
)
def test_keys(name, parts, data):
    assert key(name, parts) == data


def test_what_maps_say():
    assert text("frontends4", RawElement(FRONTEND)) == "10.96.0.1 . tcp . 443"
    verdicts = [
        RawElement(FRONTEND, code=1),
        RawElement(FRONTEND, code=0),
        RawElement(FRONTEND, code=-4, chain="refuse"),
        RawElement(FRONTEND),
    ]
    assert [value("frontends4", raw) for raw in verdicts] == ["accept", "drop", "goto refuse", ""]
    inside = RawElement(FRONTEND, value=bytes.fromhex("0a600002 00500000"))
    assert value("inside4", inside) == "10.96.0.2 . 80"


def marks(kind, *pairs):
    return [RawElement(kind(first), stops=stops) for first, stops in pairs]


def test_intervals_of_addresses():
    found = marks(
        parse_ip, ("10.245.0.0", True), ("10.244.0.0", False), ("0.0.0.0", True), ("192.0.2.1", False),
        ("192.0.2.2", True), ("192.0.2.8", False), ("192.0.2.11", True), ("255.0.0.0", False),
    )  # fmt: skip
    assert list(texts("pod_cidrs4", found)) == [
        "10.244.0.0/16", "192.0.2.1/32", "192.0.2.8-192.0.2.10", "255.0.0.0/8"
    ]  # fmt: skip


def test_no_intervals():
    assert texts("pod_cidrs4", []) == {}


def test_intervals_that_touch():
    found = marks(parse_ip, ("10.0.0.0", False), ("10.0.1.0", True), ("10.0.1.0", False), ("10.0.2.0", True))
    assert list(texts("pod_cidrs4", found)) == ["10.0.0.0/24", "10.0.1.0/24"]


def test_names_of_links():
    def name(text):
        return text.encode().ljust(16, b"\0")

    exact = (int.from_bytes(name("br0")) + 1).to_bytes(16)
    found = [
        RawElement(name("br0")),
        RawElement(exact, stops=True),
        RawElement(name("cni")),
        RawElement(name("cnj"), stops=True),
    ]
    assert list(texts("pod_interfaces", found)) == ['"br0"', '"cni*"']


def test_source_ranges():
    first, last = FRONTEND + parse_ip("10.0.0.0"), FRONTEND + parse_ip("10.0.255.255")
    assert text("allowed4", RawElement(first, last)) == "10.96.0.1 . tcp . 443 . 10.0.0.0/16"
    assert text("allowed4", RawElement(first, first)) == "10.96.0.1 . tcp . 443 . 10.0.0.0"
