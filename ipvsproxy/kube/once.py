"""All objects as they are now, read once: what a command looks at that follows nothing.

In: the settings (a folder of manifests, or a way to the API). Out: `kube.objects.Objects`.
"""

import http
from collections.abc import Iterable, Iterator
from contextlib import suppress

import msgspec

from ipvsproxy.config import Config, TenantPods
from ipvsproxy.exchange.inbox import Kind, kinds
from ipvsproxy.kube.api import PAGE_SIZE, RequestFailed, Transport, failure_of, read_page
from ipvsproxy.kube.kubeconfig import KubeconfigError
from ipvsproxy.kube.locate import locate
from ipvsproxy.kube.objects import Objects, Unavailable
from ipvsproxy.kube.other_nodes import NodeClient as NodeLists
from ipvsproxy.kube.other_nodes import look
from ipvsproxy.kube.rights import explained
from ipvsproxy.kube.saved import read_folder
from ipvsproxy.plan.addresses import OtherNodeAddresses

__all__ = ["Objects", "Unavailable", "read_objects"]
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0


def read_objects(config: Config) -> Objects:
    """Read all objects. Raises Unavailable."""
    wanted = kinds(tenants=bool(config.tenant_label))
    return read_folder(config.manifests, wanted) if config.manifests is not None else _from_api(config, wanted)


def _from_api(config: Config, wanted: Iterable[Kind]) -> Objects:
    # Imported here: a folder needs none of it, and it takes a third of a second.
    from ipvsproxy.kube.client import ClientLimits, KubeClient

    client = KubeClient(
        config.kubeconfig,
        config.master,
        config.node_name,
        ClientLimits(CONNECT_SECONDS, READ_SECONDS),
        all_pods=config.tenant_pods is TenantPods.ALL,
    )
    found = Objects("the API server", wanted)
    try:
        client.connect()
        # A host that cannot be found, in the words of the connection.
        with suppress(OSError, ValueError):
            found.servers = locate(client.url())
        for kind in found.kinds:
            _add(client, kind, found)
        found.neighbours = _neighbours(client, config.node_name)
    except (RequestFailed, KubeconfigError) as error:
        raise Unavailable(str(error)) from None
    finally:
        client.close()
    return found


def _add(client: Transport, kind: Kind, found: Objects) -> None:
    """Add all objects of a kind. Raises Unavailable, which names a right that is lacking."""
    try:
        for raw in _pages(client, kind):
            found.add(kind, raw)
    except RequestFailed as error:
        raise Unavailable(explained(kind, error)) from None


def _neighbours(transport: NodeLists, node_name: str) -> OtherNodeAddresses:
    """Return what can be read of other nodes: without the right to list them, none."""
    try:
        seen = look(transport, node_name)
    except RequestFailed:
        return OtherNodeAddresses(None)
    return OtherNodeAddresses(seen.nodes, seen.pod_cidrs)


def _pages(transport: Transport, kind: Kind) -> Iterator[msgspec.Raw]:
    token: str | None = ""
    while token is not None:
        answer = transport.list(kind, PAGE_SIZE, token, "")
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise failure_of(answer.status, body, answer.headers)
        page = read_page(kind, body)
        yield from page.items or ()
        token = page.metadata.continue_ or None
