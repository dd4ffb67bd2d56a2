"""The node as the planner needs it: its Node object, its addresses, and what reaches the API server.

In: the objects (`kube.store`), and what the kernel reports of addresses and links. Out: `NodeFacts`, and what the
report and the log are to know of them. Belongs to the loop's thread.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

import structlog

from ipvsproxy.base import messages
from ipvsproxy.config import Config
from ipvsproxy.exchange.report import Report
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.local import listen_addresses
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.node import Missing, NodeFacts, Reserved, blindness, facts, missing
from ipvsproxy.plan.rules import detector_elements, sender_elements
from ipvsproxy.ruleset.elements import ElementKey, Value

API_SERVER = "default/kubernetes"
API_SERVER_ROLE = "the API server"
DELETED = "Node is about to be deleted"

log = structlog.get_logger()


def log_missing(absent: Missing) -> None:
    """Log that our Node was not found."""
    log.warning(messages.NODE_MISSING, effect=absent.effect, **absent.summary())


class NodeState:
    """The facts of the node as they were last seen. `on_missing` is called once while our Node is not there."""

    def __init__(
        self, config: Config, report: Report, store: Store, on_missing: Callable[[Missing], None] = log_missing
    ) -> None:
        self.facts = NodeFacts(config.node_name)
        self.missing: Missing | None = None
        self._config = config
        self._report = report
        self._store = store
        self._on_missing = on_missing
        self._api_servers: tuple[Reserved, ...] = ()
        # What the last look has used.
        self._used: tuple[Node | None, tuple[Reserved, ...]] = (None, ())

    @property
    def has_changed(self) -> bool:
        """Whether the Node object or the addresses of the API server are others than at the last look."""
        node, servers = self._used
        return node is not self._store.node or servers is not self._api_servers

    def api_servers(self, servers: Iterable[tuple[bytes, int]]) -> None:
        """Record by which addresses and ports we reach the API server."""
        self._api_servers = tuple(Reserved(address, API_SERVER_ROLE, port) for address, port in servers)

    def follow_ports(self) -> None:
        """Record which ports programs of this node have."""
        ports = self._store.host_ports.in_use
        if self.facts.ports_in_use is not ports:
            self.facts = replace(self.facts, ports_in_use=ports)

    def look(
        self, link_addresses: Iterable[bytes], reserved: Iterable[Reserved], senders: Mapping[str, bytes] | None
    ) -> bool:
        """Find the facts again and return whether they have changed."""
        node, servers = self._store.node, self._api_servers
        reserved = (*reserved, *servers, *self._api_endpoints())
        new = facts(self._config, node, link_addresses, reserved, senders, self._store.host_ports.in_use)
        self._used = node, servers
        # A folder of manifests need not describe the node, and no load balancer asks there.
        eligible = node.eligible if node else self._config.manifests is not None
        self._look_for_node(new)
        reason = str(self.missing) if self.missing else "" if eligible else DELETED
        self._report.node(eligible=eligible, listen=listen_addresses(self._config, new), reason=reason)
        changed, self.facts = new != self.facts, new
        return changed

    def log(self) -> None:
        """Log the facts, and what is left out of them."""
        log.info(messages.NODE_FACTS, **self.facts.summary())
        if reason := blindness(self._config, self.facts):
            log.warning(reason)

    def elements(self) -> dict[ElementKey, Value]:
        """Return the elements that depend on the node alone."""
        senders = dict(sender_elements(self.facts.senders)) if self._config.suppress_vip_arp else {}
        return {**dict(detector_elements(self.facts.pod_cidrs, self.facts.pod_interfaces)), **senders}

    def _look_for_node(self, found: NodeFacts) -> None:
        """Report once that our Node is not there: what depends on it is not served, and nothing else tells.

        A folder of manifests need not describe it, where that tells of no node or has endpoints on it.
        """
        store = self._store
        if store.node is not None:
            self.missing = None
        elif self.missing is None:
            names = store.nodes_of_endpoints()
            absent = missing(found.name, store.other_nodes.values(), names, found.link_addresses)
            if self._config.manifests is None or (absent.others and absent.name not in absent.others):
                self.missing = absent
                self._on_missing(absent)

    def _api_endpoints(self) -> Iterator[Reserved]:
        for piece in self._store.slices(API_SERVER):
            for endpoint in piece.endpoints:
                for port in piece.ports:
                    yield Reserved(endpoint.address, API_SERVER_ROLE, port.port)
