"""The reflectors of many nodes while the API server restarts: what they ask, and what that costs the server.

    python -m tests.cluster.api_restart NAME KUBE NODES     (in the network of the cluster of that name)

Each node follows Services, slices and itself as ours does: it lists in pages, watches from the version it has,
and waits between tries as the product does. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import signal
import sys
import time
from dataclasses import asdict, dataclass

from ipvsproxy.kube.pace import Pace
from tests.cluster import control_plane, programs
from tests.cluster.api_clients import PAGE, PATHS, Exchange, MeasuredApiServer, Way, metadata
from tests.cluster.binaries import Kube
from tests.cluster.place import Cluster

OURS = Way(gzip=True)
OWN_NODE = "/api/v1/nodes?fieldSelector=metadata.name=node-{}"
OTHER = "/api/v1/namespaces/default/configmaps"
SETTLED_SECONDS = 5.0
POLL_SECONDS = 0.2
WAIT_SECONDS = 900
VERSION = re.compile(rb'"resourceVersion":"(\d+)"')
ERROR = b'"type":"ERROR"'


@dataclass
class Counts:
    """What all reflectors have asked; `refused` are tries that no server answered, `bytes` those of lists."""

    lists: int = 0
    watches: int = 0
    expired: int = 0
    refused: int = 0
    bytes: int = 0

    def since(self, before: Counts) -> Counts:
        return Counts(
            *(now - then for now, then in zip(asdict(self).values(), asdict(before).values(), strict=True))
        )


class EndlessWatch:
    """One watch of one node, which goes on for ever."""

    def __init__(self, server: MeasuredApiServer, path: str, counts: Counts) -> None:
        self._server, self._path, self._counts = server, path, counts
        self._version = ""
        self.watching = False

    async def run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._follow()
                attempt = 0
            except (OSError, EOFError, RuntimeError):
                self._counts.refused += not self.watching
                attempt += 1
            self.watching = False
            if attempt:
                await asyncio.sleep(Pace().pause(attempt))

    async def _follow(self) -> None:
        exchange = await Exchange(self._server).open()
        try:
            if not self._version:
                await self._list(exchange)
            query = f"&watch=true&allowWatchBookmarks=true&resourceVersion={self._version}"
            await exchange.send(self._path + query, OURS.headers(watch=True))
            self._counts.watches += 1
            await exchange.head()
            self.watching = True
            await self._events(exchange)
        finally:
            exchange.close()

    async def _list(self, exchange: Exchange) -> None:
        self._counts.lists += 1
        token = ""
        while True:
            body = await exchange.ask(f"{self._path}&limit={PAGE}&continue={token}", OURS.headers())
            token = metadata(body).get("continue", "")
            if not token:
                self._counts.bytes += exchange.received
                self._version = metadata(body)["resourceVersion"]
                return

    async def _events(self, exchange: Exchange) -> None:
        async for piece in exchange.chunks():
            if ERROR in piece:
                self._counts.expired += 1
                self._version = ""
                return
            if found := VERSION.findall(piece):
                self._version = found[-1].decode()


async def quiet(reflectors: list[EndlessWatch], counts: Counts) -> float:
    """Wait until all watch and nothing more is asked; seconds until then."""
    began, last, since = time.monotonic(), None, time.monotonic()
    while time.monotonic() - began < WAIT_SECONDS:
        now = (asdict(counts), sum(each.watching for each in reflectors))
        if now != last:
            last, since = now, time.monotonic()
        elif now[1] == len(reflectors) and time.monotonic() - since > SETTLED_SECONDS:
            return since - began
        await asyncio.sleep(POLL_SECONDS)
    message = f"not quiet within {WAIT_SECONDS} s: {last}"
    raise programs.Failed(message)


def restart(cluster: Cluster, kube: Kube, server: MeasuredApiServer) -> None:
    programs.stop(cluster, "apiserver", signal.SIGKILL)
    control_plane.start_apiserver(cluster, kube)
    server.pid = programs.pid(cluster, "apiserver")


async def write_something(server: MeasuredApiServer) -> None:
    """As others do all the time (leases, events): the API's version goes on, and that of Services does not."""
    exchange = await Exchange(server).open()
    headers = OURS.headers() + "Content-Type: application/json\r\n"
    body = json.dumps({"metadata": {"name": f"written-{time.monotonic_ns()}"}}).encode()
    await exchange.ask(OTHER, headers, "POST", body)
    exchange.close()


async def measure(cluster: Cluster, kube: Kube, nodes: int) -> dict[str, object]:
    server, counts = MeasuredApiServer(cluster.pki, programs.pid(cluster, "apiserver")), Counts()
    await asyncio.to_thread(restart, cluster, kube, server)
    await asyncio.sleep(2 * SETTLED_SECONDS)
    alone = server.cpu()
    paths = [path for node in range(nodes) for path in (*PATHS, OWN_NODE.format(node))]
    reflectors = [EndlessWatch(server, path, counts) for path in paths]
    tasks = [asyncio.create_task(each.run()) for each in reflectors]
    seconds = await quiet(reflectors, counts)
    starts = {**cost(server, seconds, alone), **asdict(counts)}
    await write_something(server)
    before = Counts(**asdict(counts))
    await asyncio.to_thread(restart, cluster, kube, server)
    seconds = await quiet(reflectors, counts)
    again = {**cost(server, seconds, alone), **asdict(counts.since(before))}
    for task in tasks:
        task.cancel()
    return {"nodes": nodes, "all start": starts, "the server restarts": again}


def cost(server: MeasuredApiServer, seconds: float, alone: float) -> dict[str, float]:
    return {"seconds": round(seconds, 1), "cpu": round(server.cpu() - alone, 1), "MiB": server.most()}


if __name__ == "__main__":
    name, folder, number = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(Cluster(name), Kube(pathlib.Path(folder)), int(number))), indent=1))
