"""Checks of what we have programmed: ruleset, drift, and the settings by which it is judged."""

from collections.abc import Iterator, Sequence

from ipvsproxy.base.names import TABLE
from ipvsproxy.diagnosis.facts import Facts
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.foreign import is_ours
from ipvsproxy.diagnosis.proxies import is_installed
from ipvsproxy.diagnosis.shape import ending
from ipvsproxy.ruleset.filters import FilterChain

SHOWN = 10


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
        yield warning(
            "settings",
            "the proxy that runs has other settings than this command",
            *found,
            step="give it the flags of the proxy, or its --config; given no settings, it takes those of the proxy",
        )
    elif facts.settings.origin:
        yield fine("settings", facts.settings.origin)


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


def _changed(chain: FilterChain | None, ends: Sequence[str]) -> Iterator[str]:
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
        now = ending(rule)
        if end and now != end:
            yield f"rule {number} ends with {now or 'no verdict'}, not {end}"


API_STEP = "check the address, the network to it and the credentials (--kubeconfig)"
NAME_STEP = "name it: --kubeconfig FILE, or --manifests FOLDER"


def check_api(facts: Facts) -> Iterator[Finding]:
    """Services and endpoints can be read."""
    api = facts.api
    if api is None:
        yield unchecked("objects", facts.unread.get("objects", "no source of objects was named"))
    elif api.error and not is_installed(facts):
        step = API_STEP if api.named else NAME_STEP
        yield unchecked("objects", f"{api.source} cannot be read yet: {api.error}", step)
    elif api.error:
        yield problem("objects", f"{api.source} cannot be read: {api.error}",
                      step=API_STEP if api.named else NAME_STEP)  # fmt: skip
    else:
        if api.refused:
            yield warning("objects", f"{counted(len(api.refused), 'object')} cannot be used", *api.refused[:SHOWN],
                          step="correct them: an invalid object affects only itself")  # fmt: skip
        if api.left_out:
            count = counted(len(api.left_out), "part")
            yield warning("objects", f"{count} of them cannot be used or may be missing",
                          *api.left_out[:SHOWN], step="complete them: what is missing is not proxied")  # fmt: skip
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
