"""Verification of virtual servers with very many destinations, one piece at a time: nothing else waits for it.

The kernel lists destinations by their place in a list. A server that is changed while it is read is not judged:
its turn comes again with the next verification.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey, KernelState

LARGE = 1000
"""Destinations: servers with more are read in pieces."""
PIECE = 500
"""Destinations of one piece: IPVS and Python need 3 to 30 us for each."""

Listing = Iterator[tuple[Destination, DestinationAttributes]]


class LargeServers:
    """Those whose turn it is. `read` lists the destinations of one as they arrive."""

    def __init__(self, shadow: KernelState, read: Callable[[FrontendKey], Listing]) -> None:
        self._shadow = shadow
        self._read = read
        self._waiting: dict[FrontendKey, None] = {}
        self._least, self._piece = LARGE, PIECE
        self._reading: tuple[FrontendKey, Iterator[bool]] | None = None

    def __bool__(self) -> bool:
        return self._reading is not None or bool(self._waiting)

    def is_large(self, key: FrontendKey) -> bool:
        """Whether a server is read in pieces."""
        state = self._shadow.servers.get(key)
        return state is not None and len(state.destinations) > self._least

    def add(self, key: FrontendKey) -> None:
        """Have a server verified."""
        if self._reading is None or self._reading[0] != key:
            self._waiting[key] = None

    def changed(self, keys: Iterable[FrontendKey]) -> None:
        """Servers are changed: what has been read of them counts no more."""
        if self._reading is not None and self._reading[0] in keys:
            self._reading = None

    def step(self) -> FrontendKey | None:
        """Read the next piece; return a server that is found to differ from the shadow. Raises KernelError."""
        reading, self._reading = self._reading or self._next(), None
        if reading is None:
            return None
        key, pieces = reading
        differs = next(pieces, None)
        if differs is False:
            self._reading = reading
        return key if differs else None

    def _next(self) -> tuple[FrontendKey, Iterator[bool]] | None:
        while self._waiting:
            key = next(iter(self._waiting))
            del self._waiting[key]
            if key in self._shadow.servers:
                return key, self._pieces(key)
        return None

    def _pieces(self, key: FrontendKey) -> Iterator[bool]:
        """Yield after each piece whether it differs, and then whether anything was missing."""
        known, listing, seen = self._shadow.servers[key].destinations, self._read(key), 0
        while piece := list(islice(listing, self._piece)):
            seen += len(piece)
            yield any(known.get(destination) != found for destination, found in piece)
        yield seen != len(known)
