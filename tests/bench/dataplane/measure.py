"""Runs in the machine whose clock counts instructions: measures rows, and prints each as a JSON object.

    python -m tests.bench.dataplane.measure PROGRAM PLAN

PROGRAM is round_trips, compiled. PLAN is a JSON object: `services` (sizes), `peers` (names), `rows` (those that
are wanted, as lists of size, path, kind and peer; null are all) and `kube_proxy` (a path or null).
"""

import contextlib
import itertools
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from tests.bench.dataplane.proxies import peers
from tests.bench.dataplane.rows import ENDPOINT, ENDPOINT_PORT, KINDS, PATHS
from tests.lab import netns
from tests.lab.lab import Lab

# IPVS tells replies apart by client and endpoint alone: a client that uses a port once more, towards another
# address with the same endpoint, gets no answer. So no two rows have a port in common.
FIRST_PORT, PORTS = 10_000, 300
PORTS_OF_TRIALS = (25_000, 29_999)
PATIENCE = 3600.0
POLL_SECONDS = 0.2


def main(argv):
    program, plan = pathlib.Path(argv[0]), json.loads(argv[1])
    print(json.dumps(surroundings()), flush=True)
    for services in plan["services"]:
        for name, make in peers(plan["peers"], plan["kube_proxy"]).items():
            paths = wanted(plan["rows"], services, name)
            if paths:
                with Lab(nodes=1) as lab, tempfile.TemporaryDirectory() as folder, serving(lab, program):
                    Measurement(lab, make(lab, pathlib.Path(folder)), program, services).run(paths)
    return 0


def surroundings():
    """What counts may depend on."""
    nft = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return {"kernel": platform.release(), "nft": nft.removeprefix("v")}


def wanted(rows, services, peer):
    """Return the paths with those kinds of which rows of this size and peer are asked for."""
    if rows is None:
        return {path: path.kinds for path in PATHS}
    chosen = {path: [kind for kind in path.kinds if [services, path.name, kind, peer] in rows] for path in PATHS}
    return {path: kinds for path, kinds in chosen.items() if kinds}


@contextlib.contextmanager
def serving(lab, program):
    """Servers of both protocols and families in the endpoint's namespace."""
    pod = lab.host(ENDPOINT)
    with contextlib.ExitStack() as stack, netns.inside(pod.netns):
        for address in (pod.ipv4, pod.ipv6):
            for what in ("serve-tcp", "serve-udp"):
                server = subprocess.Popen([program, what, address, str(ENDPOINT_PORT)])
                stack.callback(server.wait)
                stack.callback(server.kill)
        yield


class Measurement:
    """One peer with so many Services, in a lab of its own."""

    def __init__(self, lab, peer, program, services):
        self._lab, self._peer, self._program, self._services = lab, peer, program, services
        self._ports = itertools.count(FIRST_PORT, PORTS)

    def run(self, paths):
        """Measure its paths: first those that need no other Services, then those beside load balancers."""
        paths = {path: kinds for path, kinds in paths.items() if self._peer.serves(path)}
        try:
            self._peer.start(self._services)
            self._stage({path: kinds for path, kinds in paths.items() if not path.grown})
            later = {path: kinds for path, kinds in paths.items() if path.grown}
            if later:
                self._peer.grow()
                self._stage(later)
        except RuntimeError:
            print(self._peer.last_words(), file=sys.stderr)
            raise
        finally:
            self._peer.stop()

    def _stage(self, paths):
        for path in paths:
            self._wait_for(path)
        self._peer.pause()
        for path, kinds in paths.items():
            for kind in kinds:
                first = next(self._ports)
                self._print(path, kind, json.loads(self._ask(path, kind, KINDS[kind], (first, first + PORTS - 1))))
        self._peer.resume()

    def _print(self, path, kind, percentiles):
        row = {"services": self._services, "path": path.name, "kind": kind, "peer": self._peer.name}
        print(json.dumps(row | percentiles), flush=True)

    def _ask(self, path, kind, count, ports):
        where = self._lab.host(path.source).netns
        netns.set_sysctls(where, {"net/ipv4/ip_local_port_range": "{} {}".format(*ports)})
        return netns.run(where, [str(self._program), kind, path.target(self._lab), str(path.port), str(count)])

    def _wait_for(self, path):
        """Return once all kinds are answered. Raises RuntimeError if they never will be."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                for kind in path.kinds:
                    self._ask(path, kind, 1, PORTS_OF_TRIALS)
            except RuntimeError:
                if time.monotonic() > deadline or self._peer.has_ended():
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
