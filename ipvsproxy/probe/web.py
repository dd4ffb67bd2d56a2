"""What the proxy of this node reports on its own ports: health and metrics, over plain HTTP.

A port that listens on all addresses is asked on loopback.
"""

import errno
import http.client
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress

from ipvsproxy.base.address import format_ip, is_unspecified
from ipvsproxy.base.errors import plain
from ipvsproxy.config import Config, Listen
from ipvsproxy.diagnosis.facts import Proxy

SECONDS = 5.0
LARGEST, LONGEST_BODY = 16 << 20, 4000
LOOPBACK = {4: "127.0.0.1", 16: "::1"}
OURS = "ipvsproxy_build_info"
SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})? ([^ ]+)")


def read_proxy(config: Config) -> Proxy | None:
    """Return what the proxy reports of itself, None when its settings give it no health server."""
    if config.healthz_bind_address is None:
        return None
    read_at = time.time()
    try:
        health, body = get(config.healthz_bind_address, "/healthz")
    except (OSError, http.client.HTTPException) as error:
        return Proxy(error=f"{config.healthz_bind_address}: {plain(error)}", read_at=read_at)
    metrics = read_metrics(config)
    found = dict(summed(metrics)) if metrics is not None else None
    return Proxy(
        health,
        body[:LONGEST_BODY],
        # Without metrics this is unknown; with them, every ipvsproxy has this one.
        is_ours=found is None or OURS in found,
        metrics=found,
        flags=dict(flags(_page(config, "/flagz") or "")),
        read_at=read_at,
    )


def read_metrics(config: Config) -> str | None:
    """Return the text of /metrics, None when it cannot be had."""
    return _page(config, "/metrics")


def flags(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and value of each flag in the text of /flagz."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            yield name.strip(), value


def _page(config: Config, path: str) -> str | None:
    if config.metrics_bind_address is None:
        return None
    try:
        status, text = get(config.metrics_bind_address, path)
    except (OSError, http.client.HTTPException):
        return None
    return text if status == http.HTTPStatus.OK else None


def get(listen: Listen, path: str) -> tuple[int, str]:
    """Return status and body, whatever program answers there, within SECONDS. Raises OSError, HTTPException."""
    address = LOOPBACK[len(listen.address)] if is_unspecified(listen.address) else format_ip(listen.address)
    with closing(http.client.HTTPConnection(address, listen.port, timeout=SECONDS)) as connection:
        connection.connect()
        late = threading.Event()
        # The time limit of a socket is for each piece: one byte a second, also of headers, would last for ever.
        timer = threading.Timer(SECONDS, _cut, (connection.sock, late))
        timer.start()
        try:
            found = _answer(connection, path)
        except (OSError, http.client.HTTPException):
            found = None
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if found is None or late.is_set():  # an answer without a length ends with the connection
            raise TimeoutError(f"no complete answer within {SECONDS:g} s")
        return found


def _answer(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read(LARGEST + 1)
    if len(body) > LARGEST:
        raise OSError(errno.EFBIG, f"the answer has more than {LARGEST} bytes")
    return answer.status, body.decode(errors="replace")


def _cut(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def summed(text: str) -> Iterator[tuple[str, float]]:
    """Yield each metric once: the sum over its labels, of points in time the earliest."""
    found: dict[str, list[float]] = {}
    for name, value in samples(text.splitlines()):
        found.setdefault(name, []).append(value)
    for name, values in found.items():
        yield name, min(values) if name.endswith("_timestamp_seconds") else sum(values)


def samples(lines: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield name and value of each line that is a sample."""
    for line in lines:
        if match := SAMPLE.fullmatch(line):
            try:
                yield match[1], float(match[2])
            except ValueError:
                continue
