"""The difference between the wanted state and the shadow, as steps in a safe order.

Deterministic: no I/O, no clock. `diff` changes nothing, `record_…` change the shadow. In: what may have changed
(`Dirty`), the ledger, the shadow. Out: `Steps`. The order of the phases is what keeps a VIP from answering before
its guard, its source ranges and its masquerade exist, and keeps those in place until it no longer answers
(contract 4.1, P3):

    add elements -> add servers and destinations -> switch redirects -> add VIPs -> remove VIPs -> remove servers
    -> remove elements

Where local pods and the node change to another server (the internal view of a Local policy, on a frontend that
stays), the redirect is switched when that server has its destinations and the old one still has them.

A destination is never deleted and added again, and a TCP destination that is no longer wanted only gets weight 0
here; what becomes of it then is decided in `plan.drain` (contract 4.5).
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from enum import IntEnum
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from ipvsproxy.plan.ledger import Wanted
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import (
    SHORT_PATH,
    USUAL,
    Destination,
    DestinationAttributes,
    Dirty,
    Frontend,
    FrontendKey,
    KernelState,
    ServerAttributes,
    ServerState,
    Vip,
    VipForm,
)
from ipvsproxy.ruleset.elements import Element, ElementKey, Value, is_by_rules, is_short
from ipvsproxy.ruleset.schema import SHORT_ENDPOINTS

Attributes = Mapping[Destination, DestinationAttributes]
Group = tuple[DestinationAttributes, tuple[Destination, ...]]


class Verb(IntEnum):
    """Commands of IPVS, by their number in include/uapi/linux/ip_vs.h."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7


# Looked up once: reading a member from its class takes Python 3.11 some 600 instructions.
NEW_SERVICE, SET_SERVICE, DEL_SERVICE, NEW_DEST, SET_DEST, DEL_DEST = Verb
SERVER_VERBS = (NEW_SERVICE, SET_SERVICE, DEL_SERVICE)
MARKS = frozenset(SHORT_ENDPOINTS.values())
TCP, VIP_FORMS = Protocol.TCP, tuple(VipForm)


class IpvsStep(msgspec.Struct, frozen=True, gc=False):
    """One command for a virtual server, or for some destinations of it, which all get the same attributes.

    A server is created together with the first of its destinations, those that have the same attributes.
    """

    verb: Verb
    key: FrontendKey
    server: ServerAttributes | None = None
    destinations: tuple[Destination, ...] = ()
    attributes: DestinationAttributes = USUAL

    @property
    def creates(self) -> bool:
        """Whether this makes a new server."""
        return self.verb is NEW_SERVICE

    @property
    def size(self) -> int:
        """The number of changes to the kernel."""
        return len(self.destinations) + (self.verb in SERVER_VERBS)


class ElementStep(msgspec.Struct, frozen=True, gc=False):
    """One element to have (`value`) or not to have (None); `replaces` is set when another value is there."""

    slot: ElementKey
    value: Value | None
    replaces: bool = False


class Steps(msgspec.Struct):
    """What to do, phase by phase, in this order; `diff` puts what is in `left` in front of `elements_before`."""

    left: list[ElementStep] = msgspec.field(default_factory=list)
    elements_before: list[ElementStep] = msgspec.field(default_factory=list)
    added: list[IpvsStep] = msgspec.field(default_factory=list)
    redirects: list[ElementStep] = msgspec.field(default_factory=list)
    bound: list[Vip] = msgspec.field(default_factory=list)
    unbound: list[Vip] = msgspec.field(default_factory=list)
    removed: list[IpvsStep] = msgspec.field(default_factory=list)
    elements_after: list[ElementStep] = msgspec.field(default_factory=list)

    def __bool__(self) -> bool:
        servers, vips = self.added or self.removed, self.bound or self.unbound
        return bool(servers or vips or self.elements_before or self.redirects or self.elements_after)

    @property
    def new_vips(self) -> set[bytes]:
        """The addresses that become local; not those of VIPs that only change their form."""
        return {vip.address for vip in self.bound} - {vip.address for vip in self.unbound}

    def count(self) -> int:
        """Return the number of changes to the kernel."""
        servers = sum([step.size for step in self.added + self.removed])
        elements = len(self.elements_before) + len(self.redirects) + len(self.elements_after)
        return servers + elements + len(self.bound) + len(self.unbound)


