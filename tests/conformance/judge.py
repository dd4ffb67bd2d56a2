"""The rules of judgement: how often a flow is tried, and what its results must be. Pure.

Attempts. A flow with N endpoints is tried max(4, 3 N) times, with `repeat` at least so often; all others
twice. While an endpoint has not been seen and nothing else is wrong, the attempts are repeated, up to
ROUNDS times: concurrent flows share the scheduler's turn. Schedulers that give one source or one Service a
single endpoint (sh, dh, lblc, lblcr, fo, ovf) need not show all: there no endpoint outside the set may answer.

Outcomes. `endpoints`: every attempt is answered by one of the set, and each of the set answers; with affinity
all attempts land on the same one. `reject`: TCP reset, port unreachable, or EPERM for a node's own send.
`drop`: silence for the seconds of SILENCE, which include one repeated SYN (SCTP: INIT, of which the kernel
reports an ICMP error only the second time); where an answer is expected, silence of PATIENCE seconds.
`passes-through`: what the bare host would do, namely its own listener on that address answers, or for an
address that is not the node's the listener of the world outside or of the pod that has it, and it sees the
original source. The health check server of the proxy itself is such a listener too.

Sources. `masquerade: true` means that the endpoint saw an address of the node's interfaces, not a VIP;
`false` that it saw the original source. A node's process has as original source whatever the kernel gives it,
which for a VIP is the VIP: so there false means "an address of the node and not the VIP". null is not
judged. `masquerade_by_endpoint` goes before `masquerade`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from tests.conformance.listeners import HOST, OUTSIDE
from tests.conformance.scenario_file import Flow, endpoint_name
from tests.lab.probe import Result

PATIENCE = 12.0
SILENCE = {"tcp": 2.5, "udp": 2.5, "sctp": 5.0}
ROUNDS = 4
MASQUERADED, ORIGINAL = "a node address", "the original source"


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """What the judge must know of the network."""

    node_addresses: frozenset[str]
    health_ports: frozenset[int]
    spreads: bool = True


def attempts(flow: Flow) -> int:
    times = max(4, 3 * len(flow.endpoints)) if flow.expect == "endpoints" else 2
    return max(times, flow.repeat)


def patience(flow: Flow) -> float:
    return SILENCE[flow.proto] if flow.expect == "drop" else PATIENCE


def expected(flow: Flow) -> str:
    """Say in a few words what must happen."""
    if flow.expect != "endpoints":
        return flow.expect
    text = "{" + ", ".join(sorted(flow.endpoints)) + "}"
    if flow.sticky:
        text = f"always the same one of {text}"
    if flow.masquerade_by_endpoint:
        return f"{text} masqueraded by endpoint"
    return text + {True: " masqueraded", False: " not masqueraded", None: ""}[flow.masquerade]


def seen(results: Iterable[Result]) -> str:
    """Say in a few words what happened."""
    counts = collections.Counter(_describe(result) for result in results)
    return ", ".join(f"{text} x{times}" for text, times in sorted(counts.items())) or "nothing"


def _describe(result: Result) -> str:
    if result.outcome == "answered":
        return f"{result.name} saw {result.seen_source}" if result.seen_source else result.name
    return f"{result.outcome} ({result.error})" if result.outcome == "unreachable" else result.outcome


def lacks_endpoints(flow: Flow, results: Sequence[Result], facts: NetworkFacts) -> bool:
    """Whether nothing is wrong but that some endpoint has not answered yet."""
    if flow.expect != "endpoints" or flow.sticky or not facts.spreads:
        return False
    return all(_attempt_is_right(flow, result, facts) for result in results) and _missing(flow, results)


def is_right(flow: Flow, results: Sequence[Result], facts: NetworkFacts) -> bool:
    if not results or not all(_attempt_is_right(flow, result, facts) for result in results):
        return False
    if flow.expect != "endpoints":
        return True
    if flow.sticky:
        return len({result.name for result in results}) == 1
    return not facts.spreads or not _missing(flow, results)


def _missing(flow: Flow, results: Sequence[Result]) -> bool:
    return bool(flow.endpoints - {result.name for result in results})


def _attempt_is_right(flow: Flow, result: Result, facts: NetworkFacts) -> bool:
    match flow.expect:
        case "reject":
            return result.outcome == "refused"
        case "drop":
            return result.outcome == "timeout"
        case "passes-through":
            return result.outcome == "answered" and _passed(flow, result, facts)
    return result.name in flow.endpoints and _source_is_right(flow, result, facts)


def _passed(flow: Flow, result: Result, facts: NetworkFacts) -> bool:
    if result.name == "?":
        return flow.port in facts.health_ports
    owners = (HOST, OUTSIDE, endpoint_name(flow.address, flow.port))
    return result.name in owners and _is_original(flow, result, facts)


def _source_is_right(flow: Flow, result: Result, facts: NetworkFacts) -> bool:
    masquerade = flow.masquerade_by_endpoint.get(result.name, flow.masquerade)
    if masquerade is None:
        return True
    if masquerade:
        return result.seen_source in facts.node_addresses
    return _is_original(flow, result, facts)


def _is_original(flow: Flow, result: Result, facts: NetworkFacts) -> bool:
    if flow.sender == "node":
        return result.seen_source in facts.node_addresses
    return result.seen_source == flow.source
