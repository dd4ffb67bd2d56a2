"""The host that this process runs on, as `kernel.kernel` needs it. Belongs to the loop's thread."""

from contextlib import closing

from ipvsproxy.config import Config
from ipvsproxy.kernel import host
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.leftovers import Leftovers
from ipvsproxy.kernel.listeners import Listeners
from ipvsproxy.kernel.local_ports import LocalPorts
from ipvsproxy.plan.host_ports import Port
from nft import Client


class ThisHost:
    """Implements `kernel.Host` with the settings of a configuration. Raises KernelError when it has no sockets."""

    def __init__(self, config: Config, ipvs: Ipvs, nft: Client) -> None:
        self._config = config
        self._ipvs = ipvs
        self._local_ports = LocalPorts(config.node_port_range)
        self._listeners = Listeners()
        self._leftovers = Leftovers(nft)
        self._ipv6 = host.Ipv6Forwarding()

    def make_settings(self) -> None:
        """Make the kernel settings. Raises SysctlError, KernelError."""
        host.prepare(self._config, self._ipvs)

    def keep_settings(self) -> None:
        """Put back the settings that others have changed."""
        host.keep(self._config)

    def reserve_ports(self) -> None:
        """Reserve the NodePorts."""
        self._local_ports.reserve()

    def listening(self) -> frozenset[Port]:
        """Return the ports on which programs listen. Raises KernelError."""
        return self._listeners.ports()

    def has_scheduler(self, name: str) -> bool:
        """Whether IPVS has a scheduler, once its module has been loaded; for any thread. Raises KernelError."""
        host.load_module(f"ip_vs_{name}")
        with closing(Ipvs()) as own:
            return own.has(name)

    def nameservers(self) -> frozenset[bytes]:
        """Return the addresses of the DNS servers."""
        return host.nameservers()

    def check_ipv6(self, *, is_needed: bool) -> None:
        """Warn when IPv6 is not forwarded."""
        self._ipv6.look(is_needed=is_needed)

    def take_over(self) -> str:
        """Remove what a kube-proxy has left, or return which one is at work."""
        return self._leftovers.remove_once_then_watch()
