"""NodePorts on the loopback addresses of the node, for TCP: a relay in user space.

IPVS cannot balance what comes from a loopback address, since no answer from elsewhere may go to one (and with
route_localnet others would reach what listens there). So where `nodePortAddresses` has localhost, this listens on
127.0.0.1 and ::1, and connects to the ClusterIP of the Service as any process of the node would: what its policies
are, and which endpoint it is, is decided there. One thread, which runs once there is something to listen for.

Bounded: connections beyond MOST_CONNECTIONS wait, those of one Service beyond a quarter of that, and each holds
two buffers of BUFFER bytes at most. An address that is taken is tried again each RETRY_SECONDS.
"""

import asyncio
import errno
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import address_family, format_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.serve.http import ListenAddress

MOST_CONNECTIONS = 512
SHARES = 4
"""As many Services have to be busy before one has to wait for others."""
BUFFER = 1 << 15
BACKLOG = 1024
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 5.0
SHORT_OF_SECONDS = 0.1
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose connection is to end with a reset."""

log = structlog.get_logger()


class Relay:
    """Listens for Services; `serve` is for one thread. `refused` hears of an address that cannot be had."""

    def __init__(self, refused: Callable[[str, str], None], most_connections: int = MOST_CONNECTIONS) -> None:
        self._refused = refused
        self._most = most_connections
        self._loop: asyncio.AbstractEventLoop | None = None
        # What follows belongs to the relay's thread.
        self._listening: dict[str, dict[ListenAddress, asyncio.Task[None]]] = {}
        self._targets: dict[str, Mapping[ListenAddress, ListenAddress]] = {}
        self._rooms: dict[str, asyncio.Semaphore] = {}

    def serve(self, service: str, targets: Mapping[ListenAddress, ListenAddress]) -> None:
        """Have a Service answer on some addresses, each with where it leads; none: it has gone."""
        if self._loop is None:
            if not targets:
                return
            self._loop = asyncio.new_event_loop()
            self._room = asyncio.Semaphore(self._most)
            threading.Thread(target=self._loop.run_forever, name="localhost-nodeports", daemon=True).start()
        self._loop.call_soon_threadsafe(self._change, service, dict(targets))

    def _change(self, service: str, targets: Mapping[ListenAddress, ListenAddress]) -> None:
        known, tasks = self._targets.pop(service, {}), self._listening.setdefault(service, {})
        for address in list(tasks):
            if targets.get(address) != known.get(address):
                tasks.pop(address).cancel()
        for address, target in targets.items():
            if address not in tasks:
                tasks[address] = self._begin(self._serve(service, address, target))
        if targets:
            self._targets[service] = targets
        else:
            del self._listening[service]
            self._rooms.pop(service, None)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        assert self._loop is not None  # noqa: S101 - it runs
        return self._loop.create_task(work)

    async def _serve(self, service: str, address: ListenAddress, target: ListenAddress) -> None:
        """Listen until cancelled; then the connections are cut as well."""
        listener = await self._listen(service, address)
        own = self._rooms.setdefault(service, asyncio.Semaphore(max(1, self._most // SHARES)))
        connections: set[asyncio.Task[None]] = set()
        try:
            while True:
                client = await _accepted(listener)
                try:
                    await self._wait_for_room(own)
                except asyncio.CancelledError:
                    client.close()
                    raise
                connections.add(task := self._begin(_relay(client, target)))
                task.add_done_callback(partial(self._end, client, own, connections))
        finally:
            listener.close()
            for task in connections:
                task.cancel()

    async def _wait_for_room(self, own: asyncio.Semaphore) -> None:
        await own.acquire()
        try:
            await self._room.acquire()
        except asyncio.CancelledError:
            own.release()
            raise

    def _end(
        self,
        client: socket.socket,
        own: asyncio.Semaphore,
        connections: set[asyncio.Task[None]],
        task: asyncio.Task[None],
    ) -> None:
        """Give back what a connection had; also of one that was cancelled before it began."""
        client.close()
        connections.discard(task)
        own.release()
        self._room.release()

    async def _listen(self, service: str, address: ListenAddress) -> socket.socket:
        """Return a socket that listens, as soon as there can be one."""
        is_said = False
        while True:
            try:
                return _listening(address)
            except OSError as error:
                if not is_said:
                    reason = f"NodePort {address.port} cannot be had on {address}: {plain(error)}"
                    log.warning(
                        messages.LOCALHOST_PORT_TAKEN, service=service, address=str(address), err=plain(error)
                    )
                    self._refused(service, reason)
                is_said = True
            await asyncio.sleep(RETRY_SECONDS)


def _listening(address: ListenAddress) -> socket.socket:
    made = _socket(address)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(_name(address))
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


async def _accepted(listener: socket.socket) -> socket.socket:
    while True:
        try:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
        except OSError as error:
            # A client may have gone again; where descriptors have run out, some come back.
            await asyncio.sleep(SHORT_OF_SECONDS if error.errno in SHORT_OF else 0)
        else:
            return client


async def _relay(client: socket.socket, target: ListenAddress) -> None:
    """Pass on what both sides send, and how each of them ends."""
    try:
        server = _socket(target)
    except OSError:
        _reset(client)
        return
    with closing(server):
        try:
            await _connect(server, target)
            _prepare(client, server)
            await _both(_pump(client, server), _pump(server, client))
        except OSError:
            _reset(client, server)
        except asyncio.CancelledError:
            _reset(client, server)
            raise


async def _both(*halves: Coroutine[Any, Any, None]) -> None:
    """Run both until they end, or one fails; then the other has ended as well, and no socket is waited for."""
    tasks = [asyncio.ensure_future(half) for half in halves]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _connect(server: socket.socket, target: ListenAddress) -> None:
    server.setblocking(False)
    async with asyncio.timeout(CONNECT_SECONDS):
        await asyncio.get_running_loop().sock_connect(server, _name(target))


async def _pump(source: socket.socket, to: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, BUFFER):
        await loop.sock_sendall(to, data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_WR)


def _prepare(*both: socket.socket) -> None:
    """Have no byte wait for others, and notice when a side is gone."""
    for one in both:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            one.setsockopt(socket.IPPROTO_TCP, option, value)


def _reset(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def _socket(address: ListenAddress) -> socket.socket:
    return socket.socket(address_family(len(address.ip)))


def _name(address: ListenAddress) -> tuple[str, int]:
    return format_ip(address.ip), address.port
