"""Ways into a Service as a table: who asks where, who must answer, and which source it must see.

The demo and the traffic tests both state their expectations as `Case`s and have them asked for real, all at
once and each several times, so that every endpoint is seen and a table of timeouts costs one timeout.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator

from tests.lab.lab import Lab, LabNode
from tests.lab.probe import ProbeQuestion, Result, probe_many

TIMES = 6  # enough to see every endpoint with round robin
ROUNDS = 4  # ... and by chance: of two endpoints one is missed once in eight million cases
TIMEOUT = 6.0
OWN = "own"
# All namespaces of a kernel share one bucket of 50 ICMP errors, filled with 1,000 a second, of which an error
# takes up to two (icmp_global_allow in net/ipv4/icmp.c); four ways in, six times each, need no more than it holds.
REFILL = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One way in: who asks where, which endpoints may answer, and from which source they see it.

    `source` is `own` (the asker's address is kept) or a node's name (masqueraded to one of its
    addresses); without endpoints the request must end as `outcome` says. `via` is the node
    that the client's path to the address goes through.
    """

    asker: str
    kind: str
    address: str
    port: int
    endpoints: str = ""
    source: str = ""
    proto: str = "tcp"
    via: str = "node1"
    outcome: str = "timeout"

    @property
    def target(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}/{self.proto}"


@dataclasses.dataclass(frozen=True)
class CaseRow:
    """A case with what was seen."""

    case: Case
    answered: str
    sources: str
    fine: bool


def addresses_of(lab: Lab, name: str) -> set[str]:
    """All addresses a request may come from when it comes from this host."""
    host = lab.host(name)
    mine = {host.ipv4, host.ipv6}
    if isinstance(host, LabNode):
        mine |= {f"10.244.{host.number}.1", f"fd00:10:244:{host.number}::1"}
    return mine


def judge(lab: Lab, case: Case, results: list[Result]) -> CaseRow:
    """Compare the answers to a case with what it expects."""
    answered = {result.name or result.outcome for result in results}
    seen = {result.seen_source for result in results if result.name}
    allowed = addresses_of(lab, case.asker if case.source == OWN else case.source) if case.source else set()
    expected = set(case.endpoints.split()) or {case.outcome}
    fine = answered == expected and seen <= allowed
    return CaseRow(case, " ".join(sorted(answered)), " ".join(sorted(seen)), fine)


def _ask(lab: Lab, cases: list[Case]) -> Iterator[CaseRow]:
    """Ask all cases at once, each several times."""
    if any((case.proto, case.outcome) == ("udp", "refused") for case in cases):
        time.sleep(REFILL)
    seen: dict[Case, list[Result]] = {case: [] for case in cases}
    asked = cases
    for _ in range(ROUNDS):
        questions = [
            ProbeQuestion(lab.host(case.asker).netns, case.address, case.port, case.proto) for case in asked
        ]
        results = probe_many([question for question in questions for _ in range(TIMES)], TIMEOUT)
        for number, case in enumerate(asked):
            seen[case] += results[number * TIMES : (number + 1) * TIMES]
        asked = [case for case in asked if _is_incomplete(case, seen[case])]
        if not asked:
            break
    return (judge(lab, case, results) for case, results in seen.items())


def _is_incomplete(case: Case, results: list[Result]) -> bool:
    """Whether all was right so far, but some endpoints have not answered: by chance, perhaps."""
    return {result.name or result.outcome for result in results} < set(case.endpoints.split())


def ask_everything(lab: Lab, cases: Iterable[Case]) -> list[CaseRow]:
    """Ask in one round for each node that the client's path may go through."""
    rounds: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        rounds[case.via].append(case)
    rows: list[CaseRow] = []
    for via, members in rounds.items():
        if via != lab.nodes[0].name:
            for address in {case.address for case in members}:
                lab.route_client_via(lab.node(via), address)
        rows += _ask(lab, members)
    lab.reset_client_routes()
    return rows


def wrong(rows: list[CaseRow]) -> list[str]:
    """Return in words what differs from the expectations; nothing if all is right."""
    return [
        f"{r.case.asker} -> {r.case.kind} {r.case.target} via {r.case.via}: "
        f"{r.answered} from {r.sources}, wanted {r.case.endpoints or r.case.outcome} from {r.case.source}"
        for r in rows
        if not r.fine
    ]
