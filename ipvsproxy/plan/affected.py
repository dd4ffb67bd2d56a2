"""Which Services a failure of the kernel is about, and the text of its Event.

Deterministic: no I/O, no clock. In: the names of what failed, with what the kernel answered. Out: a reason for
each Service concerned, for people who look at that Service. Called only when something has failed.
"""

from collections.abc import Iterable, Iterator

from ipvsproxy.base.address import format_ip
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.state import Dirty, FrontendKey

MAX_AFFECTED = 50
"""When more fails at once it is not about single Services."""


def services_affected(failed: Dirty, ledger: Ledger) -> dict[str, str]:
    """Return {`namespace/name`: reason} of Services that something failed for, MAX_AFFECTED at most."""
    found: dict[str, str] = {}
    for key, reason in _reasons(failed, ledger):
        found.setdefault(ledger.owner(key), f"{key}: {reason}")
        if len(found) == MAX_AFFECTED:
            break
    return found


def families_behind(pending: Dirty, families: Iterable[int] = ()) -> frozenset[int]:
    """Return the families with rules that were not accepted; rules without a family count for both.

    `families` are those of more sets, 0 for one without a family.
    """
    found = {*(slot.set.family for slot in pending.slots), *families}
    return frozenset((4, 6)) if 0 in found else frozenset(found)


def _reasons(failed: Dirty, ledger: Ledger) -> Iterator[tuple[FrontendKey, str]]:
    for key in failed.servers:
        if key in ledger.frontends:
            yield key, failed.reasons.get(key, "the answer of IPVS was lost")
    for address in failed.vips:
        reason = failed.reasons.get(address, "the kernel's answer was lost")
        for key in ledger.frontends_of_vip(address):
            yield key, f"address {format_ip(address)}: {reason}"
    for slot in failed.slots:
        owner = slot.frontend
        if owner in ledger.frontends:
            yield owner, failed.reasons.get(slot, "its rules were not accepted")
