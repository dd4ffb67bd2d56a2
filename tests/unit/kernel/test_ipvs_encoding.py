"""Our encoder against pyroute2's attribute by attribute, and records as the kernel writes them."""

import struct

import pytest
from build import destination, key
from pyroute2.netlink.generic.ipvs import ipvsmsg

from ipvsproxy.kernel import ipvs as module
from ipvsproxy.kernel.netlink import GENERIC, attribute, attributes
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import PERSISTENT, Server

CASES = [
    IpvsStep(Verb.NEW_SERVICE, key("10.96.0.1:80"), Server("rr", 0, 0)),
    IpvsStep(Verb.SET_SERVICE, key("10.96.0.1:53/UDP"), Server("wlc", PERSISTENT, 600)),
    IpvsStep(Verb.NEW_SERVICE, key("[fd00::1]:132/SCTP"), Server("mh", 0x18, 0)),
    IpvsStep(Verb.DEL_SERVICE, key("[fd00::1]:80")),
    IpvsStep(Verb.NEW_DEST, key("10.96.0.1:80"), None, destination("10.244.1.1:8080"), 1),
    IpvsStep(Verb.SET_DEST, key("[fd00::1]:80"), None, destination("[fd00:244::9]:65535"), 0),
    IpvsStep(Verb.DEL_DEST, key("10.96.0.1:80"), None, destination("10.244.1.1:8080")),
]


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(module, "generic_family", lambda _: 33)
    monkeypatch.setattr(module, "Wire", lambda *_, **__: None)
    return module.Ipvs()


@pytest.mark.parametrize("step", CASES, ids=lambda s: f"{s.verb.name}-{s.key}")
def test_pyroute2_reads_what_we_write(encoder, step):
    message = encoder._message(step)
    assert message.type == 33
    header = struct.pack("=IHHII", 16 + len(message.body), 33, 0, 0, 0)
    decoded = ipvsmsg(header + message.body)
    decoded.decode()
    assert decoded["cmd"] == step.verb
    service = decoded.get_attr("IPVS_CMD_ATTR_SERVICE")
    assert service.get_attr("IPVS_SVC_ATTR_PROTOCOL") == step.key.protocol
    assert service.get_attr("IPVS_SVC_ATTR_PORT") == step.key.port
    assert service.get_attr("IPVS_SVC_ATTR_AF") == (2 if len(step.key.address) == 4 else 10)
    if step.server:
        assert service.get_attr("IPVS_SVC_ATTR_SCHED_NAME") == step.server.scheduler
        assert service.get_attr("IPVS_SVC_ATTR_TIMEOUT") == step.server.timeout
        assert service.get_attr("IPVS_SVC_ATTR_FLAGS") == {"flags": step.server.flags, "mask": 0xFFFFFFFF}
    target = decoded.get_attr("IPVS_CMD_ATTR_DEST")
    assert (target is None) is (step.destination is None)
    if target:
        assert target.get_attr("IPVS_DEST_ATTR_PORT") == step.destination.port
        assert target.get_attr("IPVS_DEST_ATTR_WEIGHT") == step.weight
        assert target.get_attr("IPVS_DEST_ATTR_FWD_METHOD") == 0


@pytest.mark.parametrize("step", CASES, ids=lambda s: f"{s.verb.name}-{s.key}")
def test_we_read_what_we_write(encoder, step):
    body = encoder._message(step).body
    if step.server:
        flags = step.server.flags | module.HASHED
        assert module._parse_server(body) == (step.key, step.server)
        assert flags & ~module.HASHED == step.server.flags
    if step.destination:
        counters = attribute(module.DEST_ACTIVE, struct.pack("=I", 3)) + attribute(
            module.DEST_INACTIVE, struct.pack("=I", 4)
        )
        nested = dict(attributes(body, GENERIC.size))[module.CMD_DEST]
        record = GENERIC.pack(0, 1, 0) + attribute(module.CMD_DEST, bytes(nested) + counters)
        assert module._parse_destination(record, 4) == (step.destination, step.weight, 3, 4)


def test_every_attribute_is_aligned(encoder):
    for step in CASES:
        assert len(encoder._message(step).body) % 4 == 0


def test_firewall_mark_servers_are_not_read():
    nested = attribute(module.SVC_AF, b"\2\0") + attribute(module.SVC_FWMARK, b"\1\0\0\0")
    assert module._parse_server(GENERIC.pack(0, 1, 0) + attribute(module.CMD_SERVICE, nested)) is None
