"""What has to wait when something else failed, so that nothing answers without its rules (contract 4.1, P3).

Deterministic: no I/O, no clock. The functions add what has to wait to their argument `failed`. The phases of
`plan.diff` are in a safe order as long as each of them succeeds. When rules are refused, what they were to guard
must not begin to answer; when a VIP or a server could not be removed, its rules must stay. The owners of
elements tell what belongs together. Called only when something has failed.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import chain

from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.plan.diff import ElementStep, IpvsStep, Verb
from ipvsproxy.plan.state import Dirty, Vip


def guarded_servers(steps: Sequence[IpvsStep], failed: Dirty) -> list[IpvsStep]:
    """Return the steps but new servers whose rules failed, or those of the address; they are noted in `failed`.

    Servers that exist go on changing: their rules exist too, and endpoints that are gone must not be sent traffic.
    """
    bare = {slot.owner for slot in failed.slots}
    new = (step.key for step in steps if step.verb is Verb.NEW_SERVICE)
    waiting = {key for key in new if key in bare or key.address in bare}
    failed.servers |= waiting
    return [step for step in steps if step.key not in waiting]


def guarded_vips(vips: Iterable[Vip], failed: Dirty) -> list[Vip]:
    """Return the VIPs to bind but those with rules that failed; those are noted in `failed`."""
    bare = {slot.address for slot in failed.slots}
    waiting = {vip.address for vip in vips if vip.address in bare}
    failed.vips |= waiting
    return [vip for vip in vips if vip.address not in waiting]


def ready_redirects(steps: Iterable[ElementStep], failed: Dirty) -> list[ElementStep]:
    """Return the redirects to switch but those from or to a server that failed; those are noted in `failed`."""
    steps = list(steps)
    waiting = {step.slot.owner for step in steps if not failed.servers.isdisjoint(redirect_ends(step))}
    failed.slots |= {step.slot for step in steps if step.slot.owner in waiting}
    return [step for step in steps if step.slot.owner not in waiting]


def replaced_vips(vips: Iterable[Vip], failed: Dirty) -> list[Vip]:
    """Return the VIPs to unbind but those whose other form could not be bound."""
    return [vip for vip in vips if vip.address not in failed.vips]


def unneeded_elements(steps: Iterable[ElementStep], failed: Dirty) -> list[ElementStep]:
    """Return the elements to delete but those of what may still answer; those are noted in `failed`.

    An element of a frontend waits for its own server, and until new connections are led another way where they are
    to be; one of an address waits for all servers and frontends there; both for the VIP.
    """
    switching = {owner for slot in failed.slots if slot.redirects for owner in (slot.owner, slot.address)}
    bound = failed.vips
    answering = bound | {key.address for key in failed.servers}
    waiting = set()
    for step in steps:
        key, address = step.slot.frontend, step.slot.address
        is_own = key is None or key in failed.servers or address in bound
        if (address in answering and is_own) or step.slot.owner in switching:
            waiting.add(step.slot)
    failed.slots |= waiting
    return [step for step in steps if step.slot not in waiting]


def halves(steps: Iterable[ElementStep]) -> tuple[list[ElementStep], ...]:
    """Cut changes of elements in two: between addresses, or else between the frontends of one.

    What is about one frontend stays together and cannot be cut; elements of the node are each by themselves. What
    frontends share at an address comes before them, and goes after: views and source ranges are asked only there.
    """
    steps = list(steps)
    return _cut(steps, _by_address) or _cut(sorted(steps, key=_rank), _by_owner)


def _cut(
    steps: Iterable[ElementStep], group_of: Callable[[ElementStep], Hashable]
) -> tuple[list[ElementStep], ...]:
    groups: dict[Hashable, list[ElementStep]] = {}
    for step in steps:
        groups.setdefault(group_of(step), []).append(step)
    parts, middle = list(groups.values()), len(groups) // 2
    return (list(chain(*parts[:middle])), list(chain(*parts[middle:]))) if middle else ()


def ready_elements(steps: Iterable[ElementStep], failed: Dirty) -> list[ElementStep]:
    """Return all but what is of frontends at whose address something was refused; that is noted in `failed`."""
    steps = list(steps)
    refused = {slot.address: slot for slot in failed.slots if slot.frontend is None and slot.address}
    waiting = {
        step.slot: refused[step.slot.address]
        for step in steps
        if step.slot.frontend and step.slot.address in refused
    }
    failed.slots.update(waiting)
    failed.reasons.update({slot: failed.reasons[why] for slot, why in waiting.items() if why in failed.reasons})
    return [step for step in steps if step.slot not in waiting]


def redirect_ends(step: ElementStep) -> Iterator[FrontendKey]:
    """Yield the frontend whose redirect a step changes, and the server that it leads to from then on."""
    if step.slot.frontend is not None:
        yield step.slot.frontend
        if isinstance(step.value, FrontendKey):
            yield step.value


def _rank(step: ElementStep) -> int:
    """Return 0 for what comes to an address, 2 for what goes from one, 1 for everything else."""
    if step.slot.frontend is not None or step.slot.address is None:
        return 1
    return 2 if step.value is None else 0


def _by_address(step: ElementStep) -> Hashable:
    return step.slot if step.slot.owner is None else step.slot.address


def _by_owner(step: ElementStep) -> Hashable:
    return step.slot if step.slot.owner is None else (step.slot.owner, _rank(step))
