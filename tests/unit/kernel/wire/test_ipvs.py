"""Our encoder against pyroute2's attribute by attribute, and records as the kernel writes them."""

import errno
import struct

import pytest
from pyroute2.netlink.generic.ipvs import ipvsmsg

from ipvsproxy.kernel import ipvs as ipvs_module
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.wire import ipvs as wire
from ipvsproxy.kernel.wire import ipvs_records as records
from ipvsproxy.kernel.wire.netlink import GENERIC, attribute, attributes
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import PERSISTENT, DestinationAttributes, FrontendKey, ServerAttributes
from tests.support.build import destination, key

FAMILY = 33
ONE, TWO = destination("10.244.1.1:8080"), destination("10.244.1.2:8081")
LIMITED = DestinationAttributes(3, upper_threshold=100, lower_threshold=80)
GUE = DestinationAttributes(2, forwarding_method=2, tunnel_type=1, tunnel_port=6080, tunnel_flags=1)
BY_NETWORK = ServerAttributes("rr", PERSISTENT, 60, 0xFFFFFF00, "sip")
CASES = [
    IpvsStep(Verb.NEW_SERVICE, key("10.96.0.1:80"), ServerAttributes("rr", 0, 0)),
    IpvsStep(Verb.NEW_SERVICE, key("10.96.0.1:80"), ServerAttributes("rr", 0, 0), (ONE, TWO)),
    IpvsStep(Verb.SET_SERVICE, key("10.96.0.1:53/UDP"), ServerAttributes("wlc", PERSISTENT, 600)),
    IpvsStep(Verb.NEW_SERVICE, key("[fd00::1]:132/SCTP"), ServerAttributes("mh", 0x18, 0)),
    IpvsStep(Verb.DEL_SERVICE, key("[fd00::1]:80")),
    IpvsStep(Verb.NEW_DEST, key("10.96.0.1:80"), None, (ONE,)),
    IpvsStep(Verb.NEW_DEST, key("10.96.0.1:80"), None, (ONE, TWO)),
    IpvsStep(
        Verb.SET_DEST, key("[fd00::1]:80"), None, (destination("[fd00:244::9]:65535"),), DestinationAttributes(0)
    ),
    IpvsStep(Verb.DEL_DEST, key("10.96.0.1:80"), None, (ONE,)),
    IpvsStep(Verb.NEW_SERVICE, key("10.96.0.1:80"), BY_NETWORK, (ONE,), LIMITED),
    IpvsStep(Verb.SET_SERVICE, key("[fd00::1]:80"), ServerAttributes("rr", PERSISTENT, 60, 64)),
    IpvsStep(Verb.SET_DEST, key("10.96.0.1:80"), None, (ONE, TWO), LIMITED),
    IpvsStep(Verb.NEW_DEST, key("10.96.0.1:80"), None, (ONE, TWO), GUE),
]


def case_name(step):
    return f"{step.verb.name}-{step.key}-{len(step.destinations)}"


def messages(step):
    """The messages of a step, each as (what it is about, bytes)."""
    data, found = wire.encode(FAMILY, step, 7), []
    while data:
        (length,) = struct.unpack_from("=I", data)
        assert length % 4 == 0
        found.append(data[:length])
        data = data[length:]
    return list(zip(wire.single(step), found, strict=True))


@pytest.mark.parametrize("step", CASES, ids=case_name)
def test_pyroute2_reads_what_we_write(step):
    assert len(messages(step)) == step.size
    for part, message in messages(step):
        decoded = ipvsmsg(message)
        decoded.decode()
        header = decoded["header"]
        assert (header["length"], header["type"], header["sequence_number"]) == (len(message), FAMILY, 7)
        assert decoded["cmd"] == part.verb
        subject = part.destinations[0] if part.destinations else None
        check_server(decoded.get_attr("IPVS_CMD_ATTR_SERVICE"), part, with_attributes=subject is None)
        check_destination(decoded.get_attr("IPVS_CMD_ATTR_DEST"), part, subject)


@pytest.mark.parametrize("step", CASES, ids=case_name)
def test_a_message_is_the_same_alone_and_among_others(step):
    assert [message for _, message in messages(step)] == [
        wire.encode(FAMILY, part, 7) for part in wire.single(step)
    ]


