"""The difference between the wanted state and the shadow, as steps in a safe order.

Pure. In: what may have changed (`Touched`), the ledger, the shadow. Out: `Steps`. The order of the phases is
what keeps a VIP from answering before its guard, its source ranges and its masquerade exist, and keeps those
in place until it no longer answers (contract 4.1, P3):

    raise elements -> add servers and destinations -> add VIPs -> remove VIPs -> remove servers -> lower elements

A destination is never deleted and added again, and a TCP destination that is no longer wanted only gets weight
0 here; `reap` deletes it when its connections have ended (contract 4.5). Weight 0 in the kernel is the only
memory of that, so a restart forgets nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.rules import restricted_frontend
from ipvsproxy.plan.state import (
    Destination,
    Frontend,
    FrontendKey,
    KernelState,
    Server,
    ServerState,
    Slot,
    Touched,
    Vip,
    VipForm,
)


class Verb(IntEnum):
    """Commands of IPVS, by their number in include/uapi/linux/ip_vs.h."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7


class IpvsStep(NamedTuple):
    """One command for one virtual server, or for one destination of it."""

    verb: Verb
    key: FrontendKey
    server: Server | None = None
    destination: Destination | None = None
    weight: int = 0


class ElementStep(NamedTuple):
    """One element to have (`value`) or not to have (None); `replaces` is set when another value is there."""

    slot: Slot
    value: str | None
    replaces: bool = False


@dataclass
class Steps:
    """What to do, phase by phase, in this order."""

    raised: list[ElementStep] = field(default_factory=list)
    added: list[IpvsStep] = field(default_factory=list)
    bound: list[Vip] = field(default_factory=list)
    unbound: list[Vip] = field(default_factory=list)
    removed: list[IpvsStep] = field(default_factory=list)
    lowered: list[ElementStep] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.count() > 0

    def count(self) -> int:
        """Return the number of changes to the kernel."""
        elements = len(self.raised) + len(self.lowered)
        return elements + len(self.added) + len(self.removed) + len(self.bound) + len(self.unbound)


def diff(touched: Touched, wanted: Ledger, shadow: KernelState, protected: Callable[[FrontendKey], bool]) -> Steps:
    """Return the steps that make the touched part of the shadow as wanted.

    `protected` tells the servers that others own: unwanted ones among them are left alone.
    """
    steps = Steps()
    for slot in touched.slots:
        _element(slot, wanted.elements, shadow.elements, steps)
    for key in touched.servers:
        frontend, state = wanted.frontends.get(key), shadow.servers.get(key)
        if frontend is not None:
            _server(frontend, state, steps)
        elif state is not None and not protected(key):
            steps.removed.append(IpvsStep(Verb.DEL_SERVICE, key))
    for address in touched.vips:
        _vip(address, wanted.vip(address), shadow.vips, steps)
    return steps


def _element(slot: Slot, wanted: Mapping[Slot, str], shadow: Mapping[Slot, str], steps: Steps) -> None:
    value, present = wanted.get(slot), shadow.get(slot)
    if value == present:
        return
    if value is None:
        # Source ranges of a frontend that stays change in one transaction: old and new ones may overlap, and
        # nobody may slip through, or be shut out, between two. Those of one that goes outlive it.
        at_once = restricted_frontend(slot) in wanted
        (steps.raised if at_once else steps.lowered).append(ElementStep(slot, None))
    else:
        steps.raised.append(ElementStep(slot, value, replaces=present is not None))


def _server(frontend: Frontend, state: ServerState | None, steps: Steps) -> None:
    key, server = frontend.key, frontend.server
    if state is None:
        steps.added.append(IpvsStep(Verb.NEW_SERVICE, key, server))
        steps.added += [IpvsStep(Verb.NEW_DEST, key, None, d, 1) for d in frontend.destinations]
        return
    if state.server != server:
        steps.added.append(IpvsStep(Verb.SET_SERVICE, key, server))
    for destination in frontend.destinations:
        weight = state.weights.get(destination)
        if weight is None:
            steps.added.append(IpvsStep(Verb.NEW_DEST, key, None, destination, 1))
        elif weight != 1:
            steps.added.append(IpvsStep(Verb.SET_DEST, key, None, destination, 1))
    steps.removed += _leaving(frontend, state)


def _leaving(frontend: Frontend, state: ServerState) -> Iterable[IpvsStep]:
    unwanted = state.weights.keys() - frozenset(frontend.destinations)
    for destination in sorted(unwanted):
        if frontend.key.protocol != Protocol.TCP:
            yield IpvsStep(Verb.DEL_DEST, frontend.key, None, destination)
        elif state.weights[destination] != 0:
            yield IpvsStep(Verb.SET_DEST, frontend.key, None, destination, 0)


def _vip(address: bytes, vip: Vip | None, shadow: set[Vip], steps: Steps) -> None:
    for form in VipForm:
        candidate = Vip(address, form)
        if candidate == vip and candidate not in shadow:
            steps.bound.append(candidate)
        elif candidate != vip and candidate in shadow:
            steps.unbound.append(candidate)


def draining(frontend: Frontend | None, state: ServerState) -> list[Destination]:
    """Return the destinations that are no longer wanted but may still carry connections."""
    wanted = frozenset(frontend.destinations) if frontend else frozenset()
    return [d for d, weight in state.weights.items() if weight == 0 and d not in wanted]


def reap(frontend: Frontend, state: ServerState, connections: Mapping[Destination, int]) -> list[IpvsStep]:
    """Return the deletions of draining destinations of one server that carry no connection any more."""
    return [
        IpvsStep(Verb.DEL_DEST, frontend.key, None, destination)
        for destination in draining(frontend, state)
        if connections.get(destination) == 0
    ]


def record_ipvs(step: IpvsStep, shadow: KernelState) -> None:
    """Note in the shadow that the kernel has carried out a step."""
    if step.verb is Verb.DEL_SERVICE:
        shadow.servers.pop(step.key, None)
    elif step.verb is Verb.NEW_SERVICE and step.server is not None:
        shadow.servers[step.key] = ServerState(step.server, {})
    elif step.verb is Verb.SET_SERVICE and step.server is not None:
        shadow.servers[step.key].server = step.server
    elif step.verb is Verb.DEL_DEST and step.destination is not None:
        shadow.servers[step.key].weights.pop(step.destination, None)
    elif step.destination is not None:
        shadow.servers[step.key].weights[step.destination] = step.weight


def record_element(step: ElementStep, shadow: KernelState) -> None:
    """Note in the shadow that the ruleset has, or no longer has, an element."""
    if step.value is None:
        shadow.elements.pop(step.slot, None)
    else:
        shadow.elements[step.slot] = step.value


def record_vip(vip: Vip, shadow: KernelState, *, present: bool) -> None:
    """Note in the shadow that a VIP has been bound or unbound."""
    if present:
        shadow.vips.add(vip)
    else:
        shadow.vips.discard(vip)


def apply(steps: Steps, shadow: KernelState) -> None:
    """Note all steps as done: what a faultless kernel would do. For tests and dry runs."""
    for element in (*steps.raised, *steps.lowered):
        record_element(element, shadow)
    for ipvs in (*steps.added, *steps.removed):
        record_ipvs(ipvs, shadow)
    for vip in steps.bound:
        record_vip(vip, shadow, present=True)
    for vip in steps.unbound:
        record_vip(vip, shadow, present=False)
