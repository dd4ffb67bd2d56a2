"""A small HTTP server: one thread accepts for all listeners, each connection is answered in a thread of its own.

In: `Listener`s, each with an address and a function from `Request` to `HttpAnswer`. Listeners come and go while
the server runs (`set_listeners`), and one whose address cannot be had is tried again every RETRY_SECONDS. A
thread that polls for each of some hundred healthCheckNodePorts would be a waste, hence one selector.

Plain HTTP/1.1, answered as Go's net/http answers: any method, no Server header, HEAD without a body.
"""

import errno
import io
import os
import queue
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import structlog

from ipvsproxy.base.address import family, format_endpoint, is_unspecified

RETRY_SECONDS = 5.0
IDLE_SECONDS = 30.0
MAX_CONNECTIONS = 128
"""Threads at a time. A further connection ends the oldest one, so that silent clients cannot keep probes out."""
MAX_BODY = 1 << 16
LENGTH = re.compile(r"[0-9]{1,9}")
BACKLOG = 128
SHORT_OF_SECONDS = 0.1
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Where descriptors, memory or threads have run out there is a pause: what waits is announced again at once."""

log = structlog.get_logger()


class ListenAddress(NamedTuple):
    """Where to listen: a packed IP and a port. An unspecified `ip` with `both` takes both families."""

    ip: bytes
    port: int
    both: bool = False

    def __str__(self) -> str:
        return format_endpoint(self.ip, self.port)


class Request(NamedTuple):
    """What was asked: method, path, first value of each query parameter, headers in any case, body."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: "Message[str, str]"
    body: bytes = b""


