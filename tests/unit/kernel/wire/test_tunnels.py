"""Messages about tunnels, as pyroute2 decodes them; what the kernel does with them is in tests/integration."""

import socket

import pytest
from pyroute2.netlink import genlmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.wire.ipvs import NESTED
from ipvsproxy.kernel.wire.netlink import HEADER
from ipvsproxy.kernel.wire.tunnels import (
    IFLA_AF_SPEC,
    IFLA_INET_CONF,
    RP_FILTER,
    PodLink,
    ipv4_settings,
    new_gue_port,
    new_tunnel,
    read_gue_port,
    read_link,
    set_up,
)


def decoded(data, kind=ifinfmsg):
    found = kind(data)
    found.decode()
    return found


@pytest.mark.parametrize(("number", "address", "kind"), [(4, "10.244.1.10", "ipip"), (6, "fd00::10", "ip6tnl")])
def test_the_end_of_a_tunnel(number, address, kind):
    data = new_tunnel("tunnel0", number, parse_ip(address))
    found = decoded(data)
    assert found.get_attr("IFLA_IFNAME") == "tunnel0"
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == kind
    assert read_link(data[HEADER.size :]) == PodLink(0, "tunnel0", False, parse_ip(address))


def test_a_link_is_set_up():
    found = decoded(set_up(7))
    assert (found["index"], found["flags"], found["change"]) == (7, 1, 1)


def test_settings_of_a_link():
    """One number and its value, three attributes deep: family, settings, setting."""
    data = ipv4_settings(7, {RP_FILTER: 0})
    heads = (20, IFLA_AF_SPEC), (16, socket.AF_INET), (12, IFLA_INET_CONF), (8, RP_FILTER)
    assert data.endswith(b"".join(NESTED.pack(*head) for head in heads) + bytes(4))


@pytest.mark.parametrize(("length", "family"), [(4, socket.AF_INET), (16, socket.AF_INET6)])
def test_a_port_for_gue(length, family):
    data = new_gue_port(33, 6080, length)
    assert (decoded(data, genlmsg)["header"]["type"], decoded(data, genlmsg)["cmd"]) == (33, 1)
    assert read_gue_port(data[HEADER.size :]) == (family, 6080)
