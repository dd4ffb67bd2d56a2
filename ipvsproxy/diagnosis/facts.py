"""What a node looks like, as plain values that can be written to a file and judged again elsewhere.

Readers in `kernel`, `kube` and the commands fill it; the checks beside this module read it and nothing else.
What could not be read is None, and `unread` states why. Addresses are text.
"""

import msgspec

from ipvsproxy.base.names import MASQUERADE_BIT
from ipvsproxy.ruleset.filters import FilterChain

IPVS, RULES = "IPVS", "rules"
"""What balances on a node: its virtual servers, or on the short path the ruleset."""


class SettingsFacts(msgspec.Struct, frozen=True):
    """Of the settings of the proxy, those that checks need, and where they come from; `sync_period` in seconds.

    `flags` are those that decide what a node should have.
    """

    node: str = ""
    version: str = ""
    source: str = "the API server"
    cluster_cidrs: tuple[str, ...] = ()
    mark: int = 1 << MASQUERADE_BIT
    scheduler: str = "rr"
    sync_period: float = 30.0
    sysctls: dict[str, int] = {}
    families: tuple[int, ...] = (4, 6)
    origin: str = ""
    flags: dict[str, str] = {}


class KernelFacts(msgspec.Struct, frozen=True):
    """The kernel: modules it has loaded (and can load), sysctls by their path below /proc/sys.

    `unreserved` are the NodePorts that it may give to connections of this node as source ports, as ranges.
    """

    release: str
    loaded: tuple[str, ...] = ()
    loadable: tuple[str, ...] | None = None
    has_ipvs: bool = True
    has_nftables: bool = True
    sysctls: dict[str, int | None] = {}
    pressure: tuple[str, ...] = ()
    unreserved: str = ""


class Link(msgspec.Struct, frozen=True):
    """A link; `master` is its bridge, `hairpin` of a bridge port None when it is none."""

    name: str
    kind: str = ""
    is_up: bool = True
    is_promiscuous: bool = False
    master: str = ""
    hairpin: bool | None = None
    addresses: tuple[str, ...] = ()


class DestinationFacts(msgspec.Struct, frozen=True):
    """A destination of a virtual server."""

    address: str
    port: int
    weight: int = 1
    active: int = 0
    inactive: int = 0

    def __str__(self) -> str:
        return join(self.address, self.port)


class ServerFacts(msgspec.Struct, frozen=True):
    """A virtual server of IPVS, or a frontend on the short path, with its destinations; `protocol` by name."""

    address: str
    protocol: str
    port: int
    scheduler: str = "rr"
    backends: tuple[DestinationFacts, ...] = ()

    @property
    def is_short(self) -> bool:
        """Whether it is on the short path, where no scheduler chooses."""
        return not self.scheduler

    def __str__(self) -> str:
        return f"{join(self.address, self.port)}/{self.protocol}"


class Process(msgspec.Struct, frozen=True):
    """A process in this network namespace that programs Services: its number, its program and its command line."""

    pid: int
    program: str
    command: str = ""


class Proxy(msgspec.Struct, frozen=True):
    """What the running proxy reports on its ports: status 0 and `error` when it does not answer.

    `metrics` has the sums of each metric over its labels, `flags` all flags with their values (none: unknown).
    `read_at` is when, in seconds since 1970.
    """

    health: int = 0
    health_body: str = ""
    error: str = ""
    is_ours: bool = True
    metrics: dict[str, float] | None = None
    flags: dict[str, str] = {}
    read_at: float = 0.0


class Api(msgspec.Struct, frozen=True):
    """The way to the objects: where from, how long it took, how many came; `error` when they did not.

    `named` is whether anything defines where the objects are: a flag, or the environment of a pod. `refused` are
    single objects that cannot be used, `left_out` parts of others, and what is missing.
    """

    source: str
    error: str = ""
    seconds: float = 0.0
    services: int = 0
    slices: int = 0
    refused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    named: bool = True


