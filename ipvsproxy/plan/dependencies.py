"""What has to wait when something else failed, so that nothing answers without its rules (contract 4.1, P3).

Pure. The phases of `plan.diff` are in a safe order as long as each of them succeeds. When rules are refused, what
they were to guard must not begin to answer; when a VIP or a server could not be removed, its rules must stay.
Addresses and frontends tell what belongs together. Called only when something has failed.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.plan.diff import ElementStep, IpvsStep, Verb
from ipvsproxy.plan.rules import frontend_of
from ipvsproxy.plan.state import Dirty, ElementKey, FrontendKey, Vip


def guarded_servers(steps: Sequence[IpvsStep], failed: Dirty) -> list[IpvsStep]:
    """Return the steps but new servers whose rules failed, or those of the address; they are noted in `failed`.

    Servers that exist go on changing: their rules exist too, and endpoints that are gone must not be sent traffic.
    """
    bare = {frontend_of(slot) or address_of(slot) for slot in failed.slots}
    new = (step.key for step in steps if step.verb is Verb.NEW_SERVICE)
    waiting = {key for key in new if key in bare or format_ip(key.address) in bare}
    failed.servers |= waiting
    return [step for step in steps if step.key not in waiting]


def guarded_vips(vips: Iterable[Vip], failed: Dirty) -> list[Vip]:
    """Return the VIPs to bind but those with rules that failed; those are noted in `failed`."""
    bare = _addresses(failed.slots)
    waiting = {vip.address for vip in vips if format_ip(vip.address) in bare}
    failed.vips |= waiting
    return [vip for vip in vips if vip.address not in waiting]


def ready_redirects(steps: Iterable[ElementStep], failed: Dirty) -> list[ElementStep]:
    """Return the ways to switch but those from or to a server that failed; those are noted in `failed`."""
    steps = list(steps)
    waiting = {step.slot.key for step in steps if not failed.servers.isdisjoint(redirect_ends(step))}
    failed.slots |= {step.slot for step in steps if step.slot.key in waiting}
    return [step for step in steps if step.slot.key not in waiting]


def replaced_vips(vips: Iterable[Vip], failed: Dirty) -> list[Vip]:
    """Return the VIPs to unbind but those whose other form could not be bound."""
    return [vip for vip in vips if vip.address not in failed.vips]


def unneeded_elements(steps: Iterable[ElementStep], failed: Dirty) -> list[ElementStep]:
    """Return the elements to delete but those of what may still answer; those are noted in `failed`.

    An element of a frontend waits for its own server, one of an address for all servers there, both for the VIP.
    """
    bound = {format_ip(vip) for vip in failed.vips}
    answering = bound | {format_ip(key.address) for key in failed.servers}
    waiting = set()
    for step in steps:
        key, address = frontend_of(step.slot), address_of(step.slot)
        if address in answering and (key is None or key in failed.servers or address in bound):
            waiting.add(step.slot)
    failed.slots |= waiting
    return [step for step in steps if step.slot not in waiting]


def halves(steps: Iterable[ElementStep]) -> tuple[list[ElementStep], ...]:
    """Cut changes of elements in two: between addresses, or else between the frontends of one.

    What is about one frontend stays together and cannot be cut.
    """
    steps = list(steps)
    for name in (address_of, frontend_text):
        groups: dict[str, list[ElementStep]] = {}
        for step in steps:
            groups.setdefault(name(step.slot), []).append(step)
        parts, middle = list(groups.values()), len(groups) // 2
        if middle:
            return list(chain(*parts[:middle])), list(chain(*parts[middle:]))
    return ()


def redirect_ends(step: ElementStep) -> Iterator[FrontendKey]:
    """Yield the frontend whose way a step changes, and the server that it leads to from then on."""
    key = frontend_of(step.slot)
    if key is None:
        return
    yield key
    address, separator, port = (step.value or "").partition(" . ")
    if separator:
        yield FrontendKey(parse_ip(address), key.protocol, int(port))


def _addresses(slots: Iterable[ElementKey]) -> set[str]:
    return {address_of(slot) for slot in slots}


def address_of(slot: ElementKey) -> str:
    """Return the address that an element is about: keys of frontends begin with it."""
    return slot.key.partition(" . ")[0]


def frontend_text(slot: ElementKey) -> str:
    """Return the frontend that an element is about, as nft text; the address where it is about no single one."""
    return " . ".join(slot.key.split(" . ")[:3])
