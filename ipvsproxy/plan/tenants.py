"""Which tenant a namespace belongs to, which group of sources an address is in, and who may connect to a Service.

A tenant is the value of a label of Namespaces. Each tenant is a group of sources of its own (`ruleset.schema`),
whose members are the addresses of its pods on this node. Pods of namespaces without the label are in the group
SHARED_GROUP, which may connect to everything; Services there are open to all. Where something is not known, the
safe side is taken: a namespace that has not been read shares nothing, and an address that is not known for certain
(no namespace yet, two pods that claim it) is in no group.

A pod that changes its group leaves the old one at once, and joins the new one when all Services that depend on the
change have been programmed: no moment has some of the old and some of the new. A pod that starts joins at once,
unless the kernel lets its group in where it may not connect any more. Deterministic: no I/O, no clock.
"""

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from typing import TypeVar

from msgspec.structs import replace

from ipvsproxy.config.annotation_values import EVERY_TENANT
from ipvsproxy.plan.group_numbers import GroupNumbers
from ipvsproxy.plan.model import EndpointSlice, Namespace, Pod, Service
from ipvsproxy.plan.other_pods import OtherPods
from ipvsproxy.ruleset.schema import SHARED_GROUP

SHARED = ""
"""The tenant of namespaces that have none."""

IndexName = TypeVar("IndexName")


