"""`ipvsproxy explain [FROM] TO:PORT[/PROTO]`: what happens to this packet on this node, and why.

From the kernel's state alone (`inspect.walk`); the kernel has no names of Services, so those come from elsewhere
(`commands.names`) and only decorate the answer. Status 0: an endpoint gets it; 1: refused, dropped or not ours, or
rules of kube-proxy, which are not followed, may decide otherwise.
"""

import socket
from collections.abc import Sequence
from typing import Any

from ipvsproxy.base.address import format_ip
from ipvsproxy.commands.endpoint import address, frontend
from ipvsproxy.commands.invocation import Invocation, WrongUsage, unreadable
from ipvsproxy.commands.names import Names, names
from ipvsproxy.commands.objects import lacking
from ipvsproxy.commands.output import Grid, Line, Marked, Parts, Style, emit, note
from ipvsproxy.commands.running import at_its_address
from ipvsproxy.commands.table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.inspect.spread import words
from ipvsproxy.inspect.walk import Explanation, PacketOutcome, Target, explain, packet
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
NOBODY = "none has this frontend"


def run(given: Invocation) -> int:
    """Explain one packet."""
    if len(given.words) not in (1, 2):
        raise WrongUsage("one or two words are needed: [FROM] TO:PORT[/PROTO]")
    to = frontend(given.words[-1])
    source = address(given.words[0]) if given.words[:-1] not in ((), ("node",)) else None
    if source is not None and len(source) != len(to.address):
        raise WrongUsage("FROM and TO are of different families")
    link = _link(given.flags["link"], source)
    config = at_its_address(given).config
    try:
        with KernelReader() as view:
            said = explain(packet(to, view, source, link), view)
            known = names(config, view)
            others = written_by_kube_proxy()
            for what in lacking(view):
                note(what)
    except (KernelError, OSError) as error:
        raise unreadable(error) from error
    emit(given.flags["output"], "Explanation", document(said, known, others), parts(said, known, others))
    return EXIT_OK if said.outcome is PacketOutcome.ACCEPTED and not others else EXIT_FINDINGS


def _link(name: str, source: bytes | None) -> str:
    """Return the link a packet comes in by. Raises WrongUsage."""
    if name and source is None:
        raise WrongUsage("--link: what this node sends comes in by no link; say FROM")
    try:
        return name if not name or socket.if_nametoindex(name) else ""
    except OSError:
        raise WrongUsage(f"--link: this node has no link {name}") from None


def parts(said: Explanation, known: Names, others: Sequence[str] = ()) -> Parts:
    """Return the answer for people."""
    service = known.of(said.packet.to)
    yield [Marked(f"{format_ip(said.packet.source)} -> {said.packet.to!s}", Style.TITLE), f"  ({said.sender})"]
    yield f"Service: {service or known.problem or NOBODY}"
    yield ""
    yield Grid(("WHERE", "WHAT", "BECAUSE OF"), [(s.place, s.what, str(s.match or "")) for s in said.steps])
    yield ""
    yield _verdict(said)
    if others:
        warning = Marked("NOT FOLLOWED", Style.WARNING)
        yield [warning, f": rules of kube-proxy ({', '.join(others)}): where they have this address, they decide"]
    if said.targets:
        yield ""
        heads = ("ENDPOINT", "WEIGHT", "ACTIVE", "INACTIVE", "SHARE", "SOURCE SEEN", "MASQUERADED")
        yield Grid(heads, [_row(target) for target in said.targets], spare=("INACTIVE", "ACTIVE", "WEIGHT"))
        if said.server and (told := words(said.server.server.scheduler)):
            yield told


def _verdict(said: Explanation) -> Line:
    return [Marked(said.outcome.upper(), MOODS[said.outcome]), f": {said.reason}"]


def _row(target: Target) -> tuple[str | int, ...]:
    real = target.real
    source = format_ip(target.source) if target.source else "?"
    why = target.masquerade or "no"
    return str(real.destination), real.weight, real.active, real.inactive, f"{target.share:.0%}", source, why


def document(said: Explanation, known: Names, others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the answer for programs."""
    key = said.packet.to
    return {
        "from": {"address": format_ip(said.packet.source), "link": said.packet.link, "sender": said.sender.value},
        "to": str(key),
        "service": known.of(key),
        "outcome": said.outcome.value,
        "reason": said.reason,
        "steps": [{"place": s.place, "what": s.what, "element": _element(s.match)} for s in said.steps],
        "server": _server(said),
        "endpoints": [_endpoint(target) for target in said.targets],
        "notFollowed": list(others),
    }


def _element(match: ElementMatch | None) -> dict[str, str] | None:
    if match is None:
        return None
    return {"set": match.slot.set.name, "key": key_text(match.slot), "value": value_text(match.value)}


def _server(said: Explanation) -> dict[str, Any] | None:
    if said.server is None:
        return None
    server = said.server.server
    return {"frontend": str(said.server.key), "scheduler": server.scheduler, "affinitySeconds": server.timeout}


def _endpoint(target: Target) -> dict[str, Any]:
    real = target.real
    return {
        "endpoint": str(real.destination),
        "weight": real.weight,
        "active": real.active,
        "inactive": real.inactive,
        "share": round(target.share, 4),
        "source": format_ip(target.source) if target.source else None,
        "masqueraded": bool(target.masquerade),
        "reason": target.masquerade,
    }
