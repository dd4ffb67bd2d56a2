"""To whom addresses belong, as far as objects tell, and which Services ask for them as external addresses.

In: objects as they change, and what was learned of Nodes. Out: answers for `plan.safety` at constant cost, and
with each change the Services for which an answer may be another one now. A change costs its own size, however many
objects there are.
"""

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from ipvsproxy.base.address import Cidr, Ranges
from ipvsproxy.plan.model import EndpointSlice, Node, Service
from ipvsproxy.plan.port_claims import PortClaims
from ipvsproxy.plan.state import Frontend
from ipvsproxy.plan.waiting import RankedService

T = TypeVar("T")


class OtherNodeAddresses(msgspec.Struct, frozen=True):
    """What is known of the Nodes of the cluster: addresses of other nodes, and ranges of pods of all.

    `answers` is the highest ticket that it answers. `nodes` is None where no look has succeeded.
    """

    nodes: frozenset[bytes] | None
    pod_cidrs: tuple[Cidr, ...] = ()
    answers: int = 0


class Addresses:
    """Addresses of other nodes and of pods, external addresses of Services, and ports that no other may take."""

    def __init__(self) -> None:
        self.looks_up = False
        self.ports = PortClaims()
        self._pods: dict[bytes, int] = {}
        self._external: dict[bytes, set[str]] = {}
        self._given: dict[bytes, set[str]] = {}
        self._nodes: dict[bytes, int] = {}
        self._seen = OtherNodeAddresses(frozenset())
        self._pod_cidrs: dict[Cidr, int] = {}
        self._pod_ranges: Ranges | None = None
        self._questions: set[bytes] = set()
        self._waiting: dict[bytes, int] = {}

    def is_node(self, address: bytes) -> bool:
        """Whether it belongs to another node."""
        return address in self._nodes or address in (self._seen.nodes or ())

    def is_pod(self, address: bytes) -> bool:
        """Whether an EndpointSlice has it as the address of an endpoint on a node."""
        return address in self._pods

    def in_pod_range(self, address: bytes) -> bool:
        """Whether a Node has it in its ranges of pods."""
        if self._pod_ranges is None:
            self._pod_ranges = Ranges((*self._pod_cidrs, *self._seen.pod_cidrs))
        return address in self._pod_ranges

    def is_given(self, address: bytes) -> bool:
        """Whether it is the load balancer address of a Service."""
        return address in self._given

    def is_unknown(self, address: bytes) -> bool:
        """Whether it is not known yet if it belongs to a node."""
        return address in self._questions or address in self._waiting

    def service(self, key: str, old: Service | None, new: Service | None) -> set[str]:
        """Record a Service and return the others that depend on it."""
        before, after = _asked(old), _asked(new)
        affected: set[str] = set()
        for address in before.keys() | after.keys():
            was, is_ = before.get(address), after.get(address)
            if was == is_:
                continue
            was_given = address in self._given
            if self.looks_up and not (was_given or address in self._external):
                self._questions.add(address)
            if was is not None:
                _remove(self._given if was else self._external, address, key)
            if is_ is not None:
                (self._given if is_ else self._external).setdefault(address, set()).add(key)
            if was_given != (address in self._given):
                affected |= self._external.get(address, set())
            if not (address in self._given or address in self._external):
                self._questions.discard(address)
                self._waiting.pop(address, None)
        affected.discard(key)
        return affected

    def claim_ports(self, owner: RankedService, frontends: Iterable[Frontend]) -> set[str]:
        """Record the ranges of ports that a Service gets and return the others that depend on it."""
        affected = self._askers(self.ports.replace(owner, frontends))
        affected.discard(owner.service)
        return affected

    def slice(self, old: EndpointSlice | None, new: EndpointSlice | None) -> set[str]:
        """Record an EndpointSlice and return the Services that ask for addresses of its pods."""
        changed = {endpoint.address for endpoint in new.endpoints if endpoint.node} if new else set()
        former = {endpoint.address for endpoint in old.endpoints if endpoint.node} if old else set()
        if former == changed:  # most changes are of conditions
            return set()
        return self._askers(_count(self._pods, former - changed, changed - former))

    def own_node(self, old: Node | None, new: Node | None) -> set[str]:
        """Record our Node, whose ranges of pods count, and return the Services for which that may matter."""
        former, changed = set(old.pod_cidrs if old else ()), set(new.pod_cidrs if new else ())
        return self._new_ranges() if _count(self._pod_cidrs, former - changed, changed - former) else set()

    def other_node(self, old: Node | None, new: Node | None) -> set[str]:
        """Record another Node and return the Services for which that may matter."""
        former, changed = set(old.addresses if old else ()), set(new.addresses if new else ())
        affected = self._askers(_count(self._nodes, former - changed, changed - former))
        return affected | self.own_node(old, new)

    def neighbours(self, seen: OtherNodeAddresses) -> set[str]:
        """Record what a look at the Nodes has found and return the Services for which that may matter."""
        settled = {address for address, ticket in self._waiting.items() if ticket <= seen.answers}
        for address in settled:
            del self._waiting[address]
        affected = self._askers(settled)
        if seen.nodes is None:
            return affected
        before, self._seen = self._seen, seen
        affected |= self._askers(seen.nodes.symmetric_difference(before.nodes or ()))
        if seen.pod_cidrs != before.pod_cidrs:
            affected |= self._new_ranges()
        return affected

    @property
    def has_questions(self) -> bool:
        """Whether there are addresses that have not been asked about yet."""
        return bool(self._questions)

    @property
    def are_asked_for(self) -> bool:
        """Whether any Service asks for an external address."""
        return bool(self._given or self._external)

    def asked(self, ticket: int) -> None:
        """Record that all addresses that are not known have been asked about."""
        self._waiting.update(dict.fromkeys(self._questions, ticket))
        self._questions.clear()

    def _new_ranges(self) -> set[str]:
        self._pod_ranges = None
        return self._askers(self._given.keys() | self._external.keys())

    def _askers(self, addresses: Iterable[bytes]) -> set[str]:
        found: set[str] = set()
        if self._given or self._external:
            for address in addresses:
                found.update(self._given.get(address, ()))
                found.update(self._external.get(address, ()))
        return found


def _remove(services: dict[bytes, set[str]], address: bytes, key: str) -> None:
    services[address].remove(key)
    if not services[address]:
        del services[address]


def _asked(service: Service | None) -> dict[bytes, bool]:
    """Return the external addresses of a Service, and whether its load balancer has given them."""
    if service is None:
        return {}
    return {**dict.fromkeys(service.external_ips, False), **dict.fromkeys(service.load_balancer_ips, True)}


def _count(counts: dict[T, int], gone: Iterable[T], new: set[T]) -> set[T]:
    """Count what comes and goes, and return what was not there before, or is not any more."""
    changed = new.difference(counts)
    for address in new - changed:
        counts[address] += 1
    counts.update(dict.fromkeys(changed, 1))
    for address in gone:
        counts[address] -= 1
        if not counts[address]:
            del counts[address]
            changed.add(address)
    return changed
