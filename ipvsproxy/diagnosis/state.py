"""Checks of what we have programmed and of who programs it: ruleset, drift, the running proxy, other proxies."""

from collections.abc import Iterator, Sequence

from ipvsproxy.diagnosis.facts import Facts, Proxy
from ipvsproxy.diagnosis.filters import Chain
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.foreign import TABLE, is_ours
from ipvsproxy.plan.leftovers import MARK, MASQUERADE, OWN_TABLE, TABLES, is_leftover

LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
PENDING = "ipvsproxy_pending_objects"
SHOWN = 10
SYNC_SLACK = 10.0
"""Seconds that a verification may take."""


def check_proxies(facts: Facts) -> Iterator[Finding]:
    """No other proxy programs this node, and none has left anything behind.

    Of several processes of ipvsproxy one works and the others wait, which is right.
    """
    findings = [*_processes(facts), *_leftovers(facts)]
    yield from findings
    if not findings:
        yield fine("other proxies", "no other service proxy is to be seen here")


def _processes(facts: Facts) -> Iterator[Finding]:
    others = [process for process in facts.processes if process.program != "ipvsproxy"]
    for process in others:
        yield problem("other proxies", f"{process.program} runs on this node too (process {process.pid})",
                      process.command, step="stop it: only one proxy may program a node")  # fmt: skip


def _leftovers(facts: Facts) -> Iterator[Finding]:
    found = leftovers(facts)
    is_alive = facts.proxy is not None and facts.proxy.health == 200 and facts.proxy.is_ours
    if found and is_alive:
        yield problem(
            "other proxies",
            "a kube-proxy is at work: its rules are there, though ipvsproxy removed them at its start",
            *found,
            step="stop kube-proxy on this node (its DaemonSet), then restart ipvsproxy",
        )
    elif found:
        yield warning("other proxies", "kube-proxy has left rules", *found,
                      step="start ipvsproxy, which removes them, or run: ipvsproxy cleanup")  # fmt: skip
    for program in facts.legacy_leftovers:
        yield warning(
            "other proxies",
            f"kube-proxy has left rules in {program}",
            step=f"run on this host: {program}-save | grep -v KUBE- | {program}-restore",
        )


def leftovers(facts: Facts) -> list[str]:
    """Name what a kube-proxy has written, but for the chains that stay since others use them."""
    tables: set[str] = set()
    chains: dict[str, int] = {}
    for chain in facts.chains or ():
        if chain.legacy or chain.family not in ("ip", "ip6"):
            continue
        if chain.table == OWN_TABLE:
            tables.add(f"table {chain.family} {OWN_TABLE}")
        elif chain.table in TABLES and is_leftover(chain.name) and chain.name not in (MARK, MASQUERADE):
            place = f"{chain.family} {chain.table}"
            chains[place] = chains.get(place, 0) + 1
    return [*sorted(tables), *(f"{count} chains in {place}" for place, count in sorted(chains.items()))]


def check_proxy(facts: Facts) -> Iterator[Finding]:
    """The proxy of this node runs, is healthy, and has synced lately."""
    proxy = facts.proxy
    if proxy is None:
        yield unchecked("proxy", facts.unread.get("proxy", "its health server is switched off"))
    elif not proxy.health:
        yield problem("proxy", f"no proxy answers on this node: {proxy.error}",
                      step="start ipvsproxy, or see in its log why it ended")  # fmt: skip
    elif not proxy.is_ours:
        yield problem("proxy", "the proxy that answers on this node is not ipvsproxy",
                      step="stop kube-proxy on this node, then start ipvsproxy")  # fmt: skip
    elif proxy.health != 200:
        yield problem("proxy", f"the proxy says that it is not healthy ({proxy.health})", proxy.health_body,
                      step="see its log: rules are refused, or nothing could be done for a while")  # fmt: skip
    else:
        yield from _synced(proxy, facts.settings.sync_period)


def _synced(proxy: Proxy, period: float) -> Iterator[Finding]:
    metrics = proxy.metrics or {}
    if metrics.get(LAST_SYNC) == 0.0:
        yield problem("proxy", "the proxy has not synced yet", proxy.health_body,
                      step="see its log: it waits for the API server, or for another proxy to end")  # fmt: skip
        return
    age = proxy.read_at - metrics.get(LAST_SYNC, proxy.read_at)
    pending = int(metrics.get(PENDING, 0))
    if age > 2 * period + SYNC_SLACK:
        yield problem("proxy", f"the proxy has not synced for {age:.0f} s", f"it should every {period:.0f} s",
                      step="see its log and what the process does (its CPU, its memory)")  # fmt: skip
    if pending:
        yield problem("proxy", f"the kernel refuses {counted(pending, 'object')}, tried again and again",
                      step="see the warning events of Services; the log has the reasons")  # fmt: skip
    if age <= 2 * period + SYNC_SLACK and not pending:
        yield fine("proxy", "the proxy is healthy", f"synced {age:.0f} s ago" if proxy.metrics else "no metrics")


