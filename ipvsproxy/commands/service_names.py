"""The names of Services, which the kernel does not know: from a running proxy, or from the objects themselves.

With --manifests, --kubeconfig or --master they are read from there and planned. Otherwise the proxy of this node
is asked at its metrics address (--metrics-bind-address, /frontends). What is missing is reported, and affects only
the names.
"""

import http.client
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, NamedTuple

import msgspec

from ipvsproxy.base.address import format_endpoint, is_unspecified
from ipvsproxy.base.errors import plain
from ipvsproxy.commands import objects
from ipvsproxy.commands.proxy_pages import ask
from ipvsproxy.config import Config
from ipvsproxy.config.document import ConfigFileError
from ipvsproxy.inspect.group_numbers import same_groups
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.state import FrontendKey
from ipvsproxy.plan.tenants import SHARED
from ipvsproxy.probe.web import LARGEST
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.schema import SHARED_GROUP

PAGE = "/frontends"
UNKNOWN = "names of Services are unknown"
SIMILAR = 5
NO_TENANT = "no tenant"


QualifiedName = Annotated[str, msgspec.Meta(pattern=r"^[-A-Za-z0-9._]{1,253}/[-A-Za-z0-9._]{1,253}$")]
NamespaceName = Annotated[str, msgspec.Meta(pattern=r"^[-A-Za-z0-9._]{1,253}$")]
Tenant = Annotated[str, msgspec.Meta(pattern=r"^[-A-Za-z0-9._]{1,63}$")]
NoneOrTenant = Annotated[str, msgspec.Meta(pattern=r"^[-A-Za-z0-9._]{0,63}$")]


class _Page(msgspec.Struct):
    frontends: dict[str, QualifiedName]
    maintenance: dict[str, list[str]] = {}
    tenants: dict[str, Tenant] = {}
    tenantsOfNamespaces: dict[NamespaceName, NoneOrTenant] = {}  # noqa: N815 - as in the page
    pathReasons: dict[str, str] = {}  # noqa: N815 - as in the page


_FRONTENDS = msgspec.json.Decoder(_Page)


class Names(NamedTuple):
    """Services by their frontends, as `namespace/name`; `problem` states why there are none, empty if there are.

    `maintenance` are, by frontend, the endpoints that are wanted with weight 0, `tenants` are names by groups,
    `tenants_of_namespaces` (of Services) by namespaces, empty for none; `path_reasons` state why frontends
    are not on the short path that were to be.
    """

    services: Mapping[str, str]
    problem: str = ""
    maintenance: Mapping[str, Sequence[str]] = MappingProxyType({})
    path_reasons: Mapping[str, str] = MappingProxyType({})
    tenants: Mapping[str, str] = MappingProxyType({})
    tenants_of_namespaces: Mapping[str, str] = MappingProxyType({})

    @property
    def has_tenants(self) -> bool:
        """Whether there are tenants at all, as far as names are known."""
        return bool(self.tenants or self.tenants_of_namespaces)

    def owner(self, key: FrontendKey) -> str | None:
        """Return the tenant of the Service that has a frontend, SHARED for none, None where it is not known."""
        return self.tenants_of_namespaces.get(self.of(key).partition("/")[0])

    def sender(self, group: int) -> str:
        """Return the tenant of a group of sources, SHARED for none, the number of the group if it is not known."""
        return SHARED if group == SHARED_GROUP else self.tenants.get(str(group), f"group {group}")

    def tenant(self, group: int) -> str:
        """Return the tenant of a group of sources, or the number of the group if it is not known."""
        return self.sender(group) or NO_TENANT

    def of(self, key: FrontendKey) -> str:
        """Return the Service that has a frontend, empty if it is not known."""
        return self.services.get(str(key), "")

    def in_maintenance(self, key: FrontendKey) -> Sequence[str]:
        """Return the endpoints of a frontend that are wanted with weight 0."""
        return self.maintenance.get(str(key), ())


def names(config: Config, view: KernelReader) -> Names:
    """Return all names that can be had. Raises Failed when the objects asked for cannot be read."""
    if not objects.are_named(config):
        return _of_running(config)
    wanted = objects.desired_here(config, objects.read(config), view)
    maintenance = {str(key): [*map(str, found)] for key, found in wanted.in_maintenance().items()}
    reasons = {str(key): reason for key, reason in wanted.path_reasons().items()}
    owners = {str(key): wanted.owner(key) for key in wanted.frontends}
    return Names(
        owners,
        maintenance=maintenance,
        tenants=_tenants(wanted, view),
        tenants_of_namespaces=wanted.tenants.by_namespace(),
        path_reasons=reasons,
    )


def _tenants(wanted: WantedState, view: KernelReader) -> dict[str, str]:
    """Return the tenants of the groups that the kernel has."""
    known = wanted.tenants.names()
    if not known or not view.has_table():
        return {}
    same = same_groups(view.all_elements(), wanted.elements)
    return {str(group): known[number] for group, number in same.items() if number in known}


def _of_running(config: Config) -> Names:
    listen = config.metrics_bind_address
    if listen is None:
        return Names({}, f"{UNKNOWN}: the proxy serves no metrics; use --manifests or --kubeconfig")
    address = listen.address
    if is_unspecified(address):
        address = b"\x7f\0\0\1" if len(address) == 4 else bytes(15) + b"\1"
    url = f"http://{format_endpoint(address, listen.port)}{PAGE}"
    try:
        page = _FRONTENDS.decode(ask(listen, PAGE, LARGEST))
        return Names(
            page.frontends,
            maintenance=page.maintenance,
            tenants=page.tenants,
            tenants_of_namespaces=page.tenantsOfNamespaces,
            path_reasons=page.pathReasons,
        )
    except (msgspec.DecodeError, RecursionError) as error:
        reason: object = f"is no list of frontends: {error}"
    except (ConfigFileError, OSError, http.client.HTTPException) as error:
        reason = plain(error)
    return Names({}, f"{UNKNOWN}: no proxy answers at {url} ({reason}); use --manifests or --kubeconfig")


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return Services that may be meant by a name that none has: that name in another namespace comes first."""
    word = _bare(name)
    every = sorted(set(known))
    close = set(get_close_matches(word, {_bare(key) for key in every}, SIMILAR))
    found = [key for key in every if word and (_bare(key) in close or word in _bare(key))]
    return sorted(found, key=lambda key: (_bare(key) != word, _bare(key) not in close))[:SIMILAR]


def _bare(name: str) -> str:
    return name.rpartition("/")[2]
