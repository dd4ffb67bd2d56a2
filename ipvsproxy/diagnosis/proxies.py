"""Checks of who programs this node: the proxy of the node, a kube-proxy, what one has left, others."""

from collections.abc import Iterator

from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.diagnosis.facts import Facts, Proxy
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.foreign import is_ours
from ipvsproxy.diagnosis.own_node import has_never_synced, holder_waited_for, refuses_traffic
from ipvsproxy.plan.leftovers import MARK, MASQUERADE, OWN_TABLE, PATTERN, TABLES, is_leftover

LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
PENDING = "ipvsproxy_pending_objects"
SYNC_SLACK = 10.0
"""Seconds that a verification may take."""
IPVSPROXY, KUBE_PROXY = "ipvsproxy", "kube-proxy"
STOP_IT = "stop kube-proxy on this node (its DaemonSet), then start ipvsproxy, which removes its rules"


def is_installed(facts: Facts) -> bool:
    """Whether ipvsproxy runs on this node or has left anything on it; true as well where that cannot be seen."""
    runs = facts.holder or any(process.program == IPVSPROXY for process in facts.processes)
    answers = facts.proxy is not None and facts.proxy.health and facts.proxy.is_ours
    if runs or answers or facts.chains is None or any(map(is_ours, facts.chains)):
        return True
    has_link = any(link.name == VIP_LINK for link in facts.links or ())
    return has_link and not (kube_proxys(facts) or facts.kube_proxy.signs or _processes_named(facts, KUBE_PROXY))


def check_installation(facts: Facts) -> Iterator[Finding]:
    """Something of ipvsproxy is here; where there is nothing, this is the only finding about it."""
    if is_installed(facts):
        return
    seen = [f"process {process}" for process in _processes_named(facts, KUBE_PROXY)]
    others = [*facts.kube_proxy.signs, *seen, *kube_proxys(facts)]
    yield warning(
        "installation",
        "ipvsproxy is not installed on this node: it does not run, and nothing of it is in the kernel",
        *(f"of kube-proxy: {sign}" for sign in others),
        step="install it (deploy/README.md); deploy/switch.md has how a node goes from kube-proxy to ipvsproxy",
    )


def check_others(facts: Facts) -> Iterator[Finding]:
    """No other proxy programs this node, and none has left anything behind.

    Of several processes of ipvsproxy one works and the others wait, which is right. A kube-proxy is at its place
    where ipvsproxy is not installed.
    """
    findings = [*_processes(facts), *_kube_proxy(facts)]
    yield from findings
    if not findings:
        yield fine("other proxies", "no other service proxy is to be seen here")


def _processes_named(facts: Facts, program: str) -> list[int]:
    return [process.pid for process in facts.processes if process.program == program]


def _processes(facts: Facts) -> Iterator[Finding]:
    at_home = {IPVSPROXY} if is_installed(facts) else {IPVSPROXY, KUBE_PROXY}
    for process in facts.processes:
        if process.program not in at_home:
            yield problem("other proxies", f"{process.program} runs on this node too (process {process.pid})",
                          process.command, step="stop it: only one proxy may program a node")  # fmt: skip


def _kube_proxy(facts: Facts) -> Iterator[Finding]:
    if not is_installed(facts):
        return
    found, signs = kube_proxys(facts), facts.kube_proxy.signs
    proxy = facts.proxy
    is_at_work = proxy is not None and proxy.health == 200 and proxy.is_ours and not holder_waited_for(proxy)
    if signs and not _processes_named(facts, KUBE_PROXY):
        yield problem("other proxies", "a kube-proxy runs on this node", *signs, *found, step=STOP_IT)
    elif found and is_at_work:
        yield problem(
            "other proxies",
            "a kube-proxy is at work: its rules are there, though ipvsproxy removed them at its start",
            *found,
            step="stop kube-proxy on this node (its DaemonSet), then restart ipvsproxy",
        )
    elif found and not signs:
        yield _left(facts, found)
    if not signs:
        yield from _legacy(facts)


def _left(facts: Facts, found: list[str]) -> Finding:
    if facts.kube_proxy.sees_processes:
        return warning("other proxies", "kube-proxy has left rules", *found,
                       step="start ipvsproxy, which removes them, or run: ipvsproxy cleanup")  # fmt: skip
    return warning(
        "other proxies",
        "rules of kube-proxy are there, and whether a kube-proxy still runs is not to be seen here",
        "the processes of the host are not visible in this container, and none answers on its ports",
        *found,
        step=f"kubectl -n kube-system get pods -o wide --field-selector spec.nodeName={facts.settings.node}:"
        " where a kube-proxy runs, stop it; then start ipvsproxy, which removes what is left",
    )


def _legacy(facts: Facts) -> Iterator[Finding]:
    is_known = facts.kube_proxy.sees_processes
    for program in facts.legacy_leftovers:
        command = f"{program}-save | grep -vwE '{PATTERN}' | {program}-restore"
        yield warning(
            "other proxies",
            f"kube-proxy has left rules in {program}" if is_known else f"rules of kube-proxy are in {program}",
            step=f"run on this host: {command}" if is_known else f"if no kube-proxy runs on this host: {command}",
        )


def kube_proxys(facts: Facts) -> list[str]:
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
    return [*sorted(tables), *(f"{counted(count, 'chain')} in {place}" for place, count in sorted(chains.items()))]


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
    elif holder := holder_waited_for(proxy):
        yield fine("proxy", "the proxy that answers waits for another one of this node, which is at work", holder)
    elif has_never_synced(proxy):
        yield _unsynced(proxy)
    elif reason := refuses_traffic(proxy):
        yield from _synced(proxy, facts.settings.sync_period, f"load balancers get 503: {reason}")
    elif proxy.health != 200:
        yield problem("proxy", f"the proxy reports that it is not healthy ({proxy.health})", proxy.health_body,
                      step="see its log: rules are refused, or nothing could be done for a while")  # fmt: skip
    else:
        yield from _synced(proxy, facts.settings.sync_period)


def _unsynced(proxy: Proxy) -> Finding:
    return problem("proxy", "the proxy has not synced yet", proxy.health_body,
                   step="see its log: it waits for the API server, or for another proxy to end")  # fmt: skip


def _synced(proxy: Proxy, period: float, remark: str = "") -> Iterator[Finding]:
    metrics = proxy.metrics or {}
    if metrics.get(LAST_SYNC) == 0.0:
        yield _unsynced(proxy)
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
        when = f"synced {age:.0f} s ago" if proxy.metrics else "no metrics"
        yield fine("proxy", "the proxy is healthy", when, *filter(None, [remark]))
