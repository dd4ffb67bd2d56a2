"""The servers of a lab: one thread answers on any number of sockets in any number of namespaces.

Each request (a line over TCP, a message over UDP or SCTP) is answered with one JSON line: the
endpoint's name, its namespace, and the source address and port it saw. TCP connections stay open and
answer line after line, so a test can hold one across a change. A listener can be stopped, which also
cuts its connections, and started again. One that leaves goes on serving, and says with every answer that it is the
last one, as a server does that ends in peace.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import threading
from typing import TYPE_CHECKING

from tests.lab import netns

if TYPE_CHECKING:
    from tests.lab.lab import LabHost

POLL_SECONDS = 0.2


class EndpointListener:
    """One endpoint: its sockets on both addresses of a host, or on all, and the connections they accepted."""

    def __init__(
        self, owner: Responder, host: LabHost, port: int, proto: str, name: str, *, everywhere: bool = False
    ) -> None:
        self.host, self.port, self.proto, self.name = host, port, proto, name
        self._addresses = ("0.0.0.0", "::") if everywhere else (host.ipv4, host.ipv6)
        self.served = 0
        self.leaving = False
        self._owner = owner
        self._sockets: set[socket.socket] = set()

    def start(self) -> None:
        for address in self._addresses:
            server = netns.open_socket(self.host.netns, address, self.proto)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, self.port))
            if self.proto != "udp":
                server.listen(256)
            self._watch(server, self._answer_datagram if self.proto == "udp" else self._accept)

    def leave(self) -> None:
        """Ask whoever is connected, or will be, to go elsewhere."""
        self.leaving = True

    @property
    def connections(self) -> int:
        """The number of open TCP connections."""
        with self._owner.lock:
            return len(self._sockets) - sum(map(_listens, self._sockets))

    def stop(self) -> None:
        """Close everything; later connections are refused by the host itself."""
        with self._owner.lock:
            for opened in list(self._sockets):
                self._forget(opened)

    def _watch(self, opened: socket.socket, handler: object) -> None:
        with self._owner.lock:
            self._sockets.add(opened)
            self._owner.selector.register(opened, selectors.EVENT_READ, handler)

    def _forget(self, opened: socket.socket) -> None:
        self._sockets.discard(opened)
        with contextlib.suppress(KeyError, ValueError):
            self._owner.selector.unregister(opened)
        opened.close()

    def _accept(self, server: socket.socket) -> None:
        connection, _ = server.accept()
        connection.setblocking(False)
        self._watch(connection, self._answer_stream)

    def _answer_stream(self, connection: socket.socket) -> None:
        try:
            request = connection.recv(65536)
            source = connection.getpeername()
            lines = max(1, request.count(b"\n")) if request else 0
            connection.sendall(self._answer(source) * lines)
        except OSError:
            request = b""
        if not request:
            self._forget(connection)

    def _answer_datagram(self, server: socket.socket) -> None:
        _, source = server.recvfrom(65536)
        server.sendto(self._answer(source), source)

    def _answer(self, source: tuple[str, int]) -> bytes:
        self.served += 1
        answer = {"name": self.name, "netns": self.host.netns, "source": source[0], "port": source[1]}
        if self.leaving:
            answer["last"] = True
        return json.dumps(answer).encode() + b"\n"


def _listens(opened: socket.socket) -> bool:
    return opened.type != socket.SOCK_STREAM or bool(opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


class Responder:
    """The thread behind all listeners of a lab."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.selector = selectors.DefaultSelector()
        self.listeners: list[EndpointListener] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="responder", daemon=True)

    def listen(
        self, host: LabHost, port: int, proto: str = "tcp", name: str | None = None, *, everywhere: bool = False
    ) -> EndpointListener:
        """Serve a port of a host, under the host's name unless told otherwise.

        `everywhere`: at all its addresses, also those that come later, as most programs of a node do.
        """
        listener = EndpointListener(self, host, port, proto, name or host.name, everywhere=everywhere)
        listener.start()
        self.listeners.append(listener)
        return listener

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self.clear()
        self.selector.close()

    def clear(self) -> None:
        """Stop all listeners, as between two tests."""
        while self.listeners:
            self.listeners.pop().stop()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            ready = self.selector.select(POLL_SECONDS)
            with self.lock:
                for key, _ in ready:
                    self._handle(key)

    def _handle(self, key: selectors.SelectorKey) -> None:
        # The socket may have been closed, or its client gone, since select returned.
        if isinstance(key.fileobj, socket.socket) and key.fileobj.fileno() >= 0:
            with contextlib.suppress(OSError):
                key.data(key.fileobj)