def other_settings(facts: Facts) -> list[str]:
    """Return the flags of which the running proxy has another value than this command."""
    there = facts.proxy.flags if facts.proxy else {}
    here = facts.settings.flags
    return [
        f"--{name} is {there[name] or 'empty'} there, and {value or 'empty'} here"
        for name, value in sorted(here.items())
        if there.get(name, value) != value
    ]


def check_settings(facts: Facts) -> Iterator[Finding]:
    """The running proxy has the settings by which it is judged here."""
    if found := other_settings(facts):
        yield warning("settings", "the proxy that runs has other settings than this command", *found,
                      step="give it the flags of the proxy, or its --config")  # fmt: skip


def check_ruleset(facts: Facts) -> Iterator[Finding]:
    """Our nft table is there with all its chains and all their rules."""
    if facts.chains is None:
        return
    here = {chain.name: chain for chain in facts.chains if is_ours(chain)}
    step = "the next verification loads it again; find out who flushes nftables (a firewall that is restarted)"
    if not here:
        summary = f"the table inet {TABLE} is missing or dormant: nothing is masqueraded, refused or guarded"
        yield problem("ruleset", summary, step=step)
        return
    wrong = [
        f"chain {name}: {what}"
        for name, ends in facts.our_rules.items()
        for what in _changed(here.get(name), ends)
    ]
    if wrong:
        yield problem("ruleset", f"the table inet {TABLE} is not as we loaded it", *wrong[:SHOWN],
                      step="restart ipvsproxy, which loads it again; find out who changes it")  # fmt: skip
    else:
        yield fine("ruleset", f"the table inet {TABLE} is complete", f"{len(here)} chains")


def _changed(chain: Chain | None, ends: Sequence[str]) -> Iterator[str]:
    """Yield what is not as we have loaded it; of a rule that was replaced, where it leads to now."""
    if chain is None:
        yield "missing"
        return
    if chain.policy != "accept":
        yield f"its policy is {chain.policy}"
    if len(chain.rules) != len(ends):
        yield f"{len(chain.rules)} rules, not {len(ends)}"
        return
    for number, (rule, end) in enumerate(zip(chain.rules, ends, strict=True), 1):
        now = f"{rule.verdict} {rule.target}".rstrip()
        if end and now != end:
            yield f"rule {number} ends with {now or 'no verdict'}, not {end}"


def check_api(facts: Facts) -> Iterator[Finding]:
    """Services and endpoints can be read."""
    api = facts.api
    if api is None:
        yield unchecked("objects", facts.unread.get("objects", "no source of objects was named"))
    elif api.error:
        yield problem("objects", f"{api.source} cannot be read: {api.error}",
                      step="check the address, the network to it and the credentials (--kubeconfig)")  # fmt: skip
    else:
        if api.refused:
            yield warning("objects", f"{counted(len(api.refused), 'object')} cannot be used", *api.refused[:SHOWN],
                          step="mend them: each costs only itself")  # fmt: skip
        counts = f"{api.services} Services, {api.slices} EndpointSlices"
        yield fine("objects", f"read from {api.source}", counts, f"in {api.seconds:.1f} s")


def check_drift(facts: Facts) -> Iterator[Finding]:
    """The kernel is as the objects want it."""
    if facts.drift and other_settings(facts):
        yield unchecked("drift", "the proxy that runs has other settings: what is here may be as they want it")
    elif facts.drift is None:
        yield unchecked("drift", facts.unread.get("drift", "without objects nothing is known to be wanted"))
    elif facts.drift:
        more = len(facts.drift) - SHOWN
        shown = [*facts.drift[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        yield problem(
            "drift",
            f"the kernel is not as the objects want it: {counted(len(facts.drift), 'difference')}",
            *shown,
            step="a healthy proxy repairs this with its next verification; if it comes back, someone else does it",
        )
    else:
        yield fine("drift", "the kernel is as the objects want it")
