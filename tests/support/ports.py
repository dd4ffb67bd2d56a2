"""Ports that a test names before anything listens there."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port(host: str = "127.0.0.1") -> Iterator[int]:
    """Hold a port of a loopback address for a server that sets SO_REUSEADDR, as all do that come back at once.

    A port that is looked up and given back may be another program's by the time it is used. This one is bound and
    does not listen: connections to it are refused, and the kernel gives it to nobody who asks for any port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holding.bind((host, 0))
        yield holding.getsockname()[1]
