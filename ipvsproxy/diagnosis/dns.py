"""Checks of the cluster's DNS: it answers through its Service, and answers what the objects contain."""

from collections.abc import Iterator

from ipvsproxy.diagnosis.facts import IPVS, RULES, Dns, DnsAnswer, ExternalName, Facts
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked

PASSED_BY = (
    "another program, or another host, has this address: see `ipvsproxy doctor` (is a kube-proxy at work? does the"
    " proxy run?) and `ip route get`"
)

MISSING = {
    IPVS: "IPVS of this node has no connection of this client",
    RULES: "connection tracking of this node has led this client to no endpoint",
}
"""What an answer from elsewhere leaves behind, by what should have balanced."""


def check_dns(facts: Facts) -> Iterator[Finding]:
    """`kubernetes.default` resolves to its ClusterIP, ExternalName Services to the name they declare."""
    dns = facts.dns
    if dns is None or not dns.service:
        yield unchecked("DNS", facts.unread.get("dns", "no Service with the UDP port 53 was found"))
        return
    findings = [*_kubernetes(dns), *(f for one in dns.external_names for f in _external(one))]
    yield from findings
    if not findings:
        names = f", and {counted(len(dns.external_names), 'ExternalName Service')}" if dns.external_names else ""
        yield fine("DNS", f"{dns.service} resolves kubernetes.default{names}")


def passed_by(answer: DnsAnswer) -> Finding:
    """Report that a name server was reached past this node's proxy: its answer shows nothing about that."""
    return problem(
        "DNS",
        f"{answer.server} answered, but not by this node's {answer.by}",
        f"{MISSING[answer.by]}: {answer.asked_from}, which asked for {answer.name}",
        step=PASSED_BY,
    )


def _kubernetes(dns: Dns) -> Iterator[Finding]:
    answer = dns.kubernetes
    if answer is None:
        return
    if answer.error:
        yield problem("DNS", f"{answer.name} does not resolve through {dns.service}: {answer.error}",
                      f"asked {answer.server}",
                      step=f"ipvsproxy doctor {dns.service}; are the DNS pods ready?")  # fmt: skip
    elif answer.balanced_here is False:
        yield passed_by(answer)
    elif dns.expected and not set(answer.addresses) & set(dns.expected):
        yield problem(
            "DNS",
            f"{answer.name} resolves to {', '.join(answer.addresses) or 'nothing'}, but the Service has"
            f" {', '.join(dns.expected)}",
            f"asked {answer.server}",
            step="the DNS pods serve an old or another cluster: see their logs and their API access",
        )


def _external(one: ExternalName) -> Iterator[Finding]:
    answer: DnsAnswer = one.answer
    declared = one.declared.rstrip(".").lower()
    if answer.error:
        yield problem("DNS", f"ExternalName Service {one.service} does not resolve: {answer.error}",
                      f"asked {answer.server} for {answer.name}", step="see the logs of the DNS pods")  # fmt: skip
    elif answer.canonical.rstrip(".").lower() != declared:
        yield problem(
            "DNS",
            f"ExternalName Service {one.service} declares {declared}, DNS has {answer.canonical or 'no CNAME'}",
            f"asked {answer.server} for {answer.name}",
            step="the DNS pods serve an old state: see their logs and their API access",
        )
