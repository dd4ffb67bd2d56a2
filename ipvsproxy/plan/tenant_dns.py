"""DNS by tenant: who asks the cluster's DNS Service is answered by that of the own tenant.

A view of each frontend of the cluster's DNS Service for each tenant with a DNS Service of its own: the pods of the
tenant are led to the frontend of that Service in the same family, with the same protocol and port. In: the
frontends of the cluster's DNS, the DNS Services of tenants with their groups, and all wanted frontends.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec.structs import replace

from ipvsproxy.base.address import family
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.state import Destination, Frontend, FrontendKey, View


def with_views(
    frontends: Mapping[FrontendKey, Frontend],
    servers: Mapping[int, Service],
    wanted: Mapping[FrontendKey, Frontend],
    *,
    falls_back: bool,
) -> dict[FrontendKey, Frontend]:
    """Return the frontends of the cluster's DNS with the views of tenants.

    `servers` are DNS Services by the groups of their tenants. With `falls_back` one without an endpoint has no
    view, and the cluster's DNS answers. Otherwise such questions are refused.
    """
    found = {}
    for key, frontend in frontends.items():
        views, serving = list(frontend.views), set(frontend.serving)
        for group, server in _frontends(key, servers, wanted):
            if server.destinations or not falls_back:
                views.append(View(group, server.key))
                serving.update(server.serving)
        found[key] = replace(frontend, views=tuple(views), serving=_sorted(serving))
    return found


def _frontends(
    key: FrontendKey, servers: Mapping[int, Service], wanted: Mapping[FrontendKey, Frontend]
) -> Iterator[tuple[int, Frontend]]:
    """Yield the frontend that takes the place of another one, for each group."""
    for group, service in sorted(servers.items()):
        for address in service.cluster_ips:
            frontend = wanted.get(FrontendKey(address, key.protocol, key.port))
            if frontend is not None and family(address) == family(key.address):
                yield group, frontend


def _sorted(serving: Iterable[Destination]) -> tuple[Destination, ...]:
    return tuple(sorted(serving))
