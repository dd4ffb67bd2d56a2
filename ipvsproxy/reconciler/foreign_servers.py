"""Virtual servers that other programs have made and that we remove: each is named, and is an Event if it returns.

Every server that no Service asks for goes, as with kube-proxy, but those inside --ipvs-exclude-cidrs (contract
4.7): a proxy cannot tell what another program has made from what is left of a Service that went while no proxy
ran. So the log names the server and the setting that keeps it. Belongs to the loop's thread.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip
from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import FrontendKey, ServerState

MOST_REMEMBERED = 1000

log = structlog.get_logger()


class Foreign(NamedTuple):
    """A server that we have not made, and its scheduler."""

    key: FrontendKey
    scheduler: str

    @property
    def remedy(self) -> str:
        """The setting that leaves it alone."""
        bits = len(self.key.address) * 8
        return f"--ipvs-exclude-cidrs={format_ip(self.key.address)}/{bits} (ipvs.excludeCIDRs)"


class ForeignServers:
    """Those of one node. What is `found` is not as we have left it; what of it is removed next was foreign."""

    def __init__(self, report: Report, node: str) -> None:
        self._report = report
        self._node = node
        self._found: set[FrontendKey] = set()
        self._times: dict[FrontendKey, int] = {}

    def found(self, keys: Iterable[FrontendKey]) -> None:
        """Take note of servers that the kernel had otherwise than we had left them."""
        self._found.update(keys)

    def among(self, steps: Iterable[IpvsStep], servers: Mapping[FrontendKey, ServerState]) -> list[Foreign]:
        """Return those that these steps remove; what else was found is wanted, or has been put right."""
        if not self._found:
            return []
        found, self._found = self._found, set()
        deleted = (step.key for step in steps if step.verb is Verb.DEL_SERVICE and step.key in found)
        return [Foreign(key, servers[key].server.scheduler) for key in deleted]

    def removed(self, foreign: Iterable[Foreign], failed: Collection[FrontendKey]) -> None:
        """Say what has gone, and wait for the next attempt with what has not."""
        gone = [server for server in foreign if server.key not in failed]
        self._found.update(server.key for server in foreign if server.key in failed)
        for server in sorted(gone)[:LOGGED_AT_ONCE]:
            self._log_removed(server)
        if len(gone) > LOGGED_AT_ONCE:
            log.warning("Removed more virtual servers that no Service asks for", count=len(gone) - LOGGED_AT_ONCE)

    def _log_removed(self, server: Foreign) -> None:
        key = server.key
        if len(self._times) > MOST_REMEMBERED:
            self._times.clear()
        self._times[key] = times = self._times.get(key, 0) + 1
        log.warning(
            messages.FOREIGN_REMOVED,
            address=format_ip(key.address), port=key.port, protocol=Protocol(key.protocol).name,
            scheduler=server.scheduler, times=times, keptBy=server.remedy,
        )  # fmt: skip
        if times > 1:
            self._report.foreign_server(
                self._node,
                f"virtual server {key} (scheduler {server.scheduler}), which no Service asks for, was removed"
                f" {times} times: another program makes it again. {server.remedy} leaves it alone",
            )