def test_a_step_with_very_many_destinations_is_sent_in_pieces():
    targets = tuple(destination(f"10.244.{n // 250}.{n % 250 + 1}:80") for n in range(1000))
    step = IpvsStep(Verb.NEW_SERVICE, key("10.96.0.1:80"), ServerAttributes("rr", 0, 0), targets)
    parts = list(wire.pieces(step))
    assert [part for piece in parts for part in wire.single(piece)] == list(wire.single(step))
    assert max(len(wire.encode(FAMILY, part, 1)) for part in parts) < 1 << 16


def check_server(service, step, *, with_attributes):
    assert service.get_attr("IPVS_SVC_ATTR_PROTOCOL") == step.key.protocol
    assert service.get_attr("IPVS_SVC_ATTR_PORT") == step.key.port
    assert service.get_attr("IPVS_SVC_ATTR_AF") == (2 if len(step.key.address) == 4 else 10)
    if step.server and with_attributes:
        assert service.get_attr("IPVS_SVC_ATTR_SCHED_NAME") == step.server.scheduler
        assert service.get_attr("IPVS_SVC_ATTR_TIMEOUT") == step.server.timeout
        assert service.get_attr("IPVS_SVC_ATTR_FLAGS") == {"flags": step.server.flags, "mask": 0xFFFFFFFF}
        assert (service.get_attr("IPVS_SVC_ATTR_PE_NAME") or "") == step.server.engine


def check_destination(target, step, subject):
    assert (target is None) is (subject is None)
    if subject:
        assert target.get_attr("IPVS_DEST_ATTR_PORT") == subject.port
        assert target.get_attr("IPVS_DEST_ATTR_WEIGHT") == step.attributes.weight
        assert target.get_attr("IPVS_DEST_ATTR_FWD_METHOD") == step.attributes.forwarding_method
        assert target.get_attr("IPVS_DEST_ATTR_U_THRESH") == step.attributes.upper_threshold
        assert target.get_attr("IPVS_DEST_ATTR_L_THRESH") == step.attributes.lower_threshold


@pytest.mark.parametrize("step", CASES, ids=case_name)
def test_we_read_what_we_write(step):
    for part, message in messages(step):
        body = message[16:]
        if part.server:
            assert records.parse_server(body) == (part.key, part.server)
        for subject in part.destinations:
            numbers = ((wire.IPVS_DEST_ATTR_ACTIVE_CONNS, 3), (wire.IPVS_DEST_ATTR_INACT_CONNS, 4))
            counters = b"".join(attribute(number, struct.pack("=I", value)) for number, value in numbers)
            nested = dict(attributes(body, GENERIC.size))[wire.IPVS_CMD_ATTR_DEST]
            found = GENERIC.pack(0, 1, 0) + attribute(wire.IPVS_CMD_ATTR_DEST, bytes(nested) + counters)
            assert records.parse_destination(found, 4) == (subject, part.attributes, 3, 4)
            assert records.parse_attributes(found, len(part.key.address)) == (subject, part.attributes)


SERVER_PARTS = (
    (wire.IPVS_SVC_ATTR_AF, b"\2\0"),
    (wire.IPVS_SVC_ATTR_PROTOCOL, b"\x11\0"),
    (wire.IPVS_SVC_ATTR_ADDR, ONE.address + bytes(12)),
    (wire.IPVS_SVC_ATTR_PORT, b"\0\x35"),
    (wire.IPVS_SVC_ATTR_SCHED_NAME, b"lblcr\0"),
    (wire.IPVS_SVC_ATTR_FLAGS, struct.pack("=II", 3, 0xFFFFFFFF)),
    (wire.IPVS_SVC_ATTR_TIMEOUT, struct.pack("=I", 60)),
    (wire.IPVS_SVC_ATTR_NETMASK, b"\xff" * 4),
)


@pytest.mark.parametrize(
    "parts",
    [
        SERVER_PARTS,
        SERVER_PARTS[::-1],
        (*SERVER_PARTS, (10, bytes(80))),
    ],
)
def test_servers_are_read_whatever_the_order_of_attributes(parts):
    body = GENERIC.pack(0, 1, 0) + attribute(
        wire.IPVS_CMD_ATTR_SERVICE, b"".join(attribute(*part) for part in parts)
    )
    assert records.parse_server(body) == (FrontendKey(ONE.address, 17, 53), ServerAttributes("lblcr", 1, 60))


