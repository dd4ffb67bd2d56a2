"""On the way back to kube-proxy, connections of the node to VIPs get an address of the node as their source.

To what is local the kernel gives the address itself as source, unless the route names another one. No reply comes
to a VIP that is no longer local, so connections that are to outlive the VIPs need the source that they would have
without them. A proxy that finds VIPs with such a source gives it back: the way back was not gone to its end.
"""

import os
from collections.abc import Collection, Iterator

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.wire.rtnetlink import RTN_UNICAST

NEIGHBOURS = 16
"""Beside the first VIP; one that is no VIP and to which a route leads is enough."""

log = structlog.get_logger()


def prefer_own_sources() -> list[str]:
    """Have new connections of the node to VIPs begin at an address of the node; return what could not be done.

    A family without a route to what is beside its VIPs is left as it is: without them, the node does not reach
    their Services anyway. Raises Lost.
    """
    links, problems = Links(), []
    links.look()
    addresses = {vip.address for vip in links.vips()}
    for length in sorted(set(map(len, addresses))):
        source = _source_beside({address for address in addresses if len(address) == length})
        if source is not None:
            problems += links.route_with_source(source)
            log.debug("Gave connections of the node to VIPs another source", source=format_ip(source))
    links.close()
    return problems


def give_back_sources(links: Links) -> None:
    """Have new connections of the node to VIPs have the source that the kernel gives them. Raises Lost."""
    refused = links.without_sources()
    for code in set(refused.values()):  # not thousands of lines
        vip = next(address for address, number in refused.items() if number == code)
        log.error(messages.VIP_REFUSED, vip=format_ip(vip), err=os.strerror(code), bind=True)


def _source_beside(vips: Collection[bytes]) -> bytes | None:
    """Return the source of connections to an address beside these VIPs; None where no route leads to one."""
    with IPRoute() as route:
        for address in _beside(vips):
            try:
                answers = route.route("get", dst=format_ip(address))
            except NetlinkError:
                continue
            for answer in answers:
                source = answer.get_attr("RTA_PREFSRC")
                if answer["type"] == RTN_UNICAST and source:
                    return parse_ip(source)
    return None


def _beside(vips: Collection[bytes]) -> Iterator[bytes]:
    first = min(vips)
    for bit in range(NEIGHBOURS):
        address = (int.from_bytes(first) ^ 1 << bit).to_bytes(len(first))
        if address not in vips:
            yield address
