"""Comparing the virtual servers in the kernel with the shadow, and correcting the shadow.

IPVS sends no notifications, so it is read: one server each second, and all of them now and then, with the
destinations of a part. What one look reads is bounded, however many servers there are and however large one is.
"""

from itertools import chain, islice

from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.large_servers import LargeServers
from ipvsproxy.plan.state import FrontendKey, KernelState, ServerAttributes, ServerState

VERIFIED_AT_ONCE = 1000
"""Servers whose destinations one verification reads: three system calls each."""
READ_AT_ONCE = 50_000
"""Destinations that one verification reads in one go: IPVS and Python need 3 to 30 us for each."""


class ServerCheck:
    """Reads servers in turns. `large` are those with very many destinations, which are read in pieces."""

    def __init__(self, shadow: KernelState, ipvs: Ipvs) -> None:
        self.large = LargeServers(shadow, ipvs.each_destination)
        self._shadow = shadow
        self._ipvs = ipvs
        self._verified = 0

    def sample(self) -> bool:
        """Look at one server, the next one each time; return whether it differs. Raises KernelError."""
        known = self._shadow.servers
        if not known:
            return False
        key = next(islice(known, self._verified % len(known), None))
        if self._differs(key, known[key]):
            return True
        self._verified += 1
        return False

    def _differs(self, key: FrontendKey, known: ServerState) -> bool:
        if self.large.is_large(key):
            return self._ipvs.server(key) != known.server
        return self._ipvs.state(key) != known

    def verify(self) -> set[FrontendKey]:
        """Compare all servers, and the next part of them with destinations; return those that differed.

        Begins with the server that `sample` has found. Large servers of this part are left for `verify_large`.
        Raises KernelError.
        """
        known, servers = self._shadow.servers, self._ipvs.servers()
        part = self._next_part()
        suspects = {key for key, state in known.items() if servers.get(key) != state.server}
        return self._reread(suspects | part | (servers.keys() - known.keys()), servers)

    def _next_part(self) -> set[FrontendKey]:
        """Return the servers whose turn it is, and go on to those after them."""
        known, room = self._shadow.servers, READ_AT_ONCE
        self._verified %= max(1, len(known))
        part = set[FrontendKey]()
        # All around: the first one may be no other's turn, as samples go on in between.
        around = chain(islice(known, self._verified, None), islice(known, self._verified))
        for key in islice(around, VERIFIED_AT_ONCE):
            if self.large.is_large(key):
                self.large.add(key)
            elif (room := room - len(known[key].destinations)) >= 0:
                part.add(key)
            else:
                break
            self._verified += 1
        return part

    def verify_large(self) -> set[FrontendKey]:
        """Compare the next piece of a large server; return it if it is found to differ. Raises KernelError."""
        key = self.large.step()
        if key is None:
            return set()
        server = self._ipvs.server(key)
        return self._reread({key}, {key: server} if server else {})

    def _reread(self, keys: set[FrontendKey], servers: dict[FrontendKey, ServerAttributes]) -> set[FrontendKey]:
        """Read some servers with their destinations into the shadow; return those that were different."""
        known = self._shadow.servers
        read = {key: self._read(key, servers.get(key)) for key in keys}
        different = {key for key, state in read.items() if state != known.get(key)}
        # Not before all have been read: what has been corrected is not found to be different another time.
        for key in different:
            state = read[key]
            if state is None:
                del known[key]
            else:
                known[key] = state
        return different

    def _read(self, key: FrontendKey, server: ServerAttributes | None) -> ServerState | None:
        return ServerState(server, self._ipvs.destinations(key)) if server else None
