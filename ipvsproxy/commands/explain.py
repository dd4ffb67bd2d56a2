"""`ipvsproxy explain [FROM] TO:PORT[/PROTO]`: what happens to this packet on this node, and why.

From the kernel's state alone (`inspect.walk`); the kernel has no names of Services, so those come from elsewhere
(`commands.service_names`) and only decorate the answer. Status 0: an endpoint gets it; 1: refused, dropped or not
ours, or rules of kube-proxy, which are not followed, may decide otherwise.
"""

import socket
from collections.abc import Sequence
from typing import Any

from ipvsproxy.base.address import format_ip
from ipvsproxy.commands.command_table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.commands.endpoint import address, frontend
from ipvsproxy.commands.invocation import Invocation, WrongUsage, unreadable
from ipvsproxy.commands.objects import lacking
from ipvsproxy.commands.output import Grid, Line, Marked, OutputParts, Style, emit, note
from ipvsproxy.commands.running import at_its_address
from ipvsproxy.commands.service_names import Names, names
from ipvsproxy.commands.tenants import sides
from ipvsproxy.inspect.explanation import Explanation, PacketOutcome, Step, Target
from ipvsproxy.inspect.spread import describe
from ipvsproxy.inspect.walk import explain, packet
from ipvsproxy.kernel.filters.kube_proxy import written_by_kube_proxy
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.records import ElementMatch
from ipvsproxy.ruleset.codec import key_text, value_text

MOODS = {
    PacketOutcome.ACCEPTED: Style.GOOD,
    PacketOutcome.REFUSED: Style.BAD,
    PacketOutcome.DROPPED: Style.BAD,
    PacketOutcome.NOT_OURS: Style.WARNING,
}
NO_SERVICE = "none has this frontend"


def run(invocation: Invocation) -> int:
    """Explain one packet."""
    if len(invocation.arguments) not in (1, 2):
        raise WrongUsage("one or two arguments are needed: [FROM] TO:PORT[/PROTO]")
    to = frontend(invocation.arguments[-1])
    source = address(invocation.arguments[0]) if invocation.arguments[:-1] not in ((), ("node",)) else None
    if source is not None and len(source) != len(to.address):
        raise WrongUsage("FROM and TO are of different families")
    link = _link(invocation.flags["link"], source)
    config = at_its_address(invocation).config
    try:
        with KernelReader() as view:
            explanation = explain(packet(to, view, source, link), view)
            known = names(config, view)
            others = written_by_kube_proxy()
            for what in lacking(view):
                note(what)
    except (KernelError, OSError) as error:
        raise unreadable(error) from error
    emit(
        invocation.flags["output"],
        "Explanation",
        document(explanation, known, others),
        parts(explanation, known, others),
    )
    return EXIT_OK if explanation.outcome is PacketOutcome.ACCEPTED and not others else EXIT_FINDINGS


def _link(name: str, source: bytes | None) -> str:
    """Return the link a packet comes in by. Raises WrongUsage."""
    if name and source is None:
        raise WrongUsage("--link: --link requires FROM")
    try:
        return name if not name or socket.if_nametoindex(name) else ""
    except OSError:
        raise WrongUsage(f"--link: this node has no link {name}") from None


def parts(explanation: Explanation, known: Names, others: Sequence[str] = ()) -> OutputParts:
    """Return the answer for people."""
    service = known.of(explanation.frontend)
    yield [
        Marked(f"{format_ip(explanation.packet.source)} -> {explanation.packet.to!s}", Style.TITLE),
        f"  ({explanation.sender})",
    ]
    yield f"Service: {service or known.problem or NO_SERVICE}"
    if both := sides(explanation, known):
        yield str(both)
    if reason := known.path_reasons.get(str(explanation.frontend)):
        yield f"Not on the short path: {reason}"
    yield ""
    yield Grid(
        ("WHERE", "WHAT", "BECAUSE OF"),
        [(s.place, _what(s, known), str(s.match or "")) for s in explanation.steps],
    )
    yield ""
    yield _verdict(explanation)
    if others:
        warning = Marked("NOT FOLLOWED", Style.WARNING)
        yield [warning, f": rules of kube-proxy ({', '.join(others)}): where they have this address, they decide"]
    if explanation.targets:
        yield ""
        heads = ("ENDPOINT", "WEIGHT", "ACTIVE", "INACTIVE", "SHARE", "SOURCE SEEN", "MASQUERADED")
        yield Grid(heads, [_row(target) for target in explanation.targets], spare=("INACTIVE", "ACTIVE", "WEIGHT"))
        if explanation.server and (shares := describe(explanation.server.server.scheduler)):
            yield shares


def _what(step: Step, known: Names) -> str:
    """Return what happens in a step; where it is about the group of a source, with the tenant's name."""
    group = step.match.value if step.match and step.match.slot.is_member else None
    return f"{step.what} ({known.tenant(group)})" if isinstance(group, int) else step.what


def _verdict(explanation: Explanation) -> Line:
    return [Marked(explanation.outcome.upper(), MOODS[explanation.outcome]), f": {explanation.reason}"]


def _row(target: Target) -> tuple[str | int, ...]:
    real = target.real
    source = format_ip(target.source) if target.source else "?"
    why = target.masquerade or "no"
    return str(real.destination), real.weight, real.active, real.inactive, f"{target.share:.0%}", source, why


def document(explanation: Explanation, known: Names, others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the answer for programs."""
    key = explanation.packet.to
    return {
        "from": {
            "address": format_ip(explanation.packet.source),
            "link": explanation.packet.link,
            "sender": explanation.sender.value,
        },
        "to": str(key),
        "service": known.of(explanation.frontend),
        "tenants": _tenants(explanation, known),
        "pathReason": known.path_reasons.get(str(explanation.frontend), ""),
        "outcome": explanation.outcome.value,
        "reason": explanation.reason,
        "steps": [
            {"place": s.place, "what": _what(s, known), "element": _element(s.match)} for s in explanation.steps
        ],
        "server": _server(explanation),
        "endpoints": [_endpoint(target) for target in explanation.targets],
        "notFollowed": list(others),
    }


def _tenants(explanation: Explanation, known: Names) -> dict[str, str | None] | None:
    both = sides(explanation, known)
    return {"from": both.sender, "to": both.owner, "rule": both.rule} if both else None


def _element(match: ElementMatch | None) -> dict[str, str] | None:
    if match is None:
        return None
    return {"set": match.slot.set.name, "key": key_text(match.slot), "value": value_text(match.value)}


def _server(explanation: Explanation) -> dict[str, Any] | None:
    if explanation.server is None:
        return None
    server = explanation.server.server
    return {
        "frontend": str(explanation.server.key),
        "scheduler": server.scheduler,
        "affinitySeconds": server.timeout,
    }


def _endpoint(target: Target) -> dict[str, Any]:
    real = target.real
    return {
        "endpoint": str(real.destination),
        "weight": real.weight,
        "upperThreshold": real.attributes.upper_threshold,
        "lowerThreshold": real.attributes.lower_threshold,
        "active": real.active,
        "inactive": real.inactive,
        "share": round(target.share, 4),
        "source": format_ip(target.source) if target.source else None,
        "masqueraded": bool(target.masquerade),
        "reason": target.masquerade,
    }
