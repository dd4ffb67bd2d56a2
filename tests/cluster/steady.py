"""Steady requests to Services until a file `stop` is in the folder; what failed is told at the end. Stdlib only.

    steady.py FOLDER NAME TARGET...

A target is KIND:IP:PORT. `new` makes a TCP connection for each request, 20 a second; `kept` sends all
requests through one connection; `udp` sends all datagrams from one socket. What answers is agnhost's netexec.
The file `started-NAME` appears when each target has been asked once. At the end comes one JSON object for
each: `target`, `ok`, `slowest` in seconds, `failures` as [seconds since the start, error].
"""

from __future__ import annotations

import http.client
import json
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable

PERIOD_SECONDS = {"new": 0.05, "kept": 0.1, "udp": 0.1}
TIMEOUT_SECONDS = 10
HTTP_OK = 200
Ask = Callable[[], None]


def asker(kind: str, ip: str, port: int) -> Ask:
    """What makes one request; OSError or HTTPException when it fails. The next one then connects anew."""
    return {"new": _new, "kept": _kept, "udp": _udp}[kind](ip, port)


def _new(ip: str, port: int) -> Ask:
    def ask() -> None:
        connection = http.client.HTTPConnection(ip, port, timeout=TIMEOUT_SECONDS)
        try:
            _request(connection)
        finally:
            connection.close()

    return ask


def _kept(ip: str, port: int) -> Ask:
    connection = http.client.HTTPConnection(ip, port, timeout=TIMEOUT_SECONDS)
    connection.auto_open = 0

    def ask() -> None:
        try:
            if connection.sock is None:
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


def _udp(ip: str, port: int) -> Ask:
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT_SECONDS)
    sock.connect((ip, port))

    def ask() -> None:
        sock.send(b"hostname")
        sock.recv(1024)

    return ask


class Target(threading.Thread):
    """Asks one target until `stop` is set."""

    def __init__(self, target: str, stop: threading.Event) -> None:
        super().__init__()
        self._stopping = stop
        self.asked = threading.Event()
        self._kind, rest = target.split(":", 1)
        ip, _, port = rest.rpartition(":")
        self._ask = asker(self._kind, ip.strip("[]"), int(port))
        self.result: dict[str, object] = {"target": target, "ok": 0, "slowest": 0.0, "failures": []}

    def run(self) -> None:
        started = time.monotonic()
        ok, slowest, failures = 0, 0.0, []
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
            self._stopping.wait(max(0.0, PERIOD_SECONDS[self._kind] - took))
        self.result.update(ok=ok, slowest=round(slowest, 2), failures=failures)


def main(folder: str, name: str, targets: list[str]) -> None:
    stop = threading.Event()
    threads = [Target(target, stop) for target in targets]
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
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
