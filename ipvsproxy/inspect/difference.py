"""What a run would change, as text: steps of `plan.diff` as changes of single objects, with what is there now.

Deterministic, no I/O. In: the wanted state and the shadow, complete. Out: `Change`s in the order in which they
would be made.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from ipvsproxy.base.address import format_ip
from ipvsproxy.plan.diff import SERVER_VERBS, ElementStep, IpvsStep, Verb, diff
from ipvsproxy.plan.ledger import Wanted
from ipvsproxy.plan.state import (
    ONE_PACKET,
    PERSISTENT,
    SCHED_1,
    SCHED_2,
    SCHED_3,
    FrontendKey,
    KernelState,
    ServerAttributes,
    Vip,
)
from ipvsproxy.ruleset.codec import element_text, value_text
from ipvsproxy.ruleset.elements import ElementKey, ElementOwner, Value

LONGEST_PREFIX = 128


class Action(StrEnum):
    """What happens to an object."""

    ADD = "add"
    CHANGE = "change"
    REMOVE = "remove"


class Change(NamedTuple):
    """One change: what kind of object, its name, the frontend it belongs to (empty: none), before and after.

    `owner` is the frontend or address that it is about, None for what is about neither.
    """

    action: Action
    object: str
    name: str
    frontend: str = ""
    was: str = ""
    wanted: str = ""
    owner: ElementOwner = None


def changes(wanted: Wanted, shadow: KernelState, protected: Callable[[FrontendKey], bool]) -> Iterator[Change]:
    """Yield everything that differs."""
    touched = wanted.everything()
    touched.update(shadow.everything())
    steps = diff(touched, wanted, shadow, protected)
    for element in sorted(steps.elements_before, key=_slot_name):
        yield _element(element, shadow.elements)
    for ipvs in sorted(steps.added, key=lambda step: step.key):
        yield from _ipvs(ipvs, shadow)
    for element in sorted(steps.redirects, key=_slot_name):
        yield _element(element, shadow.elements)
    yield from (_vip(Action.ADD, vip) for vip in sorted(steps.bound))
    yield from (_vip(Action.REMOVE, vip) for vip in sorted(steps.unbound))
    for ipvs in sorted(steps.removed, key=lambda step: step.key):
        yield from _ipvs(ipvs, shadow)
    for element in sorted(steps.elements_after, key=_slot_name):
        yield _element(element, shadow.elements)


def _element(step: ElementStep, present: Mapping[ElementKey, Value]) -> Change:
    slot, was = step.slot, present.get(step.slot)
    action = Action.REMOVE if step.value is None else Action.ADD if was is None else Action.CHANGE
    before, wanted = value_text(was or ""), value_text(step.value or "")
    return Change(action, "element", element_text(slot), "", before, wanted, slot.owner)


def _slot_name(step: ElementStep) -> str:
    return element_text(step.slot)


def _vip(action: Action, vip: Vip) -> Change:
    was, wanted = ("", vip.form) if action is Action.ADD else (vip.form, "")
    return Change(action, "VIP", format_ip(vip.address), "", was, wanted, vip.address)


def _ipvs(step: IpvsStep, shadow: KernelState) -> Iterator[Change]:
    key, state = str(step.key), shadow.servers.get(step.key)
    was = server_text(state.server) if state else ""
    if step.verb in SERVER_VERBS:
        action = {Verb.NEW_SERVICE: Action.ADD, Verb.DEL_SERVICE: Action.REMOVE}.get(step.verb, Action.CHANGE)
        yield Change(action, "server", key, key, was, server_text(step.server) if step.server else "", step.key)
    present = state.destinations if state else {}
    action = {Verb.SET_DEST: Action.CHANGE, Verb.DEL_DEST: Action.REMOVE}.get(step.verb, Action.ADD)
    wanted = "" if step.verb is Verb.DEL_DEST else str(step.attributes)
    for destination in step.destinations:
        before = str(present[destination]) if destination in present else ""
        yield Change(action, "endpoint", str(destination), key, before, wanted, step.key)


def server_text(server: ServerAttributes) -> str:
    """Return the attributes of a virtual server as one text, flags by the names that ipvsadm has for them."""
    named = server.scheduler in ("sh", "mh")
    names = {
        PERSISTENT: f"affinity {server.timeout} s",
        ONE_PACKET: "one-packet",
        SCHED_1: f"{server.scheduler}-fallback" if named else "flag-1",
        SCHED_2: f"{server.scheduler}-port" if named else "flag-2",
        SCHED_3: "flag-3",
    }
    texts = [server.scheduler, *(name for bit, name in names.items() if server.flags & bit)]
    if server.netmask is not None:
        texts.append(f"netmask {netmask_text(server.netmask)}")
    if server.engine:
        texts.append(f"persistence-engine {server.engine}")
    return " ".join(texts)


def netmask_text(netmask: int) -> str:
    """Return an IPv4 mask as an address; numbers up to 128 are lengths of IPv6 prefixes."""
    return f"/{netmask}" if netmask <= LONGEST_PREFIX else format_ip(netmask.to_bytes(4))