class Tenants:
    """Namespaces, pods of this node, and the groups that follow. `label` is empty where there are no tenants.

    `always_shared` are Services (`namespace/name`) that are open to all as long as their namespace is not known.
    With `all_pods` those of other nodes are known as well; they are in no group.
    """

    def __init__(
        self, label: str, node_name: str, always_shared: Iterable[str] = (), *, all_pods: bool = False
    ) -> None:
        self.label = label
        self._always_shared = frozenset(always_shared)
        self.members: dict[bytes, int] = {}
        self._node_name = node_name
        self._all_pods = all_pods
        self._tenants: dict[str, str] = {}
        self._spaces: dict[str, dict[str, None]] = {}
        self._groups = GroupNumbers(has_tenants=bool(label))
        self._pods: dict[str, Pod] = {}
        self._other_pods = OtherPods()
        self._pods_at: dict[bytes, dict[str, None]] = {}
        self._pods_in: dict[str, dict[str, None]] = {}
        # Namespaces whose Services are not all programmed since they changed their tenant.
        self._moving: set[str] = set()
        self._unsettled: dict[bytes, None] = {}
        # Of these, addresses that the kernel alone keeps waiting: it is behind with their group.
        self._waiting: set[bytes] = set()
        self._delayed: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self.label)

    # What there is.

    def tenant(self, namespace: str) -> str | None:
        """Return the tenant of a namespace, SHARED for none, None where the namespace is not known."""
        return self._tenants.get(namespace)

    def group(self, tenant: str) -> int | None:
        """Return the group of a tenant, None where no namespace has it."""
        return SHARED_GROUP if tenant == SHARED else self._groups.get(tenant)

    def names(self) -> dict[int, str]:
        """Return the tenants by their groups; for any thread."""
        return self._groups.names()

    def by_namespace(self) -> dict[str, str]:
        """Return the tenants of all known namespaces, SHARED for none; for any thread, as `names`."""
        return self._tenants.copy()

    @property
    def lacks_groups(self) -> bool:
        """Whether there are more tenants than groups; pods of the others are in none."""
        return self._groups.are_lacking

    def admitted(self, service: Service) -> tuple[int, ...] | None:
        """Return the groups that may connect to a Service beside SHARED_GROUP, None if everybody may."""
        if not self.label:
            return None
        owner = self.tenant(service.namespace)
        if owner == SHARED or service.share_with == (EVERY_TENANT,):
            return None
        if owner is None and service.key in self._always_shared:
            return None
        names = (owner, *service.share_with) if owner is not None else ()
        return tuple(sorted({group for name in names if name and (group := self._groups.get(name))}))

    def tenant_at(self, address: bytes) -> str | None:
        """Return the tenant of the pod of this node that has an address, None where it is not known."""
        found = {self.tenant(self._pods[key].namespace) for key in self._pods_at.get(address, ())}
        return found.pop() if len(found) == 1 else None

    def is_pod(self, address: bytes) -> bool:
        """Whether a pod of this node has an address, of whichever tenant."""
        return address in self._pods_at

    def own_endpoints(
        self, service: Service, slices: Sequence[EndpointSlice]
    ) -> tuple[Sequence[EndpointSlice], list[bytes]]:
        """Return the slices of a Service without pods that are another tenant's, and the addresses of these.

        What a shared namespace's slices name is its matter.
        """
        if not self.label or not self.tenant(service.namespace):
            return slices, []
        addresses = (end.address for piece in slices for end in piece.endpoints)
        foreign = {address for address in addresses if self.is_foreign(service.namespace, address)}
        if not foreign:
            return slices, []
        return [_without(piece, foreign) for piece in slices], sorted(foreign)

    def is_foreign(self, namespace: str, address: bytes) -> bool:
        """Whether a namespace has a tenant, and an address is that of another tenant's pod, on any node."""
        owner = self.tenant(namespace)
        if not owner:
            return False
        near = {self._pods[key].namespace for key in self._pods_at.get(address, ())}
        found = {self.tenant(space) for space in near | self._other_pods.namespaces_at(address)}
        return len(found) == 1 and found.isdisjoint((None, SHARED, owner))

    # What changes.

    @property
    def namespaces(self) -> Collection[str]:
        """The names of all namespaces that are known."""
        return self._tenants.keys()

    @property
    def pods(self) -> Collection[str]:
        """`namespace/name` of all pods of this node, and of others that are known."""
        return {*self._pods, *self._other_pods.keys}

    def set_namespace(self, name: str, namespace: Namespace | None) -> tuple[str, ...] | None:
        """Take a Namespace over (None: it is gone); return the tenants that have got or lost a group by that.

        None where the tenant of the namespace is the same as before.
        """
        old = self._tenants.pop(name, None)
        if namespace is not None:
            self._tenants[name] = namespace.labels.get(self.label, SHARED)
        new = self._tenants.get(name)
        if new == old:
            return None
        self._unsettle(name)
        changed = []
        if new:
            self._spaces.setdefault(new, {})[name] = None
            changed += [new] if self._groups.begin(new) else []
        if old:
            _discard(self._spaces, old, name)
            changed += [old] if old not in self._spaces and self._groups.end(old) else []
        return tuple(changed)

    def namespaces_of(self, tenant: str) -> Collection[str]:
        """Return the names of the namespaces of a tenant."""
        return self._spaces.get(tenant, {}).keys()

    def release_groups(self) -> list[str]:
        """Give groups of tenants that are gone to others; return the tenants that have got one by that.

        To be called when the kernel has no element of a tenant that is gone.
        """
        if not self._groups.has_ended:
            return []
        names = self._groups.release(set(self.members.values()))
        for name in names:
            for namespace in self._spaces[name]:
                self._unsettle(namespace)
        return names

    @property
    def has_ended_groups(self) -> bool:
        """Whether groups of tenants that are gone can be given to others once the kernel has nothing of them."""
        return self._groups.has_ended

    def take_changed_groups(self) -> dict[int, bool]:
        """Return the groups that have begun (True) or ended since the last call."""
        return self._groups.take_changed()

    def _unsettle(self, namespace: str) -> None:
        """Have the pods of a namespace wait until its Services are programmed."""
        self._moving.add(namespace)
        for key in self._pods_in.get(namespace, ()):
            self._unsettled.update(dict.fromkeys(self._pods[key].addresses))
            self._waiting.difference_update(self._pods[key].addresses)

    def addresses_in(self, namespace: str) -> set[bytes]:
        """Return the addresses of all pods that are known in a namespace."""
        near = {a for key in self._pods_in.get(namespace, ()) for a in self._pods[key].addresses}
        return near | set(self._other_pods.addresses_in(namespace))

    def set_pod(self, key: str, pod: Pod | None) -> set[bytes]:
        """Record a pod (None: it is gone); return the addresses that this is about."""
        if pod is not None and pod.node != self._node_name:
            return self._set_near(key, None) | self._other_pods.put(key, pod.addresses if self._all_pods else ())
        return self._set_near(key, pod) | self._other_pods.put(key, ())

    def addresses_of(self, key: str) -> set[bytes]:
        """Return the addresses of a pod, none of one that is not known."""
        pod = self._pods.get(key)
        return {*(pod.addresses if pod else ()), *self._other_pods.addresses_of(key)}

    def _set_near(self, key: str, pod: Pod | None) -> set[bytes]:
        old = self._pods.get(key)
        if pod == old:
            return set()
        if old is not None:
            self._forget(key, old)
        if pod is not None:
            self._pods[key] = pod
            self._pods_in.setdefault(pod.namespace, {})[key] = None
            for address in pod.addresses:
                self._pods_at.setdefault(address, {})[key] = None
                self._unsettled[address] = None
        return {address for found in (old, pod) if found for address in found.addresses}

    def _forget(self, key: str, pod: Pod) -> None:
        del self._pods[key]
        _discard(self._pods_in, pod.namespace, key)
        for address in pod.addresses:
            _discard(self._pods_at, address, key)
        self._unsettled.update(dict.fromkeys(pod.addresses))

    # What follows for the groups.

    @property
    def has_leaving(self) -> bool:
        """Whether an address has to leave its group."""
        return any(self.members.get(a, 0) not in (0, self._group_of(a)) for a in self._unsettled)

    def leave(self) -> list[bytes]:
        """Take addresses out of groups that are not theirs any more, and return them."""
        leaving = [a for a in self._unsettled if self.members.get(a, 0) not in (0, self._group_of(a))]
        for address in leaving:
            del self.members[address]
        return leaving

    def can_join(self, *, settled: bool, behind: Container[int] = ()) -> bool:
        """Whether `join` has something to do: also for pods that start later in a namespace that has changed."""
        return (settled and any(self._ready(behind))) or any(
            not self._is_moving(address) and not (address in self._waiting and self._has_to_wait(address, behind))
            for address in self._unsettled
        )

    def take_delayed(self) -> set[bytes]:
        """Return the addresses that had to wait before they joined a group, since the last call."""
        delayed, self._delayed = self._delayed, set()
        return delayed

    @property
    def are_settled(self) -> bool:
        """Whether all addresses are in the groups where they belong, and those of new pods need not wait."""
        return not (self._unsettled or self._moving)

    def is_decided(self, address: bytes, *, planned: bool) -> bool:
        """Whether it is known which connections of an address may go on: `group_at`.

        For one whose namespace has changed its tenant that takes until all Services are `planned`, and no longer:
        the kernel may refuse for ever what keeps it from joining its new group.
        """
        waits = address in self._waiting or (planned and self._is_moving(address))
        return waits or address not in self._unsettled

    def group_at(self, address: bytes) -> int:
        """Return the group that an address is in, or joins once the kernel is not behind with it; 0 for none."""
        if address in self._waiting or self._is_moving(address):
            return self._group_of(address)
        return self.members.get(address, 0)

    def join(self, *, settled: bool, behind: Container[int] = ()) -> dict[bytes, int]:
        """Put addresses into their groups and return them; to be called after `leave`.

        All have to wait until the kernel is not `behind` any more with their group, those of namespaces that have
        changed their tenant also until all Services are `settled`.
        """
        if settled:
            delayed = list(filter(self._is_moving, self._unsettled))
            self._moving.difference_update(list(self._ready(behind)))
            self._delayed.update(address for address in delayed if not self._is_moving(address))
        joining = {}
        for address in list(self._unsettled):
            if self._is_moving(address):
                continue
            if self._has_to_wait(address, behind):
                self._waiting.add(address)
                continue
            self._settle(address)
            group = self._group_of(address)
            if group and address not in self.members:
                joining[address] = group
        self.members |= joining
        return joining

    def _has_to_wait(self, address: bytes, behind: Container[int]) -> bool:
        """Whether an address would join a group that the kernel lets in where it may not connect."""
        return address not in self.members and self._group_of(address) in behind

    def _settle(self, address: bytes) -> None:
        del self._unsettled[address]
        if address in self._waiting:
            self._waiting.remove(address)
            self._delayed.add(address)

    def _ready(self, behind: Container[int]) -> Iterator[str]:
        """Yield the namespaces that have changed and whose new group the kernel is not behind with."""
        for name in self._moving:
            tenant = self._tenants.get(name)
            if tenant is None or self.group(tenant) not in behind:
                yield name

    def _is_moving(self, address: bytes) -> bool:
        keys: Iterable[str] = self._pods_at.get(address, ()) if self._moving else ()
        return any(self._pods[key].namespace in self._moving for key in keys)

    def _group_of(self, address: bytes) -> int:
        """Return the group that an address should be in, 0 for none."""
        tenant = self.tenant_at(address)
        return 0 if tenant is None else self.group(tenant) or 0


def _without(piece: EndpointSlice, addresses: Container[bytes]) -> EndpointSlice:
    return replace(piece, endpoints=tuple(end for end in piece.endpoints if end.address not in addresses))


def _discard(index: dict[IndexName, dict[str, None]], name: IndexName, key: str) -> None:
    """Take a key out of an index, which keeps no empty entries."""
    found = index[name]
    del found[key]
    if not found:
        del index[name]
