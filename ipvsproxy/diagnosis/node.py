"""All checks of a node, in the order in which one thing causes another.

In: facts. Out: findings, problems first; within the same verdict the cause stands before what follows from it.
"""

from collections.abc import Callable, Iterator

from ipvsproxy.diagnosis import dns, foreign, host, links, own_node, programmed, proxies, tenants
from ipvsproxy.diagnosis.facts import Facts
from ipvsproxy.diagnosis.finding import ORDER, Finding

Check = Callable[[Facts], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    host.check_kernel,
    host.check_scheduler,
    host.check_sysctls,
    host.check_local_ports,
    host.check_pressure,
    host.check_reverse_path,
    links.check_bridge,
    proxies.check_installation,
    proxies.check_others,
    own_node.check_node,
    proxies.check_proxy,
    programmed.check_settings,
    programmed.check_api,
    programmed.check_ruleset,
    links.check_vip_link,
    links.check_held_vips,
    foreign.check_foreign,
    tenants.check_tenants,
    programmed.check_drift,
    links.check_hairpin,
    links.check_long_datagrams,
    dns.check_dns,
    tenants.check_tenant_dns,
)

OF_AN_INSTALLED_PROXY: frozenset[Check] = frozenset(
    (
        host.check_sysctls,  # those that a start makes
        proxies.check_proxy,
        programmed.check_settings,
        programmed.check_ruleset,
        links.check_vip_link,
        tenants.check_tenants,
        programmed.check_drift,
        dns.check_dns,
        tenants.check_tenant_dns,
    )
)
"""What they miss where ipvsproxy is not installed only means that: one finding reports it."""


def diagnose(facts: Facts) -> list[Finding]:
    """Return what all checks find, what matters most first."""
    left_out = frozenset() if proxies.is_installed(facts) else OF_AN_INSTALLED_PROXY
    found = [finding for check in CHECKS if check not in left_out for finding in check(facts)]
    return sorted(found, key=lambda finding: ORDER.index(finding.verdict))