def diff(touched: Dirty, wanted: Wanted, shadow: KernelState, protected: Callable[[FrontendKey], bool]) -> Steps:
    """Return the steps that make the touched part of the shadow as wanted.

    `protected` tells the servers that others own: unwanted ones among them are left alone.
    """
    steps = Steps()
    for slot in touched.slots:
        _element(slot, wanted.elements, shadow, steps)
    for key in touched.servers:
        frontend, state = wanted.frontends.get(key), shadow.servers.get(key)
        if frontend is not None and frontend.path is SHORT_PATH:
            _leave_server(frontend, state, steps)
        elif frontend is not None:
            _server(frontend, state, steps)
        elif state is not None and not protected(key):
            steps.removed.append(IpvsStep(DEL_SERVICE, key))
    for address in touched.vips:
        _vip(address, wanted.vip(address), shadow.vips, steps)
    if steps.elements_before and steps.elements_after:
        _with_their_verdicts(steps)
    if steps.left:
        # In one transaction, and first: a source leaves its group before another group may connect to anything.
        steps.elements_before, steps.left = steps.left + steps.elements_before, []
    return steps


def _element(slot: ElementKey, wanted: Mapping[ElementKey, Value], shadow: KernelState, steps: Steps) -> None:
    value, present = wanted.get(slot), shadow.elements.get(slot)
    if value == present:
        return
    if _switches(slot, wanted, shadow):
        steps.redirects.append(ElementStep(slot, value, replaces=value is not None and present is not None))
    elif value is None and slot.is_member:
        steps.left.append(ElementStep(slot, None))
    elif value is None:
        # Source ranges of a frontend that stays change in one transaction: old and new ones may overlap, and
        # no client may get through, or be refused, between two. Those of one that goes outlive it. Endpoints of
        # the short path go together with the verdict that led to them.
        verdict = slot.chosen_by
        with_verdict = verdict is not None and is_by_rules(wanted.get(verdict))
        at_once = with_verdict or slot.restricted_frontend in wanted
        (steps.elements_before if at_once else steps.elements_after).append(ElementStep(slot, None))
    else:
        steps.elements_before.append(ElementStep(slot, value, replaces=present is not None))


def _with_their_verdicts(steps: Steps) -> None:
    """Have the marks of endpoints go in the transaction in which verdicts change: one is cheaper than two."""
    marks = [step for step in steps.elements_after if step.slot.set in MARKS]
    if marks:
        steps.elements_before += marks
        steps.elements_after = [step for step in steps.elements_after if step.slot.set not in MARKS]


def _switches(slot: ElementKey, wanted: Mapping[ElementKey, Value], shadow: KernelState) -> bool:
    """Whether an element belongs to a frontend that stays, and leads new connections another way.

    That is by a view to another server, or from the short path to the frontend's own server, or to that of a view.
    """
    if is_short(shadow.elements.get(slot)):
        return slot in wanted and not is_short(wanted[slot])
    if slot.short_view in shadow.elements:
        return slot.short_view not in wanted and slot.redirects[1] in wanted
    if slot.owner not in shadow.servers or not slot.redirects:  # most are of new frontends, or of none
        return False
    verdict, *views = slot.redirects
    if verdict not in wanted or verdict not in shadow.elements:
        return False
    return any(wanted.get(view) != shadow.elements.get(view) for view in views)


def _server(frontend: Frontend, state: ServerState | None, steps: Steps) -> None:
    key, server, wanted = frontend.key, frontend.server, frontend.destinations
    if state is None:
        steps.added += creation(key, server, wanted)
        return
    if state.server != server:
        steps.added.append(IpvsStep(SET_SERVICE, key, server))
    present = state.destinations
    if wanted == present:
        return
    # Most share one value: that they are the same is seen before they are compared.
    changing = [d for d, want in wanted.items() if (have := present.get(d)) is not want and have != want]
    missing = [d for d in changing if d not in present]
    if missing:
        _add(NEW_DEST, key, missing, wanted, steps)
    if len(missing) < len(changing):
        _add(SET_DEST, key, [d for d in changing if d in present], wanted, steps)
    if len(present) + len(missing) > len(wanted):
        _leave(frontend, present, steps)