class HttpAnswer(NamedTuple):
    """A response: status, body, content type, further headers."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = {}


NOT_FOUND = HttpAnswer(404, b"404 page not found\n", headers={"X-Content-Type-Options": "nosniff"})
BAD_REQUEST = HttpAnswer(400, b"400 bad request\n")

Respond = Callable[[Request], HttpAnswer]


class Listener(NamedTuple):
    """One address and what answers there. `failed` is called with each new reason why listening fails."""

    name: str
    address: ListenAddress
    respond: Respond
    failed: Callable[[ListenAddress, OSError], None] = lambda _, __: None


def open_socket(address: ListenAddress) -> socket.socket:
    """Listen. Raises OSError."""
    if address.both and is_unspecified(address.ip) and socket.has_dualstack_ipv6():
        try:
            return _server(ListenAddress(bytes(16), address.port), dual=True)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or family(address.ip) == 6:
                raise  # else the kernel knows IPv6, but none of it is to be used
    return _server(address, dual=False)


def _server(address: ListenAddress, *, dual: bool) -> socket.socket:
    v6 = family(address.ip) == 6
    host = socket.inet_ntop(socket.AF_INET6 if v6 else socket.AF_INET, address.ip)
    made = socket.create_server(
        (host, address.port),
        family=socket.AF_INET6 if v6 else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=dual,
    )
    made.setblocking(False)
    return made


def _reason(listener: Listener, error: OSError) -> str:
    return f"{listener.address}: {os.strerror(error.errno) if error.errno else error}"


class HttpServer:
    """Listens where it is configured to, until the process ends or `stop` is called."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wanted: dict[ListenAddress, Listener] = {}
        self._open: dict[ListenAddress, tuple[Listener, socket.socket]] = {}
        self._reported: dict[ListenAddress, str] = {}
        self._retry_at: float | None = None
        self._groups: queue.SimpleQueue[tuple[str, list[Listener]] | None] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}
        self._thread = threading.Thread(target=self._run, name="serve", daemon=True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake, selectors.EVENT_READ)

    def start(self, listeners: Iterable[Listener], *, hard: bool = False) -> None:
        """Listen and begin to answer; `hard` makes the first failure an OSError instead of trying again."""
        for listener in listeners:
            if not hard:
                self._try(listener)
                continue
            try:
                self._listen(listener)
            except OSError as error:
                raise OSError(f"{listener.name}: {_reason(listener, error)}") from error
        self._thread.start()

    def set_listeners(self, group: str, listeners: Iterable[Listener]) -> None:
        """Replace the listeners whose name begins with `group/`; those that stay are not touched. Never blocks."""
        self._groups.put((group, list(listeners)))
        os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Close all listeners and end the thread."""
        self._groups.put(None)
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self.close()

    def close(self) -> None:
        """Give back all sockets; for a server whose thread does not run."""
        for _, opened in self._open.values():
            opened.close()
        self._selector.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            timeout = None if self._retry_at is None else max(0.0, self._retry_at - self._clock())
            for key, _ in self._selector.select(timeout):
                if key.fd == self._wake:
                    os.eventfd_read(self._wake)
                    if not self._take_groups():
                        return
                elif key.data in self._open:
                    self._accept(*self._open[key.data])
            if self._retry_at is not None and self._clock() >= self._retry_at:
                self._retry_all()

    def _take_groups(self) -> bool:
        """Carry out `set_listeners`; tell whether to go on."""
        while not self._groups.empty():
            order = self._groups.get()
            if order is None:
                return False
            group, listeners = order
            wanted = {(listener.address, listener.name) for listener in listeners}
            for address, old in list(self._wanted.items()):
                if old.name.startswith(f"{group}/") and (address, old.name) not in wanted:
                    self._close(address)
            for listener in listeners:
                self._try(listener)
        return True

    def _try(self, listener: Listener) -> None:
        """Listen, or report once why not and try again later."""
        try:
            self._listen(listener)
        except OSError as error:
            self._retry_at = self._clock() + RETRY_SECONDS
            self._note_failure(listener, error)

    def _listen(self, listener: Listener) -> None:
        """Listen, or let a socket that is open answer for the new listener. Raises OSError."""
        address = listener.address
        if address in self._open:
            known, opened = self._open[address]
            if known.name != listener.name:
                raise OSError(errno.EADDRINUSE, f"in use by {known.name}")
            self._open[address] = listener, opened
            return
        self._wanted[address] = listener
        opened = open_socket(address)
        self._open[address] = listener, opened
        self._selector.register(opened, selectors.EVENT_READ, address)
        self._reported.pop(address, None)
        log.info("Started listening", server=listener.name, address=str(address))

    def _note_failure(self, listener: Listener, error: OSError) -> None:
        reason = _reason(listener, error)
        if self._reported.get(listener.address) != reason:
            self._reported[listener.address] = reason
            log.error("Could not listen, will retry", server=listener.name, err=reason, seconds=RETRY_SECONDS)
            listener.failed(listener.address, error)

    def _retry_all(self) -> None:
        self._retry_at = None
        for listener in list(self._wanted.values()):
            if listener.address not in self._open:
                self._try(listener)

    def _close(self, address: ListenAddress) -> None:
        del self._wanted[address]
        self._reported.pop(address, None)
        if address in self._open:
            listener, opened = self._open.pop(address)
            self._selector.unregister(opened)
            opened.close()
            log.info("Stopped listening", server=listener.name, address=str(address))

    def _accept(self, listener: Listener, opened: socket.socket) -> None:
        try:
            connection, peer = opened.accept()
        except OSError as error:
            if error.errno in SHORT_OF:
                time.sleep(SHORT_OF_SECONDS)
            return  # else the client has gone already
        self._make_room(connection)
        thread = threading.Thread(
            target=self._serve, args=(listener, connection, peer), name="answer", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # No thread is to be had; the client may come again.
            self._forget(connection)
            connection.close()
            time.sleep(SHORT_OF_SECONDS)

    def _make_room(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections[connection] = None
            if len(self._connections) <= MAX_CONNECTIONS:
                return
            oldest = next(iter(self._connections))
            del self._connections[oldest]
        with suppress(OSError):
            oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up and ends

    def _serve(self, listener: Listener, connection: socket.socket, peer: object) -> None:
        try:
            # An OSError is a client that hangs up, or is silent for too long.
            with suppress(OSError), connection:
                _Handler(connection, peer, cast("Any", listener))
        except Exception:
            log.exception("Could not answer HTTP request", server=listener.name)
        finally:
            self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.pop(connection, None)


class _Handler(BaseHTTPRequestHandler):
    """One connection: as many requests as the client likes, IDLE_SECONDS apart at most."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    # What is no HTTP, such as the beginning of TLS, gets a status line too, and nothing of what it was.
    default_request_version = "HTTP/1.1"
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s\n"
    wbufsize = io.DEFAULT_BUFFER_SIZE
    server: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        body = self._body()
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._send(BAD_REQUEST)
            return
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self._send(self.server.respond(Request(self.command, parts.path, query, self.headers, body)))

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not LENGTH.fullmatch(length) or int(length) > MAX_BODY:
            self.close_connection = True  # what follows cannot be distinguished from a request
            return b""
        return self.rfile.read(int(length))

    def _send(self, answer: HttpAnswer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()

    def send_error(self, code: int, *_: Any, **__: Any) -> None:
        """Answer what is no request with the status's own phrase."""
        super().send_error(code)

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Begin an answer, to a request of "HTTP/0.9" too: RFC 9112 section 2.3 has none without a status line."""
        if self.request_version == "HTTP/0.9":
            self.request_version = self.default_request_version
        super().send_response_only(code, message)

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin the base class's answer to what is no request, without the header that names who answers."""
        self.send_response_only(code, message)
        self.send_header("Date", self.date_time_string())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: probes come every second."""
