"""Clients of an API server that only count: what many nodes ask, byte by byte and without decoding anything.

    python -m tests.cluster.api_clients PKI SERVER-PID WATCHERS CHANGES      (in the network of the server)

Prints one JSON object: for each kind of client what a start costs, and what a change costs where many watch. Bytes
are those of HTTP/1.1 above TLS. `cpu` is the server's processor time in seconds.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pathlib
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from tests.cluster.place import API_IP

JSON, PROTOBUF = "application/json", "application/vnd.kubernetes.protobuf"
PATHS = (
    "/api/v1/services?labelSelector=!service.kubernetes.io/service-proxy-name",
    "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=!service.kubernetes.io/headless",
)
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
PAGE = 500
QUIET_SECONDS = 3.0
REPEATS = 20
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Way:
    """How a client begins: by pages, or at once from the server's cache."""

    accept: str = JSON
    gzip: bool = False
    begins: str = "pages"

    def headers(self, *, watch: bool = False) -> str:
        kind = f"{self.accept};stream=watch" if watch and self.accept == PROTOBUF else self.accept
        return f"Accept: {kind}\r\n" + ("Accept-Encoding: gzip\r\n" if self.gzip and not watch else "")


WAYS = {
    "pages, JSON, gzip": Way(gzip=True),
    "pages, JSON": Way(),
    "cache, protobuf, gzip": Way(PROTOBUF, gzip=True, begins="cache"),
    "cache, protobuf": Way(PROTOBUF, begins="cache"),
}
"""The first is ours, the third kube-proxy's, where the server cannot begin a watch with all objects."""


class MeasuredApiServer:
    """The API server: its certificates, and its processor time."""

    def __init__(self, pki: pathlib.Path, pid: int) -> None:
        self.tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self.tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.pid = pid

    @property
    def _proc(self) -> pathlib.Path:
        return pathlib.Path("/proc", str(self.pid))

    def cpu(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def most(self) -> int:
        """The most memory that it has had since it started, in MiB."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))

    def resident(self) -> int:
        """In bytes."""
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Exchange:
    """One connection; `received` counts its bytes."""

    def __init__(self, server: MeasuredApiServer) -> None:
        self._server = server
        self.received = 0

    async def open(self) -> Exchange:
        self._reader, self._writer = await asyncio.open_connection(API_IP, 6443, ssl=self._server.tls)
        return self

    async def ask(self, path: str, headers: str, method: str = "GET", body: bytes = b"") -> bytes:
        """The body of an answer, decompressed by nobody."""
        await self.send(path, headers, method, body)
        head = await self.head()
        if b"transfer-encoding: chunked" in head.lower():
            return b"".join([piece async for piece in self.chunks()])
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line
        )
        self.received += length
        return await self._reader.readexactly(length)

    async def send(self, path: str, headers: str, method: str = "GET", body: bytes = b"") -> None:
        lines = f"{method} {path} HTTP/1.1\r\nHost: {API_IP}\r\n{headers}"
        self._writer.write(lines.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def head(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        self.received += len(head)
        if b" 20" not in head.split(b"\r\n")[0]:
            raise RuntimeError(head.decode())
        return head

    async def chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self._reader.readline()
            if not line:
                message = "the server has closed the connection within an answer"
                raise EOFError(message)
            size = int(line, 16)
            piece = await self._reader.readexactly(size + 2)
            self.received += len(line) + len(piece)
            if not size:
                return
            yield piece[:-2]

    async def follow(self) -> None:
        async for _ in self.chunks():
            pass

    def close(self) -> None:
        self._writer.transport.abort()


async def start(server: MeasuredApiServer, way: Way) -> int:
    """Bytes that a client receives until it has all Services and slices."""
    total = 0
    for path in PATHS:
        exchange = await Exchange(server).open()
        if way.begins == "cache":
            await exchange.ask(path + "&resourceVersion=0", way.headers())
        else:
            await pages(exchange, path, way)
        total += exchange.received
        exchange.close()
    return total


async def pages(exchange: Exchange, path: str, way: Way) -> None:
    token = ""
    while True:
        body = await exchange.ask(f"{path}&limit={PAGE}&continue={token}", way.headers())
        token = continuation(body)
        if not token:
            return


def continuation(body: bytes) -> str:
    return metadata(body).get("continue", "")


def metadata(body: bytes) -> dict[str, str]:
    """Of a list, which the server has compressed or not."""
    return json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)["metadata"]


async def measure_start(server: MeasuredApiServer, way: Way) -> dict[str, float]:
    await start(server, way)  # what the server caches for all
    cpu, began = server.cpu(), time.monotonic()
    sizes = [await start(server, way) for _ in range(REPEATS)]
    return {
        "bytes": sizes[-1],
        "cpu": round((server.cpu() - cpu) / REPEATS, 3),
        "seconds": round((time.monotonic() - began) / REPEATS, 2),
    }


async def measure_changes(server: MeasuredApiServer, way: Way, watchers: int, changes: int) -> dict[str, float]:
    """Have so many clients watch while so many slices change: bytes of one change for one of them."""
    version = json.loads(await (await Exchange(server).open()).ask(SLICES + "?limit=1", Way().headers()))
    path = (
        f"{PATHS[1]}&watch=true&allowWatchBookmarks=true&resourceVersion={version['metadata']['resourceVersion']}"
    )
    resident, cpu = server.resident(), server.cpu()
    following = []
    for _ in range(watchers):
        each = await Exchange(server).open()
        await each.send(path, way.headers(watch=True))
        await each.head()
        following.append(each)
    tasks = [asyncio.create_task(each.follow()) for each in following]
    await settle(lambda: sum(each.received for each in following))
    opened, before = server.cpu() - cpu, sum(each.received for each in following)
    cpu, memory = server.cpu(), server.resident() - resident
    await change(server, changes)
    await settle(lambda: sum(each.received for each in following))
    spent, got = server.cpu() - cpu, sum(each.received for each in following) - before
    for task, each in zip(tasks, following, strict=True):
        task.cancel()
        each.close()
    return {
        "cpu to connect": round(opened / max(watchers, 1), 5),
        "memory": round(memory / max(watchers, 1)),
        "bytes": round(got / max(watchers, 1) / changes, 1),
        "cpu of all changes": round(spent, 3),
    }


async def change(server: MeasuredApiServer, changes: int) -> None:
    exchange = await Exchange(server).open()
    for index in range(changes):
        body = json.dumps({"metadata": {"annotations": {"changed": str(time.monotonic_ns())}}}).encode()
        headers = Way().headers() + "Content-Type: application/merge-patch+json\r\n"
        await exchange.ask(f"{SLICES}/scale-{index}", headers, "PATCH", body)
    exchange.close()


async def settle(count: Callable[[], int]) -> None:
    """Wait until no more bytes come."""
    last = -1
    while (now := count()) != last:
        last = now
        await asyncio.sleep(QUIET_SECONDS)


async def measure(pki: pathlib.Path, pid: int, watchers: int, changes: int) -> dict[str, object]:
    server = MeasuredApiServer(pki, pid)
    starts = {name: await measure_start(server, way) for name, way in WAYS.items()}
    alone = await measure_changes(server, Way(), 0, changes)
    json_ = await measure_changes(server, Way(), watchers, changes)
    protobuf = await measure_changes(server, Way(PROTOBUF), watchers, changes)
    return {"starts": starts, "no watcher": alone, "JSON": json_, "protobuf": protobuf}


if __name__ == "__main__":
    folder, number, many, times = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(pathlib.Path(folder), int(number), int(many), int(times))), indent=1))
