"""By which addresses the API server is reached: no Service may take one of them from the node (`plan.safety`).

In: the server's URL, as the connection has it. A host name is resolved by this host's resolver, as the connection
does it; again every minute, since names move. While it cannot be, the addresses that were known stay.
"""

import socket
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import structlog

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import ApiServers, Inbox

RESOLVED_SECONDS, UNRESOLVED_SECONDS = 60.0, 5.0
DEFAULT_PORTS = {"http": 80}
HTTPS = 443

Servers = tuple[tuple[bytes, int], ...]

log = structlog.get_logger()


def locate(url: str) -> Servers:
    """Return addresses and port of a server. Raises OSError, ValueError when its host has none."""
    parts = urlsplit(url)
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, HTTPS)
    found = socket.getaddrinfo(unquote(parts.hostname or ""), port, type=socket.SOCK_STREAM)
    # An IPv6 address may name a link after a `%`.
    return tuple(sorted({(parse_ip(str(address[0]).partition("%")[0]), port) for *_, address in found}))


class Locator:
    """Puts the API server's addresses into the inbox when they change. `url` returns the URL of the moment."""

    def __init__(self, url: Callable[[], str], inbox: Inbox) -> None:
        self._url = url
        self._inbox = inbox
        self._known: Servers = ()
        self._complained = False

    def look(self) -> float:
        """Find out once, and return the seconds until it is worth it again."""
        url = self._url()
        try:
            found = locate(url)
        except (OSError, ValueError) as error:
            if not self._complained:
                self._complained = True
                log.warning("Could not resolve the API server's addresses, Services are not kept from them",
                            server=urlsplit(url).hostname, err=str(error), known=len(self._known))  # fmt: skip
            return UNRESOLVED_SECONDS
        self._complained = False
        if found != self._known:
            self._known = found
            self._inbox.put(ApiServers(found))
        return RESOLVED_SECONDS
