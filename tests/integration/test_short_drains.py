"""Endpoints that leave the short path: their open connections go on as before, until their time has come."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.probe import ENOUGH, Conversation
from tests.lab.short_services import WEB, ShortServices, short_services, tapped
from tests.lab.waiting import eventually

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables"), pytest.mark.parametrize("family", [4, 6])]


@pytest.fixture(scope="module")
def short(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortServices]:
    with short_services(session_lab, pathlib.Path(tmp_path_factory.mktemp("short"))) as services:
        yield services


@pytest.mark.parametrize(
    ("endpoint", "others"), [("p21", "p11"), ("p21", ""), ("node1", "p11")], ids=["others", "none", "of-the-node"]
)
def test_packets_that_conntrack_cannot_place_reach_no_one(
    short: ShortServices, family: int, endpoint: str, others: str
) -> None:
    """Not translated, they would be answered with a reset: by the node, or by the client.

    So it is while the endpoint serves, and while it ends, beside other endpoints or as the last one.
    """
    short.put(WEB, endpoint)
    eventually(lambda: short.names("p12", family) == {endpoint})
    with tapped(short, family, endpoint) as connection:
        assert connection.send_far_ahead() == []
        assert connection.answers()
        short.put(WEB, others, leaving=endpoint)
        eventually(lambda: short.names("p12", family) == {others or "refused"})
        assert connection.send_far_ahead() == []
        assert connection.answers()


@pytest.mark.parametrize("asker", ["p11", "p12", "node1", "client"])
def test_connections_outlive_their_endpoint(short: ShortServices, family: int, asker: str) -> None:
    """Of the pod to itself, of others that are masqueraded or not: while it ends, and when no slice has it."""
    short.put(WEB, "p11")
    eventually(lambda: short.names("p12", family) == {"p11"})
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(short.question(asker, family), 4)) for _ in range(2)]
        first = [_answer(talk) for talk in talks]
        for pods, leaving in (("p21", "p11"), ("p21", ""), ("", "")):
            short.put(WEB, pods, leaving=leaving)
            eventually(lambda pods=pods: short.names("p12", family) == {pods or "refused"})
            assert [_answer(talk) for talk in talks] == first


def _answer(talk: Conversation) -> tuple[str, str, int]:
    """Return who answers, and the source that it sees."""
    result = talk.ask()
    return result.name, result.seen_source, result.seen_port


@pytest.mark.needs("sctp")
def test_sctp_connections_end_with_their_endpoint(short: ShortServices, family: int) -> None:
    """As with IPVS: there is no drain of SCTP (contract 4.5)."""
    short.put(WEB, "p11 p21")
    eventually(lambda: short.names("p12", family, "sctp") == {"p11", "p21"})
    with contextlib.ExitStack() as stack:
        question = short.question("p12", family, "sctp")
        talks = [stack.enter_context(Conversation(question, 2.0)) for _ in range(ENOUGH)]
        first = [talk.ask().name for talk in talks]
        assert set(first) == {"p11", "p21"}
        short.put(WEB, "p21", leaving="p11")
        ending = [talk for talk, name in zip(talks, first, strict=True) if name == "p11"]
        eventually(lambda: all(talk.ask().name == "" for talk in ending))
        assert all(talk.ask().name == "p21" for talk in talks if talk not in ending)


def test_connections_end_with_the_drain_timeout_of_their_endpoint(short: ShortServices, family: int) -> None:
    """Its time begins when it gets no new connections, though slices list it as ending all the while."""
    timeout = {"drain-timeout": "15s"}
    short.put(WEB, "p11 p21", annotations=timeout)
    eventually(lambda: short.names("p12", family) == {"p11", "p21"})
    assert not short.has_server(family)
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(short.question("p12", family), 2.0)) for _ in range(ENOUGH)]
        first = [talk.ask().name for talk in talks]
        assert set(first) == {"p11", "p21"}
        short.put(WEB, "p21", leaving="p11", annotations=timeout)
        eventually(lambda: short.names("p12", family) == {"p21"})
        assert [talk.ask().name for talk in talks] == first
        ending = [talk for talk, name in zip(talks, first, strict=True) if name == "p11"]
        eventually(lambda: all(talk.ask().name == "" for talk in ending))
        assert all(talk.ask().name == "p21" for talk in talks if talk not in ending)
