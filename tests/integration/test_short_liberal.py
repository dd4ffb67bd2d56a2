"""With --conntrack-tcp-be-liberal what is out of the window is translated, on the short path and by a view."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ipvsproxy.kernel.filters.nf_tables import read_chains
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.probe import spread
from tests.lab.published import balancer
from tests.lab.short_services import WEB, ShortServices, short_services, tapped
from tests.lab.waiting import eventually

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables"), pytest.mark.parametrize("family", [4, 6])]
LIBERAL = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")


@pytest.fixture(scope="module")
def short(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortServices]:
    where = pathlib.Path(tmp_path_factory.mktemp("short"))
    with short_services(session_lab, where, "--conntrack-tcp-be-liberal") as services:
        yield services
    with netns.inside(session_lab.nodes[0].netns):
        LIBERAL.write_text("0")


@pytest.mark.parametrize("endpoint", ["p21", "node1"])
def test_packets_out_of_the_window_end_no_connection(short: ShortServices, family: int, endpoint: str) -> None:
    """They come from where the client has connected to, and both ends only ignore them."""
    short.put(WEB, endpoint)
    eventually(lambda: short.names("p12", family) == {endpoint})
    assert not short.has_server(family)
    with netns.inside(short.lab.nodes[0].netns):
        assert "forward_short" not in {chain.name for chain in read_chains()}
    with tapped(short, family, endpoint) as connection:
        assert b"far ahead" in connection.send_far_ahead()
        assert connection.answers()


@pytest.mark.parametrize("endpoint", ["p21", "node1"])
def test_packets_out_of_the_window_end_no_connection_by_a_view(
    short: ShortServices, family: int, endpoint: str
) -> None:
    vips = [balancer(WEB, number) for number in (4, 6)]
    by_ipvs = {"data-path": "ipvs"}
    short.put(
        WEB, endpoint, annotations=by_ipvs, type_="LoadBalancer", ingress=vips, externalTrafficPolicy="Local"
    )
    asked = replace(short.question("p12", family), address=balancer(WEB, family))
    eventually(lambda: set(spread(asked, 8)) == {endpoint} and short.has_server(family))
    with netns.inside(short.lab.nodes[0].netns):
        assert "not_by_view" not in {chain.name for chain in read_chains()}
    with tapped(short, family, endpoint, asked.address) as connection:
        assert b"far ahead" in connection.send_far_ahead()
        assert connection.answers()
