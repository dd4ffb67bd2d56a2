"""`ipvsproxy doctor [NAMESPACE/SERVICE]`: what is wrong with this node, or with one Service, and what to do.

Facts are read (`commands.survey`), judged (`diagnosis`) and printed, problems first. Exit status 0: no problem,
1: problems, 2: wrong usage; warnings alone are no problem.
"""

import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ipvsproxy.base.errors import plain
from ipvsproxy.commands.command_table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.commands.invocation import CommandFailed, Invocation, WrongUsage
from ipvsproxy.commands.output import Hanging, Line, Marked, Style, emit
from ipvsproxy.commands.running import adopted
from ipvsproxy.commands.service_survey import survey_service
from ipvsproxy.commands.survey import survey
from ipvsproxy.diagnosis.facts import Facts, from_json
from ipvsproxy.diagnosis.finding import ORDER, CheckResult, Finding
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.diagnosis.service import diagnose_service
from ipvsproxy.kernel.read.netns import socket_in

MOODS = {
    CheckResult.PROBLEM: Style.BAD,
    CheckResult.WARNING: Style.WARNING,
    CheckResult.NOT_CHECKED: Style.QUIET,
    CheckResult.OK: Style.GOOD,
}
COMPLAINTS_SHOWN = 5
"""Sentences about the objects of a Service."""
WIDTH = max(map(len, ORDER)) + 2


def run(invocation: Invocation) -> int:
    """Look, judge, print."""
    _check(invocation)
    findings = _service(invocation.arguments[0], invocation) if invocation.arguments else _node(invocation)
    emit(invocation.flags["output"], "Diagnosis", document(findings), parts(findings))
    return EXIT_FINDINGS if any(finding.verdict is CheckResult.PROBLEM for finding in findings) else EXIT_OK


def _check(invocation: Invocation) -> None:
    """Refuse flags that would be passed over. Raises WrongUsage, CommandFailed."""
    netns = invocation.flags["netns"]
    if len(invocation.arguments) > 1 or any(word.count("/") > 1 for word in invocation.arguments):
        raise WrongUsage("one Service at most, as NAMESPACE/NAME")
    if invocation.arguments and invocation.flags["facts"]:
        raise WrongUsage("--facts: saved facts are those of a node; a Service is only looked at where it is")
    if netns and not invocation.arguments:
        raise WrongUsage("--netns requires a Service argument")
    try:
        socket_in(netns, socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        raise CommandFailed(f"--netns: {netns}: {plain(error)}") from None


def _node(invocation: Invocation) -> list[Finding]:
    if invocation.flags["facts"]:
        return diagnose(_saved(Path(invocation.flags["facts"])))
    invocation = adopted(invocation)
    return diagnose(survey(invocation.config, invocation.flags["cluster-domain"], invocation.origin).facts)


def _service(key: str, invocation: Invocation) -> list[Finding]:
    invocation = adopted(invocation)
    domain, netns = invocation.flags["cluster-domain"], invocation.flags["netns"]
    if "/" not in key:
        key = f"default/{key}"
    seen = survey(invocation.config, domain, invocation.origin)
    facts = survey_service(key, seen, domain, netns)
    if facts is None:
        api = seen.facts.api
        raise CommandFailed(f"{api.source} cannot be read: {api.error}" if api else "no objects")
    complaints = tuple(seen.objects.about(key)[:COMPLAINTS_SHOWN]) if seen.objects else ()
    return diagnose_service(msgspec.structs.replace(facts, complaints=complaints), diagnose(seen.facts))


def _saved(path: Path) -> Facts:
    try:
        return from_json(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"{path}: {plain(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path} holds no facts: {error}") from None


def document(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings for programs."""
    return {"findings": [msgspec.to_builtins(finding) for finding in findings]}


def parts(findings: Sequence[Finding]) -> Iterator[Line]:
    """Yield the findings for people, and how many there are of each verdict."""
    for finding in findings:
        word = Marked(f"{finding.verdict.value:<{WIDTH}}", MOODS[finding.verdict])
        yield Hanging([word, Marked(finding.check, Style.TITLE), f": {finding.summary}"], WIDTH + 2)
        for evidence in filter(None, finding.evidence):
            yield [" " * WIDTH, Marked(evidence, Style.QUIET)]
        if finding.next:
            yield [" " * WIDTH, f"next: {finding.next}"]
    counts = Counter(finding.verdict for finding in findings)
    yield ", ".join(_counted(verdict, counts[verdict]) for verdict in ORDER if counts[verdict])


def _counted(verdict: CheckResult, count: int) -> str:
    plural = "s" if count > 1 and verdict in (CheckResult.PROBLEM, CheckResult.WARNING) else ""
    return f"{count} {verdict.value}{plural}"
