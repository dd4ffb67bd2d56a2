"""The objects as they are now, and which Services have changed since the last look.

Owned by the loop's thread. In: events of the inbox. Out: keys of dirty Services. An event that brings an equal
object changes nothing. There is no order between Services and slices (contract 2): a slice waits for its
Service, a Service without slices has no endpoints.
"""

from collections.abc import Iterable, Iterator, Mapping

import structlog

from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Object, Removed, kinds
from ipvsproxy.plan.addresses import Addresses, OtherNodeAddresses
from ipvsproxy.plan.host_ports import HostPorts
from ipvsproxy.plan.model import EndpointSlice, Namespace, Node, Pod, Service
from ipvsproxy.plan.tenants import Tenants

SERVICE, ENDPOINT_SLICE, NODE = Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE

log = structlog.get_logger()


class Store:
    """Services, slices by Service, and the one Node that is ours.

    `dns_of_tenants` are Services that are the DNS of their tenants.
    `other_nodes` are those that a folder of manifests describes as well; the API server is asked for ours alone.
    """

    def __init__(
        self,
        node_name: str,
        *,
        awaits_neighbours: bool = False,
        tenant_label: str = "",
        always_shared: Iterable[str] = (),
        all_pods: bool = False,
    ) -> None:
        self.services: dict[str, Service] = {}
        self.node: Node | None = None
        self.node_changed = False
        self.other_nodes: dict[str, Node] = {}
        self.addresses = Addresses()
        self.host_ports = HostPorts()
        self.tenants = Tenants(tenant_label, node_name, always_shared, all_pods=all_pods)
        self.has_tenants = bool(tenant_label)
        self._kinds = frozenset(kinds(tenants=bool(tenant_label)))
        # Only where there are tenants: Services by namespace, and by a tenant that they are shared with.
        self._in_namespace: dict[str, dict[str, None]] = {}
        self._sharing: dict[str, dict[str, None]] = {}
        self.dns_of_tenants: dict[str, None] = {}
        # Slices by the addresses that they name.
        self._naming: dict[bytes, dict[str, None]] = {}
        self._awaits_neighbours = awaits_neighbours
        self._node_name = node_name
        self._slices: dict[str, EndpointSlice] = {}
        self._slices_of: dict[str, dict[str, EndpointSlice]] = {}
        self._dirty: dict[str, None] = {}
        self._listed: set[Kind] = set()
        self._refused: set[Kind] = set()
        self._is_listed = False

    @property
    def synced(self) -> bool:
        """Whether each kind has been listed once: nothing is programmed before (contract 4.1)."""
        return self._is_listed and not self._awaits_neighbours

    @property
    def refused(self) -> frozenset[Kind]:
        """The kinds that could not be listed yet since the API server refuses the right to."""
        return frozenset(self._refused - self._listed)

    @property
    def lacks_rights_only(self) -> bool:
        """Whether everything has been listed once but what the API server refuses."""
        return not self._awaits_neighbours and bool(self.refused) and self._kinds <= self._listed | self._refused

    def right_refused(self, kind: Kind) -> None:
        """Record that the API server refuses the right to list a kind."""
        self._refused.add(kind)

    @property
    def lacks_other_nodes_only(self) -> bool:
        """Whether everything has been listed once, or is refused, but the addresses of other nodes."""
        return self._kinds <= self._listed | self._refused and self._awaits_neighbours

    def apply(self, event: Listed | Changed | Removed) -> bool:
        """Record what an event reports and tell whether anything is different now."""
        match event:
            case Changed(kind, key, value):
                return self._set(kind, key, value)
            case Listed(kind, objects, kept):
                self._listed.add(kind)
                self._is_listed = self._kinds <= self._listed
                return self._replace_all(kind, objects, kept)
            case Removed(kind, key):
                return self._set(kind, key, None)

    def neighbours(self, seen: OtherNodeAddresses) -> None:
        """Record what a look at the Nodes of the cluster has found.

        Nothing is programmed before the first look, unless it fails where all else could be listed.
        """
        if seen.nodes is not None or self._kinds <= self._listed | self._refused:
            self._awaits_neighbours = False
        self.mark(self.addresses.neighbours(seen))

    def slices(self, service: str) -> list[EndpointSlice]:
        """Return the slices of a Service in the order of their names."""
        found = self._slices_of.get(service, {})
        return [found[key] for key in sorted(found)] if len(found) > 1 else list(found.values())

    def nodes_of_endpoints(self) -> set[str]:
        """Return the names of all nodes that endpoints are on."""
        pieces = self._slices.values()
        return {end.node for piece in pieces for end in piece.endpoints if end.node}

    def count_endpoints(self, service: str) -> int:
        """Return the number of endpoints in all slices of a Service, of all conditions."""
        count = 0
        for piece in self._slices_of.get(service, {}).values():
            count += len(piece.endpoints)
        return count

    @property
    def dirty(self) -> int:
        """The number of Services to look at."""
        return len(self._dirty)

    def take_dirty(self) -> list[str]:
        """Return the Services to look at, in the order in which they changed, and forget them."""
        dirty, self._dirty = self._dirty, {}
        return list(dirty)

    def mark(self, services: Iterable[str]) -> None:
        """Mark some Services, after a change of something they depend on. A set has no order of its own."""
        for service in sorted(services):
            self._dirty[service] = None

    def all_dirty(self) -> None:
        """Mark every Service, after a change of something they all depend on."""
        self._dirty.update(dict.fromkeys(self.services))

    def _replace_all(self, kind: Kind, objects: Mapping[str, Object], kept: frozenset[str]) -> bool:
        changes = [self._set(kind, key, None) for key in sorted(self._keys(kind) - objects.keys() - kept)]
        changes += [self._set(kind, key, value) for key, value in objects.items()]
        return any(changes)

    def _keys(self, kind: Kind) -> set[str]:
        if kind is NODE:
            return {*self.other_nodes, *([self.node.name] if self.node else [])}
        known: dict[Kind, Iterable[str]] = {
            Kind.SERVICE: self.services,
            Kind.ENDPOINT_SLICE: self._slices,
            Kind.NAMESPACE: self.tenants.namespaces,
            Kind.POD: self.tenants.pods,
        }
        return set(known[kind])

    def _set(self, kind: Kind, key: str, value: Object | None) -> bool:
        if kind is NODE:
            return self._set_node(key, value)
        if kind is SERVICE:
            return self._set_service(key, value)
        if kind is ENDPOINT_SLICE:
            return self._set_slice(key, value)
        if not self.has_tenants:
            return False
        if kind is Kind.NAMESPACE:
            return self._set_namespace(key, value)
        return self._set_pod(key, value if isinstance(value, Pod) else None)

    def _set_pod(self, key: str, pod: Pod | None) -> bool:
        """Record a pod; Services that name it become dirty if it is another tenant's now, or was before."""
        affected = self.tenants.addresses_of(key) | set(pod.addresses if pod else ())
        before = set(self._naming_foreign(affected))
        if not self.tenants.set_pod(key, pod):
            return False
        self.mark(service for service, _ in before ^ set(self._naming_foreign(affected)))
        return True

    def _naming_foreign(self, addresses: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
        """Yield the Services of tenants that name one of some addresses which is another tenant's pod."""
        for address in addresses:
            for key in self._naming.get(address, ()):
                service = self._slices[key].service
                if self.tenants.is_foreign(service.partition("/")[0], address):
                    yield service, address

    def _set_namespace(self, name: str, value: Object | None) -> bool:
        """Take a Namespace over; with its tenant, that of its Services changes."""
        tenants = self.tenants.set_namespace(name, value if isinstance(value, Namespace) else None)
        if tenants is None:
            return False
        self._mark_of_namespace(name)
        for tenant in tenants:
            self.mark(self._sharing.get(tenant, ()))
        return True

    def release_groups(self) -> None:
        """Give groups of tenants that are gone to others."""
        for tenant in self.tenants.release_groups():
            self.mark(self._sharing.get(tenant, ()))
            for name in self.tenants.namespaces_of(tenant):
                self._mark_of_namespace(name)

    def _mark_of_namespace(self, name: str) -> None:
        """Mark the Services of a namespace, and those that name its pods."""
        self.mark(self._in_namespace.get(name, ()))
        self._mark_with_endpoints(self.tenants.addresses_in(name))

    def _mark_with_endpoints(self, addresses: Iterable[bytes]) -> None:
        """Mark the Services that have one of some addresses among their endpoints."""
        for address in addresses:
            self.mark(self._slices[key].service for key in self._naming.get(address, ()))

    def _set_node(self, key: str, value: Object | None) -> bool:
        """Take a Node over; ours keeps its last version when it is deleted, until it is back (contract 1.11)."""
        node = value if isinstance(value, Node) else None
        if key != self._node_name:
            affected = self.addresses.other_node(self.other_nodes.pop(key, None), node)
            if node is not None:
                self.other_nodes[key] = node
            self.mark(affected)
            return bool(affected)
        if node == self.node:
            return False
        if node is None:
            log.warning("Node object was deleted, keeping its last known version", node=key)
            return False
        self.mark(self.addresses.own_node(self.node, node))
        self.node = node
        self.node_changed = True
        return True

    def _set_service(self, key: str, value: Object | None) -> bool:
        old = self.services.get(key)
        if value == old:
            return False
        new = value if isinstance(value, Service) else None
        if new is not None:
            self.services[key] = new
        else:
            del self.services[key]
        self._dirty[key] = None
        if self.has_tenants:
            self._index(key, old, new)
        if affected := self.host_ports.service(key, old, new) | self.addresses.service(key, old, new):
            self.mark(affected)
        return True

    def _index(self, key: str, old: Service | None, new: Service | None) -> None:
        """Find the Service again by what its tenants follow from."""
        for service in filter(None, (old, new)):
            entries = [(self._in_namespace, service.namespace)]
            entries += [(self._sharing, tenant) for tenant in service.share_with]
            for index, name in entries:
                _enter(index, name, key, is_there=service is new)
            if service is new and service.tenant_dns:
                self.dns_of_tenants[key] = None
            else:
                self.dns_of_tenants.pop(key, None)

    def _index_slice(self, key: str, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        for end in old.endpoints if old else ():
            if (keys := self._naming.get(end.address)) is not None:
                keys.pop(key, None)
                if not keys:
                    del self._naming[end.address]
        for end in new.endpoints if new else ():
            self._naming.setdefault(end.address, {})[key] = None

    def _set_slice(self, key: str, value: Object | None) -> bool:
        old = self._slices.get(key)
        if value == old:
            return False
        new = value if isinstance(value, EndpointSlice) else None
        if affected := self.addresses.slice(old, new):
            self.mark(affected)
        if self.has_tenants:
            self._index_slice(key, old, new)
        if isinstance(value, EndpointSlice):
            self._slices[key] = value
            self._slices_of.setdefault(value.service, {})[key] = value
            self._dirty[value.service] = None
            if old is not None and old.service != value.service:
                self._unlink(key, old.service)
        elif old is not None:
            del self._slices[key]
            self._unlink(key, old.service)
        return True

    def _unlink(self, key: str, service: str) -> None:
        siblings = self._slices_of[service]
        del siblings[key]
        if not siblings:
            del self._slices_of[service]
        self._dirty[service] = None


def _enter(index: dict[str, dict[str, None]], name: str, key: str, *, is_there: bool) -> None:
    """Put a Service into an index, or take it out; names without any are forgotten, since users choose them."""
    found = index.setdefault(name, {})
    if is_there:
        found[key] = None
    else:
        found.pop(key, None)
    if not found:
        del index[name]