def _leave_server(frontend: Frontend, state: ServerState | None, steps: Steps) -> None:
    """On the short path a server only stays for the connections that TCP destinations still have."""
    if state is None:
        return
    if state.destinations and frontend.key.protocol == TCP:
        _leave(frontend, state.destinations, steps)
    else:
        steps.removed.append(IpvsStep(DEL_SERVICE, frontend.key))


def creation(key: FrontendKey, server: ServerAttributes, wanted: Attributes) -> list[IpvsStep]:
    """Return the steps that make a virtual server with its destinations."""
    (attributes, first), *others = grouped(wanted, wanted) or ((USUAL, ()),)
    steps = [IpvsStep(NEW_SERVICE, key, server, first, attributes)]
    for values, group in others:
        steps.append(IpvsStep(NEW_DEST, key, None, group, values))
    return steps


def _add(verb: Verb, key: FrontendKey, which: Collection[Destination], wanted: Attributes, steps: Steps) -> None:
    steps.added += [IpvsStep(verb, key, None, group, values) for values, group in grouped(which, wanted)]


def grouped(which: Collection[Destination], wanted: Attributes) -> Iterable[Group]:
    """Return destinations in groups that want the same attributes, in the order of the first of each."""
    if len(which) == 1:
        (destination,) = which
        return ((wanted[destination], (destination,)),)
    kinds = [*wanted.values()]
    if kinds and kinds.count(kinds[0]) == len(kinds):  # cheaper than a set: most share one value
        return ((kinds[0], tuple(which)),)
    groups: dict[DestinationAttributes, list[Destination]] = {}
    for destination in which:
        groups.setdefault(wanted[destination], []).append(destination)
    return [(attributes, tuple(group)) for attributes, group in groups.items()]


def _leave(frontend: Frontend, present: Attributes, steps: Steps) -> None:
    wanted, key = frontend.balanced, frontend.key
    unwanted = sorted([d for d in present if d not in wanted])
    if key.protocol != TCP:
        steps.removed.append(IpvsStep(DEL_DEST, key, None, tuple(unwanted)))
        return
    # The rest of its attributes stays: it has connections that go on.
    idle = {d: _idle(present[d]) for d in unwanted if present[d].weight}
    steps.removed += [IpvsStep(SET_DEST, key, None, group, values) for values, group in grouped(idle, idle)]


@lru_cache(maxsize=256)
def _idle(attributes: DestinationAttributes) -> DestinationAttributes:
    return replace(attributes, weight=0)


def _vip(address: bytes, vip: Vip | None, shadow: set[Vip], steps: Steps) -> None:
    if vip is not None and vip not in shadow:
        steps.bound.append(vip)
    for form in VIP_FORMS:
        if vip is None or vip.form is not form:
            other = Vip(address, form)
            if other in shadow:
                steps.unbound.append(other)


def record_ipvs(step: IpvsStep, shadow: KernelState) -> None:
    """Note in the shadow that the kernel has carried out a step, all of it."""
    servers, key = shadow.servers, step.key
    if step.verb is NEW_SERVICE and step.server is not None:
        servers[key] = ServerState(step.server, dict.fromkeys(step.destinations, step.attributes))
    elif step.verb is SET_SERVICE and step.server is not None:
        servers[key].server = step.server
    elif step.verb is DEL_SERVICE:
        servers.pop(key, None)
    elif step.verb is DEL_DEST:
        for destination in step.destinations:
            servers[key].destinations.pop(destination, None)
    else:
        servers[key].destinations.update(dict.fromkeys(step.destinations, step.attributes))


def differing(
    present: Mapping[ElementKey, Value], wanted: Mapping[ElementKey, Value]
) -> tuple[Iterable[Element], Iterable[Element]]:
    """Return which elements of one ruleset go, and which come, to make it another."""
    gone, come = {}, dict(wanted)
    for slot, value in present.items():
        if come.get(slot) == value:
            del come[slot]
        else:
            gone[slot] = value
    return gone.items(), come.items()


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
    for element in (*steps.elements_before, *steps.redirects, *steps.elements_after):
        record_element(element, shadow)
    for ipvs in (*steps.added, *steps.removed):
        record_ipvs(ipvs, shadow)
    for vip in steps.bound:
        record_vip(vip, shadow, present=True)
    for vip in steps.unbound:
        record_vip(vip, shadow, present=False)
