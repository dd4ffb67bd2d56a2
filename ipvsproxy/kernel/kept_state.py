"""What ipvsproxy has left on a node goes on serving until a kube-proxy has programmed it.

A kube-proxy in mode nftables begins by taking all virtual servers and kube-ipvs0 away (contract 1.15), long before
it has rules of its own. The servers go just before the link, so the link tells. Until they are put back, new
connections wait (nft/rulesets/handover.nft), and open ones too: IPVS finds a destination again that was deleted
shortly before (ip_vs_trash_get_dest), as long as it need not forget connections of such (expire_nodest_conn).
"""

import contextlib
from collections.abc import Collection, Iterator
from typing import Self

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.base import messages
from ipvsproxy.base.address import family
from ipvsproxy.base.frontend import EVERY_PORT
from ipvsproxy.kernel import host
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.local_ports import record, recorded
from ipvsproxy.kernel.own_source import prefer_own_sources
from ipvsproxy.kernel.scripts import script
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.plan.diff import IpvsStep, creation
from ipvsproxy.plan.state import FrontendKey
from ipvsproxy.ruleset.codec import owner_text
from nft import Libnftables, NftError, Transaction

HANDOVER = "handover"
HELD = ("held4", "held6", "held_vips4", "held_vips6")
FORGET = "net/ipv4/vs/expire_nodest_conn"

log = structlog.get_logger()


class KeptState:
    """Servers, VIPs and kube-ipvs0 as they were, to be put back."""

    def __init__(self) -> None:
        """Read them. Raises KernelError."""
        self._ipvs, self._links = Ipvs(), Links()
        self._links.look()
        self._servers = self._ipvs.observe()
        self._vips = self._links.vips()
        self._ports = recorded()
        self._forgets = host.read_sysctl(FORGET)

    @classmethod
    def secured(cls) -> Self:
        """Read them, once VIPs do not depend on kube-ipvs0, and have new connections wait while servers are gone.

        What cannot be done of the latter is logged. Raises KernelError.
        """
        problems = prefer_own_sources()
        kept = cls()
        try:
            host.set_sysctl(FORGET, 0)
            Libnftables().run(dropping(kept._servers))
        except (NftError, host.SysctlError) as error:
            problems.append(str(error))
        if problems:
            log.warning(messages.HANDOVER_NOT_SECURED, err="; ".join(problems))
        return kept

    def put_back(self) -> bool:
        """Put all back if it has been taken away, and tell whether it had been. Raises KernelError.

        The link comes behind the servers: where this ends in between, it is begun again.
        """
        if self._links.look():
            return False
        with self._held():
            refused = self._ipvs.apply(list(self._steps()))
        self._links.ensure_link()
        self._links.bind(sorted(self._vips - self._links.vips()))
        with contextlib.suppress(ValueError, NetlinkError):  # the ports stay reserved
            record(self._ports)
        log.info(messages.PUT_BACK, servers=len(self._servers), refused=len(refused))
        return True

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Have new connections wait before IPVS: a server that has no destination yet refuses them."""
        holding, over = Transaction(TABLE), Transaction(TABLE)
        holding.add_elements(_elements("held", self._servers))
        over.flush_sets(HELD)
        with contextlib.suppress(NftError):  # where the script could not be loaded
            Libnftables().run(holding)
        try:
            yield
        finally:
            with contextlib.suppress(NftError):
                Libnftables().run(over)

    def release(self) -> None:
        """Have IPVS forget connections again as before."""
        if self._forgets is not None:
            with contextlib.suppress(host.SysctlError):  # then it could not be changed before either
                host.set_sysctl(FORGET, self._forgets)

    def _steps(self) -> Iterator[IpvsStep]:
        for key, state in self._servers.items():
            yield from creation(key, state.server, state.destinations)


def dropping(keys: Collection[FrontendKey]) -> Transaction:
    """Return the transaction that has new connections to these wait while IPVS does not serve them.

    One that was killed while it put servers back may have left some that wait for nothing.
    """
    transaction = Transaction(TABLE)
    transaction.load(script(HANDOVER))
    transaction.flush_sets(HELD)
    transaction.add_elements(_elements("kept", keys))
    return transaction


def _elements(name: str, keys: Collection[FrontendKey]) -> Iterator[tuple[str, str, str]]:
    """Yield the elements of the sets of a name for servers, those for all ports of an address included."""
    for key in keys:
        if key.port == EVERY_PORT:
            vip, _, _ = owner_text(key).rpartition(" . ")
            yield f"{name}_vips{family(key.address)}", vip, ""
        else:
            yield f"{name}{family(key.address)}", owner_text(key), ""
