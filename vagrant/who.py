#!/usr/bin/env python3
"""Say who answers, and whom it saw asking: both ends of every request in this folder. Needs only Python.

who serve NAME [PORT]         answer HTTP on a port (8080) of all addresses: "NAME saw 192.0.2.100"
who ask ADDRESS PORT [TIMES]  ask as often (6) at once, print a line for each: "NAME SOURCE", or how it failed:
                              timeout, refused, unreachable
who time ADDRESS PORT [TIMES] ask one after the other (200), print the latency in ms: median and 99th percentile
who name NAME                 ask the DNS, print the canonical name and the addresses
"""

import concurrent.futures
import http.client
import http.server
import socket
import statistics
import sys
import time

TIMEOUT = 3.0


class WhoHandler(http.server.BaseHTTPRequestHandler):
    """One line, whatever was asked."""

    name = "?"

    def do_GET(self) -> None:
        """Name the source as it is written: IPv4 without the prefix that a socket for both families gives it."""
        source = self.client_address[0].removeprefix("::ffff:")
        body = f"{self.name} saw {source}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep quiet."""


class WhoServer(http.server.ThreadingHTTPServer):
    """Listens on IPv4 and IPv6."""

    address_family = socket.AF_INET6
    request_queue_size = 1024

    def server_bind(self) -> None:
        """Take both families with one socket."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(name: str, port: str = "8080") -> None:
    """Answer until killed."""
    WhoHandler.name = name
    WhoServer(("::", int(port)), WhoHandler).serve_forever()


def ask_once(address: str, port: str) -> str:
    """Ask on a new connection and report in one line what came back."""
    try:
        connection = http.client.HTTPConnection(address, int(port), timeout=TIMEOUT)
        connection.request("GET", "/")
        answer = connection.getresponse().read().decode()
        connection.close()
    except TimeoutError:
        return "timeout"
    except ConnectionError:
        return "refused"
    except OSError:
        return "unreachable"
    return answer.strip().replace(" saw ", " ")


def ask(address: str, port: str, times: str = "6") -> None:
    """Ask all at once, so that many timeouts take no longer than one."""
    with concurrent.futures.ThreadPoolExecutor(int(times)) as pool:
        for line in pool.map(lambda _: ask_once(address, port), range(int(times))):
            print(line)


def time_it(address: str, port: str, times: str = "200") -> None:
    """Each request has a connection of its own: it is the first packet that a service proxy has work with."""
    taken = []
    for _ in range(int(times)):
        began = time.perf_counter()
        line = ask_once(address, port)
        taken.append((time.perf_counter() - began) * 1000)
        if " " not in line:
            sys.exit(f"{address}:{port}: {line}")
    print(f"{statistics.median(taken):.2f} {statistics.quantiles(taken, n=100)[98]:.2f}")


def look_up(name: str) -> None:
    """Print what the resolver makes of a name: where it led, then the addresses."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)
    except socket.gaierror as error:
        sys.exit(f"{name}: {error.strerror}")
    print(found[0][3], *sorted({each[4][0] for each in found}))


COMMANDS = {"serve": serve, "ask": ask, "time": time_it, "name": look_up}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
