"""Another program begins to keep packets to a Service from conntrack, amid open connections, and stops again.

IPVS goes on with what nothing has to translate but IPVS. On the short path, and for who is masqueraded, everything
stands still meanwhile; no port of the host answers.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

import pytest

from ipvsproxy.kernel.filters.nf_tables import read_chains
from tests.lab import netns
from tests.lab.capabilities import missing
from tests.lab.lab import Lab
from tests.lab.probe import Conversation, ProbeQuestion, probe_many
from tests.lab.responder import EndpointListener
from tests.lab.short_services import WEB, ShortServices, short_services
from tests.lab.waiting import eventually

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables"), pytest.mark.parametrize("family", [4, 6])]

PROTOS = ("tcp", "udp") if missing("sctp") else ("tcp", "udp", "sctp")
NOTRACK = """table inet elsewhere {
    chain to_services { meta l4proto { tcp, udp, sctp } th dport 80 notrack; }
    chain prerouting { type filter hook prerouting priority raw; jump to_services; }
    chain output { type filter hook output priority raw; jump to_services; }
}"""
GONE = "delete table inet elsewhere"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


@pytest.fixture(scope="module")
def short(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortServices]:
    where = pathlib.Path(tmp_path_factory.mktemp("short"))
    with short_services(session_lab, where) as services:
        yield services


@pytest.fixture
def host(short: ShortServices) -> Iterator[list[EndpointListener]]:
    """Programs of the node that listen at all addresses, on the ports of the Service."""
    node = short.lab.nodes[0]
    listeners = [short.lab.responder.listen(node, 80, proto, everywhere=True) for proto in PROTOS]
    yield listeners
    for listener in listeners:
        listener.stop()
    short.lab.run(node, ["sh", "-c", f"nft '{GONE}' 2>/dev/null || true"])
    netns.set_sysctls(node.netns, {LIBERAL: 0})


def put(short: ShortServices, family: int, path: str, pod: str = "p21") -> None:
    short.put(WEB, pod, annotations={"data-path": path})
    short.wait_for_all(family)
    eventually(lambda: short.has_server(family) is (path == "ipvs"))


def hide(short: ShortServices) -> None:
    """Have a program keep packets from conntrack, and wait until the proxy has noticed."""
    short.lab.run(short.lab.nodes[0], ["nft", "-f", "-"], NOTRACK)
    eventually(lambda: "not_translated" in chains(short))


def chains(short: ShortServices) -> set[str]:
    with netns.inside(short.lab.nodes[0].netns):
        return {chain.name for chain in read_chains()}


def questions(short: ShortServices, family: int) -> dict[tuple[str, str], ProbeQuestion]:
    """Return one for each client and protocol: of a pod, and of a client that is masqueraded."""
    return {
        (asker, proto): short.question(asker, family, proto) for asker in ("p12", "client") for proto in PROTOS
    }


def ask(talks: Mapping[tuple[str, str], Conversation]) -> dict[tuple[str, str], str]:
    return {who: (result := talk.ask()).name or result.outcome for who, talk in talks.items()}


@contextlib.contextmanager
def open_connections(short: ShortServices, family: int) -> Iterator[dict[tuple[str, str], Conversation]]:
    with contextlib.ExitStack() as stack:
        found = {
            who: stack.enter_context(Conversation(asked, 1.0)) for who, asked in questions(short, family).items()
        }
        assert len(set(ask(found).values()) & {"p11", "p21"}) == 1
        yield found


@pytest.mark.parametrize(("path", "liberal"), [("auto", 0), ("ipvs", 1), ("ipvs", 0)])
def test_what_is_hidden_reaches_ipvs_or_no_one_and_goes_on_afterwards(
    short: ShortServices, host: list[EndpointListener], family: int, path: str, liberal: int
) -> None:
    """What IPVS has served meanwhile, conntrack calls invalid then: a limit of IPVS, unless that is liberal."""
    put(short, family, path)
    netns.set_sysctls(short.lab.nodes[0].netns, {LIBERAL: liberal})
    asked = questions(short, family)
    with open_connections(short, family) as talks:
        hide(short)
        while_hidden = {who: "p21" if path == "ipvs" and who[0] == "p12" else "timeout" for who in asked}
        assert ask(talks) == while_hidden
        results = dict(zip(asked, probe_many(asked.values(), 2), strict=True))
        assert {who: result.name or result.outcome for who, result in results.items()} == while_hidden
        assert not any(listener.served for listener in host)
        short.lab.run(short.lab.nodes[0], ["nft", GONE])
        expected = dict.fromkeys(asked, "p21")
        if path == "ipvs" and not liberal:
            expected["p12", "tcp"] = "refused"
        eventually(lambda: ask(talks) == expected)
    assert {result.name for result in probe_many(asked.values())} == {"p21"}


def test_a_masqueraded_client_of_an_endpoint_on_the_node_is_served_by_ipvs_with_its_own_address(
    short: ShortServices, host: list[EndpointListener], family: int
) -> None:
    """Open connections end by that: the endpoint knows them with the address of the node."""
    put(short, family, "ipvs", "p11")
    with open_connections(short, family) as talks:
        hide(short)
        outcomes = {"tcp": "refused", "sctp": "refused", "udp": "timeout"}
        assert ask(talks) == {
            (asker, proto): "p11" if asker == "p12" else outcomes[proto] for asker, proto in talks
        }
        assert {result.seen_source for result in probe_many([short.question("client", family, "tcp")] * 4)} == {
            short.lab.client.address(family)
        }
