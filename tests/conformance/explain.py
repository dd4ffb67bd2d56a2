"""Does `explain` say of each flow what the wire has just shown? Its answer against the results of real packets.

`explain` is called in this process, on the state of the node's kernel, with nothing but the flow's source and
destination. Its word is compared with what happened, not with what should have: a proxy that is wrong must be
explained as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ipvsproxy.base.address import is_loopback, parse_ip
from ipvsproxy.inspect.explanation import Explanation, PacketOutcome
from ipvsproxy.inspect.walk import explain, packet
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import FrontendKey
from tests.conformance.judge import NetworkFacts
from tests.conformance.scenario_file import Flow
from tests.lab import netns
from tests.lab.probe import Result

WIRE = {"answered": PacketOutcome.ACCEPTED, "refused": PacketOutcome.REFUSED, "timeout": PacketOutcome.DROPPED}


def differences(
    where: str, results: Mapping[str, Sequence[Result]], flows: Sequence[Flow], facts: NetworkFacts
) -> Iterator[tuple[Flow, str, str]]:
    """Yield (flow, what explain says, what happened) where they do not agree."""
    with netns.inside(where), KernelReader() as view:
        said = {flow.id: _explain(flow, view) for flow in flows}
    for flow in flows:
        for words, seen in compare(flow, said[flow.id], results[flow.id], facts):
            yield flow, words, seen


def _explain(flow: Flow, view: KernelReader) -> Explanation:
    to = FrontendKey(parse_ip(flow.address), Protocol[flow.proto.upper()], flow.port)
    return explain(packet(to, view, None if flow.sender == "node" else parse_ip(flow.source)), view)


def compare(
    flow: Flow, said: Explanation, results: Sequence[Result], facts: NetworkFacts
) -> Iterator[tuple[str, str]]:
    """Yield (what explain says, what happened) where they do not agree."""
    if said.outcome is PacketOutcome.NOT_OURS:
        wrong = [r for r in results if not _passed(flow, r)]
    else:
        wrong = [r for r in results if WIRE.get(r.outcome) is not said.outcome]
    if wrong:
        yield f"{said.outcome} ({said.reason})", str(wrong[0])
    elif said.outcome is PacketOutcome.ACCEPTED:
        yield from _compare_endpoints(flow, said, results, facts)


def _passed(flow: Flow, result: Result) -> bool:
    """What is not ours is answered by nobody, or by a program of the node, on loopback addresses by our relay.

    Or other programs' rules lead to the endpoints of the flow, as the file has it.
    """
    if flow.by_others or is_loopback(parse_ip(flow.address)):
        return True
    return result.outcome != "answered" or flow.expect == "passes-through"


def _compare_endpoints(
    flow: Flow, said: Explanation, results: Sequence[Result], facts: NetworkFacts
) -> Iterator[tuple[str, str]]:
    targets = {str(target.real.destination): target for target in said.targets}
    answered = {result.name for result in results}
    complete = facts.spreads and not flow.sticky
    if not answered <= targets.keys() or (complete and answered != targets.keys()):
        yield f"endpoints {sorted(targets)}", f"{sorted(answered)}"
        return
    for result in results:
        target = targets[result.name]
        told = parse_ip(result.seen_source)
        if told != target.source:
            yield (
                f"{result.name} sees {target.source!r} ({target.masquerade or 'no masquerade'})",
                result.seen_source,
            )
