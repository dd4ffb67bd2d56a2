"""Long UDP datagrams of the node while their Service changes its path: their rule comes with the need for it."""

from __future__ import annotations

import pathlib

import pytest

from ipvsproxy.kernel.filters.nf_tables import read_chains
from tests.lab import netns
from tests.lab.datagrams import SIZES, unanswered
from tests.lab.lab import Lab
from tests.lab.published import cluster_ip
from tests.lab.short_services import WEB, short_services
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")


def test_datagrams_of_this_node_arrive_whichever_path_their_service_takes(
    session_lab: Lab, tmp_path: pathlib.Path
) -> None:
    """The rule for them comes with the first Service that needs it."""
    node, to = session_lab.nodes[0].netns, (cluster_ip(WEB, 4), 80)
    with short_services(session_lab, tmp_path) as services:
        services.put(WEB, "p21")
        eventually(lambda: services.names("node1", proto="udp") == {"p21"})
        with netns.inside(node):
            assert "allow_fragments" not in {chain.name for chain in read_chains()}
        for data_path in ("auto", "ipvs", "auto"):
            services.put(WEB, "p21", annotations={"data-path": data_path})
            services.wait_for_all(4)
            assert services.has_server(4, 17) is (data_path == "ipvs")
            assert list(unanswered(node, to, connected=False)) == [], data_path
            assert list(unanswered(node, to, connected=True)) == [], data_path


@pytest.mark.needs("sctp")
@pytest.mark.parametrize("family", [4, 6])
def test_long_messages_of_sctp_arrive_whichever_path_their_service_takes(
    session_lab: Lab, tmp_path: pathlib.Path, family: int
) -> None:
    """They need no such rule: SCTP divides them itself. One of the node lists all its addresses, VIPs too."""
    lab, to = session_lab, (cluster_ip(WEB, family), 80)
    with short_services(lab, tmp_path) as services:
        for data_path in ("auto", "ipvs"):
            services.put(WEB, "p21", annotations={"data-path": data_path})
            services.wait_for_all(family)
            assert services.has_server(family, 132) is (data_path == "ipvs")
            for asker in ("p12", "client"):
                where = lab.host(asker).netns
                found = list(unanswered(where, to, connected=True, proto="sctp", sizes=SIZES[:-1]))
                assert found == [], (data_path, asker)