@pytest.mark.parametrize(
    ("parts", "netmask", "engine"),
    [
        # Where the kernel puts it.
        ((*SERVER_PARTS[:5], (wire.IPVS_SVC_ATTR_PE_NAME, b"sip\0"), *SERVER_PARTS[5:]), None, "sip"),
        ((*SERVER_PARTS[:7], (wire.IPVS_SVC_ATTR_NETMASK, b"\xff\xff\xff\0")), 0xFFFFFF00, ""),
    ],
)
def test_all_attributes_of_servers_are_read(parts, netmask, engine):
    body = GENERIC.pack(0, 1, 0) + attribute(
        wire.IPVS_CMD_ATTR_SERVICE, b"".join(attribute(*part) for part in parts)
    )
    assert records.parse_server(body) == (
        FrontendKey(ONE.address, 17, 53),
        ServerAttributes("lblcr", 1, 60, netmask, engine),
    )


def test_firewall_mark_servers_are_not_read():
    nested = attribute(wire.IPVS_SVC_ATTR_AF, b"\2\0") + attribute(wire.IPVS_SVC_ATTR_FWMARK, b"\1\0\0\0")
    assert records.parse_server(GENERIC.pack(0, 1, 0) + attribute(wire.IPVS_CMD_ATTR_SERVICE, nested)) is None


def record(*parts):
    """A destination as a kernel could write it: attributes in some order."""
    return GENERIC.pack(0, 1, 0) + attribute(wire.IPVS_CMD_ATTR_DEST, b"".join(attribute(*part) for part in parts))


ADDRESS, PORT = (wire.IPVS_DEST_ATTR_ADDR, ONE.address + bytes(12)), (wire.IPVS_DEST_ATTR_PORT, b"\x1f\x90")
METHOD, WEIGHT = (wire.IPVS_DEST_ATTR_FWD_METHOD, bytes(4)), (wire.IPVS_DEST_ATTR_WEIGHT, struct.pack("=I", 7))
UPPER, LOWER = (wire.IPVS_DEST_ATTR_U_THRESH, bytes(4)), (wire.IPVS_DEST_ATTR_L_THRESH, bytes(4))
REST = ((wire.IPVS_DEST_ATTR_ACTIVE_CONNS, bytes(4)), (wire.IPVS_DEST_ATTR_INACT_CONNS, bytes(4)))


@pytest.mark.parametrize("order", [(ADDRESS, PORT, METHOD, WEIGHT, UPPER, LOWER), (WEIGHT, METHOD, PORT, ADDRESS)])
def test_weights_are_read_in_any_order_of_attributes(order):
    assert records.parse_attributes(record(*order, *REST), 4) == (ONE, DestinationAttributes(7))


TUNNEL = (
    (wire.IPVS_DEST_ATTR_TUN_TYPE, b"\1"),
    (wire.IPVS_DEST_ATTR_TUN_PORT, b"\x17\xc0"),
    (wire.IPVS_DEST_ATTR_TUN_FLAGS, struct.pack("=H", 1)),
)


@pytest.mark.parametrize("tunnel", [TUNNEL, ()], ids=["since 5.3", "before"])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((METHOD, UPPER, (wire.IPVS_DEST_ATTR_L_THRESH, b"\1\0\0\0")), {"lower_threshold": 1}),
        ((METHOD, (wire.IPVS_DEST_ATTR_U_THRESH, b"\2\0\0\0"), LOWER), {"upper_threshold": 2}),
        (((wire.IPVS_DEST_ATTR_FWD_METHOD, b"\3\0\0\0"), UPPER, LOWER), {"forwarding_method": 3}),
    ],
)
def test_all_attributes_of_destinations_are_read(parts, expected, tunnel):
    method, upper, lower = parts
    found = records.parse_attributes(record(ADDRESS, PORT, method, WEIGHT, *tunnel, upper, lower, *REST), 4)
    assert found == (ONE, DestinationAttributes(7, **expected))


def test_the_tunnel_of_a_destination_is_read():
    method = (wire.IPVS_DEST_ATTR_FWD_METHOD, b"\2\0\0\0")
    found = records.parse_attributes(record(ADDRESS, PORT, method, WEIGHT, *TUNNEL, UPPER, LOWER, *REST), 4)
    assert found == (ONE, DestinationAttributes(7, 0, 0, 2, 1, 6080, 1))


def test_usual_destinations_share_one_value():
    parts = (ADDRESS, PORT, METHOD, WEIGHT, *TUNNEL, UPPER, LOWER, *REST)
    first, second = (records.parse_attributes(record(*parts), 4)[1] for _ in range(2))
    assert first is second