class DnsAnswer(msgspec.Struct, frozen=True):
    """A DNS answer: addresses, or the canonical name; `error` is empty when the name resolved.

    `asked_from` is address and port of the question; `balanced_here` whether this node had it, None where that is
    unknown, and `by` what of it should have.
    """

    server: str
    name: str
    addresses: tuple[str, ...] = ()
    canonical: str = ""
    error: str = ""
    asked_from: str = ""
    balanced_here: bool | None = None
    by: str = IPVS


class ExternalName(msgspec.Struct, frozen=True):
    """A Service of type ExternalName: what it declares and what DNS reports."""

    service: str
    declared: str
    answer: DnsAnswer


class Dns(msgspec.Struct, frozen=True):
    """What the cluster's DNS Service answers; `service` is empty when there is none."""

    service: str = ""
    expected: tuple[str, ...] = ()
    kubernetes: DnsAnswer | None = None
    external_names: tuple[ExternalName, ...] = ()


class OwnNode(msgspec.Struct, frozen=True):
    """The Node of this host: whether it was found, and if not, what follows and which others there are.

    One of the `likely` ones may be meant.
    """

    name: str
    found: bool = True
    effect: str = ""
    about_to_be_deleted: bool = False
    others: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()


class TenantFacts(msgspec.Struct, frozen=True):
    """Tenants by the objects: how many, of how many namespaces that have one, and addresses of pods of this node.

    `stale_pods` and `stale_services` count addresses and frontends which the kernel has otherwise, None where
    that is not known.
    """

    label: str
    tenants: int = 0
    namespaces: int = 0
    pods: int = 0
    stale_pods: int | None = None
    stale_services: int | None = None


class TenantDns(msgspec.Struct, frozen=True):
    """The DNS Service of a tenant: what it answers for a name of its tenant, and for one of another tenant.

    `expected` and `hidden` are the addresses that the two Services have; `foreign` is None if it was not asked.
    """

    tenant: str
    service: str
    own: DnsAnswer
    expected: tuple[str, ...] = ()
    other: str = ""
    foreign: DnsAnswer | None = None
    hidden: tuple[str, ...] = ()


class KubeProxy(msgspec.Struct, frozen=True):
    """Whether a kube-proxy runs here: what shows that it does (`signs`), and its mode, empty if it is unknown.

    Without `sees_processes`, as in a container, nothing shows that none does.
    """

    signs: tuple[str, ...] = ()
    mode: str = ""
    sees_processes: bool = True


class Facts(msgspec.Struct):
    """A node at one moment; `holder` is the process that holds the lock of ipvsproxy, empty when none does.

    `schedulers` are those that Services ask for themselves.
    """

    settings: SettingsFacts = SettingsFacts()
    host: KernelFacts | None = None
    links: tuple[Link, ...] | None = None
    pod_cidrs: tuple[str, ...] = ()
    chains: tuple[FilterChain, ...] | None = None
    our_rules: dict[str, tuple[str, ...]] = {}
    servers: tuple[ServerFacts, ...] | None = None
    vips: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()
    kube_proxy: KubeProxy = KubeProxy()
    legacy_leftovers: tuple[str, ...] = ()
    proxy: Proxy | None = None
    api: Api | None = None
    node: OwnNode | None = None
    tenants: TenantFacts | None = None
    tenant_dns: tuple[TenantDns, ...] = ()
    schedulers: tuple[str, ...] = ()
    holder: str = ""
    held_vips: dict[str, str] = {}
    drift: tuple[str, ...] | None = None
    dns: Dns | None = None
    unread: dict[str, str] = {}


def join(address: str, port: int) -> str:
    """Return address and port as people write them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def to_json(facts: Facts) -> bytes:
    """Return the facts as JSON, for a file."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=1)


def from_json(data: bytes | str) -> Facts:
    """Return facts from a file. Raises msgspec.DecodeError, msgspec.ValidationError."""
    return msgspec.json.decode(data, type=Facts)
