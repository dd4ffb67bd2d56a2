import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.base.address import (
    Cidr,
    family,
    format_endpoint,
    format_ip,
    is_link_local_v6,
    is_loopback,
    is_node_address,
    is_unspecified,
    parse_cidr,
    parse_ip,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("010.000.00.01", "10.0.0.1"),  # decimal, never octal
        ("010.08.0.9", "10.8.0.9"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_accepted(text, shown):
    assert format_ip(parse_ip(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "None",
        "10.0.0",
        "10.0.0.256",
        "1.2.3.4.5",
        "10.0.0.1/32",
        "fe80::1%eth0",
        "10.0.0.x",
        "a\0b",
        "\u0661.2.3.4",
    ],
)
def test_not_an_address(text):
    with pytest.raises(ValueError, match="is not an IP address"):
        parse_ip(text)


@settings(deadline=None)  # a busy machine is no bug
@given(st.ip_addresses())
def test_like_the_standard_library(address):
    packed = parse_ip(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    assert packed == (mapped or address).packed
    assert family(packed) == (4 if mapped else address.version)
    assert parse_ip(format_ip(packed)) == packed


@settings(deadline=None)  # a busy machine is no bug
@given(st.ip_addresses(v=4))
def test_leading_zeros_change_nothing(address):
    padded = ".".join(f"{int(octet):04}" for octet in str(address).split("."))
    assert parse_ip(padded) == address.packed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.77/24", "10.0.0.0/24"),
        ("010.0.0.1/08", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::5/64", "2001:db8::/64"),
        ("::ffff:10.1.2.3/112", "10.1.0.0/16"),
        ("10.0.0.1/32", "10.0.0.1/32"),
    ],
)
def test_cidr(text, shown):
    assert str(parse_cidr(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "x/8",
        "::/129",
        "::ffff:10.0.0.0/95",
        "1.1.1.1/²",
    ],
)
def test_not_a_cidr(text):
    with pytest.raises(ValueError, match="is not"):
        parse_cidr(text)


@settings(deadline=None)  # a busy machine is no bug
@given(st.ip_addresses(), st.data())
def test_cidr_contains_what_the_standard_library_finds(address, data):
    if getattr(address, "ipv4_mapped", None):
        return
    prefix = data.draw(st.integers(0, address.max_prefixlen))
    cidr = parse_cidr(f"{address}/{prefix}")
    network = ipaddress.ip_network((address, prefix), strict=False)
    assert cidr == Cidr(network.network_address.packed, prefix)
    assert address.packed in cidr
    other = data.draw(st.ip_addresses(v=address.version))
    assert (other.packed in cidr) == (other in network)


def test_a_cidr_holds_nothing_of_the_other_family():
    assert parse_ip("::") not in parse_cidr("0.0.0.0/0")
    assert "10.0.0.1" not in parse_cidr("10.0.0.0/8")


def test_endpoint_text():
    assert format_endpoint(parse_ip("10.0.0.1"), 80) == "10.0.0.1:80"
    assert format_endpoint(parse_ip("fd00::1"), 80) == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("text", "loopback", "link_local", "unspecified", "of_node"),
    [
        ("127.1.2.3", True, False, False, False),
        ("::1", True, False, False, False),
        ("::2", False, False, False, True),
        ("fe80::1", False, True, False, False),
        ("febf::1", False, True, False, False),
        ("fec0::1", False, False, False, True),
        ("169.254.1.1", False, False, False, True),
        ("0.0.0.0", False, False, True, True),
        ("::", False, False, True, True),
        ("192.0.2.1", False, False, False, True),
    ],
)
def test_classes(text, loopback, link_local, unspecified, of_node):
    address = parse_ip(text)
    assert is_loopback(address) is loopback
    assert is_link_local_v6(address) is link_local
    assert is_unspecified(address) is unspecified
    assert is_node_address(address) is of_node