def test_the_family_of_a_destination_need_not_be_that_of_its_server():
    tunnel = destination("[fd00:244::9]:8080")
    own = (wire.IPVS_DEST_ATTR_ADDR, tunnel.address), (wire.IPVS_DEST_ATTR_ADDR_FAMILY, b"\x0a\0")
    parts = own[0], PORT, METHOD, WEIGHT, *REST, own[1]
    assert records.parse_attributes(record(*parts), 4) == (tunnel, DestinationAttributes(7))


@pytest.mark.parametrize(
    ("frontend", "mask"), [("10.96.0.1:80", "255.255.255.255"), ("[fd00::1]:80", "128.0.0.0")]
)
def test_affinity_is_that_of_whole_addresses(frontend, mask):
    """An IPv4 netmask, but the length of an IPv6 prefix, which pyroute2 takes for an address as well."""
    ((_, message),) = messages(IpvsStep(Verb.NEW_SERVICE, key(frontend), ServerAttributes("rr", 0, 0)))
    decoded = ipvsmsg(message)
    decoded.decode()
    assert decoded.get_attr("IPVS_CMD_ATTR_SERVICE").get_attr("IPVS_SVC_ATTR_NETMASK") == mask


def test_timeouts_longer_than_the_kernel_can_count_are_for_the_kernel_to_refuse():
    sent = []

    class Sent:
        def batch(self, pieces):
            sent.extend(pieces)
            return {}

    ipvs = Ipvs.__new__(Ipvs)
    ipvs._family, ipvs._wire = 30, Sent()
    ipvs.set_timeouts(7_200_000_000, 0, 300)
    values = {number: records.native_u32(payload) for number, payload in attributes(sent[0][16:], GENERIC.size)}
    assert values == {wire.IPVS_CMD_ATTR_TIMEOUT_TCP: 0xFFFFFFFF, wire.IPVS_CMD_ATTR_TIMEOUT_TCP + 2: 300}


class RefusingWire:
    """A socket that refuses some steps, by what they are and which destination they are about."""

    def __init__(self, monkeypatch, **codes):
        self.codes, self.tried = codes, []
        monkeypatch.setattr(ipvs_module, "encode", lambda _, step, __: step)

    def batch(self, steps):
        found = {}
        for index, step in enumerate(steps):
            self.tried.append(step.verb.name)
            if code := self.codes.get(step.verb.name):
                found[index] = code
        return found


def applied(monkeypatch, step, **codes):
    """Carry out a step; return what was tried and what was refused of it."""
    ipvs = Ipvs.__new__(Ipvs)
    ipvs._family, ipvs._wire = FAMILY, RefusingWire(monkeypatch, **codes)
    refused = ipvs.apply([step])
    return ipvs._wire.tried, [(item.step.verb.name, item.errno) for item in refused]


WEB, RR = key("10.96.0.1:80"), ServerAttributes("rr", 0, 0)
NEW = IpvsStep(Verb.NEW_SERVICE, WEB, RR, (ONE,))


def test_what_is_there_already_is_set_in_place(monkeypatch):
    tried, refused = applied(monkeypatch, NEW, NEW_SERVICE=errno.EEXIST, NEW_DEST=errno.EEXIST)
    assert tried == ["NEW_SERVICE", "NEW_SERVICE", "NEW_DEST", "SET_SERVICE", "SET_DEST"]
    assert refused == []
    _, refused = applied(monkeypatch, NEW, NEW_SERVICE=errno.EEXIST, SET_SERVICE=errno.EPERM)
    assert refused == [("SET_SERVICE", errno.EPERM)]


@pytest.mark.parametrize(
    ("step", "code", "counts"),
    [
        (IpvsStep(Verb.DEL_SERVICE, WEB), errno.ESRCH, False),
        (IpvsStep(Verb.DEL_SERVICE, WEB), errno.EPERM, True),
        (IpvsStep(Verb.DEL_DEST, WEB, None, (ONE,)), errno.ENOENT, False),
        # Its whole server is gone, which somebody else has done.
        (IpvsStep(Verb.DEL_DEST, WEB, None, (ONE,)), errno.ESRCH, True),
        (IpvsStep(Verb.SET_DEST, WEB, None, (ONE,)), errno.ENOENT, True),
        (IpvsStep(Verb.NEW_DEST, WEB, None, (ONE,)), errno.ESRCH, True),
    ],
)
def test_what_is_gone_already_counts_as_removed(monkeypatch, step, code, counts):
    _, refused = applied(monkeypatch, step, **{step.verb.name: code})
    assert refused == ([(step.verb.name, code)] if counts else [])
