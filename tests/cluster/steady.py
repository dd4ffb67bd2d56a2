"""Steady requests to Services until a file `stop` is in the folder; what failed is told at the end. Stdlib only.

    steady.py FOLDER NAME FIRST TARGET...

A target is KIND:IP:PORT, asked once a second. `new` makes a TCP connection for each request; `kept` sends all
requests through one connection; `udp` sends all datagrams from one socket. What answers is agnhost's netexec.
The file `started-NAME` appears when each target has been asked once. At the end comes one JSON object for
each: `target`, `ok`, `slowest` in seconds, `failures` as [seconds since the start, error].

Each target has source ports of its own, by its number, and a port comes back after minutes: IPVS takes the replies
to a port that met the same endpoint by another way in the last two minutes for those of the older connection
(docs/internals-packets.md). FIRST is the number of the first target: a node and its pods, which some plugins
masquerade to the node's address, have different ones.
"""

from __future__ import annotations

import http.client
import itertools
import json
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

PERIOD_SECONDS = 1.0
"""With some thirty targets that is enough: more keeps slow nodes from anything else."""
TIMEOUT_SECONDS = 60
"""Longer than a busy machine stops the nodes; a packet that is lost is sent again long before."""
RESEND_SECONDS = 5
"""As clients of UDP do: what an overloaded machine drops is no fault of the proxy; `slowest` shows it."""
HTTP_OK = 200
FIRST_PORT = 11000
"""Below the ports that kernels choose by themselves, above those of the kubelet and of proxies."""
PORTS = 1000
SendRequest = Callable[[], None]


def source_ports(index: int) -> Iterator[int]:
    """Those of one target, again and again.

    Where they begin, the clock says, which goes on twice as fast as requests do: a process that follows another
    one at once has other ports.
    """
    first, begin = FIRST_PORT + index * PORTS, int(2 * time.monotonic() / PERIOD_SECONDS)
    return (first + count % PORTS for count in itertools.count(begin))


def asker(kind: str, ip: str, port: int, sources: Iterator[int]) -> SendRequest:
    """What makes one request; OSError or HTTPException when it fails. The next one then connects anew."""
    return {"new": _new, "kept": _kept, "udp": _udp}[kind](ip, port, sources)


def _connection(ip: str, port: int, sources: Iterator[int]) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(ip, port, timeout=TIMEOUT_SECONDS, source_address=("", next(sources)))


def _new(ip: str, port: int, sources: Iterator[int]) -> SendRequest:
    def ask() -> None:
        connection = _connection(ip, port, sources)
        try:
            _request(connection)
        finally:
            connection.close()

    return ask


def _kept(ip: str, port: int, sources: Iterator[int]) -> SendRequest:
    connection = _connection(ip, port, sources)
    connection.auto_open = 0

    def ask() -> None:
        try:
            if connection.sock is None:
                connection.source_address = ("", next(sources))
                connection.connect()
            _request(connection)
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    return ask


def _request(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/hostname")
    response = connection.getresponse()
    response.read()
    if response.status != HTTP_OK:
        message = f"status {response.status}"
        raise http.client.HTTPException(message)


def _udp(ip: str, port: int, sources: Iterator[int]) -> SendRequest:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(RESEND_SECONDS)
    sock.bind(("", next(sources)))
    sock.connect((ip, port))

    def ask() -> None:
        until = time.monotonic() + TIMEOUT_SECONDS
        while True:
            sock.send(b"hostname")
            try:
                sock.recv(1024)
            except TimeoutError:
                if time.monotonic() > until:
                    raise
            else:
                return

    return ask


class SteadyClient(threading.Thread):
    """Asks one target until `stop` is set."""

    def __init__(self, target: str, stop: threading.Event, index: int = 0) -> None:
        super().__init__()
        self._stopping = stop
        self._offset = index * 0.13 % PERIOD_SECONDS  # not all at the same moment
        self.asked = threading.Event()
        kind, rest = target.split(":", 1)
        ip, _, port = rest.rpartition(":")
        self._ask = asker(kind, ip.strip("[]"), int(port), source_ports(index))
        self.result: dict[str, object] = {"target": target, "ok": 0, "slowest": 0.0, "failures": []}

    def run(self) -> None:
        started = time.monotonic()
        ok, slowest, failures = 0, 0.0, []
        self._stopping.wait(self._offset)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._ask()
                ok += 1
            except (OSError, http.client.HTTPException) as error:
                failures.append([round(began - started, 2), repr(error)])
            took = time.monotonic() - began
            self.asked.set()
            slowest = max(slowest, took)
            self._stopping.wait(max(0.0, PERIOD_SECONDS - took))
        self.result.update(ok=ok, slowest=round(slowest, 2), failures=failures)


def main(folder: str, name: str, first: int, targets: list[str]) -> None:
    stop = threading.Event()
    threads = [SteadyClient(target, stop, index) for index, target in enumerate(targets, first)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.asked.wait()
    pathlib.Path(folder, f"started-{name}").touch()
    while not pathlib.Path(folder, "stop").exists():
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
        print(json.dumps(thread.result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
