"""The network of one group of scenarios: a node with interfaces and addresses of the file, and its surroundings.

    client ─┐                         ┌─ pod 10.0.0.2/32
    remote ─┼─ LAN bridge ── eth0 node ── bridge ── pod 10.180.0.1/32
    far    ─┤                         └─ ...
    beyond ─┘

Every address is a host route (/32, /128). LAN hosts and pods have nothing but a default route to the node, so
all packets pass it; the node's default route leads to `beyond`, which does not forward and sends no
errors, like an address on the Internet that nobody answers for. The node is reached, and reaches the LAN, over
addresses of the lab's own, taken from a prefix that the file does not use; only those of its interfaces that
lack a family get one. With the detector InterfaceNamePrefix pods hang on links of that name, without a bridge.

All places exist for the whole life of a network. From scenario to scenario only the node's routes change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Self

from tests.conformance.objects import detector
from tests.conformance.places import LAN_HOSTS, Needs, places
from tests.conformance.scenario_file import LOOPBACKS, Scenario
from tests.lab import netns
from tests.lab.lab import BRIDGE, HOST_SYSCTLS, LAN_SYSCTLS, NODE_SYSCTLS

_numbers = itertools.count(1)
FAMILIES = (4, 6)
PREFIXES = [(f"198.{18 + n // 250}.{n % 250}.", f"fd5a:6c61:{n:x}::") for n in range(1, 500)]


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The addresses of the lab's own: the first four or so groups, for both families."""

    four: str
    six: str

    @classmethod
    def apart_from(cls, taken: Iterable[str]) -> Self:
        """Choose one that none of the taken addresses is in."""
        texts = list(taken)
        free = (pair for pair in PREFIXES if not any(text.startswith(pair) for text in texts))
        return cls(*next(free))

    def address(self, family: int, number: int) -> str:
        return f"{self.four}{number}" if family == 4 else f"{self.six}{number:x}"


class Network:
    """A context manager: the namespaces exist inside its block."""

    def __init__(self, scenario: Scenario, needs: Needs, prefix: Prefix) -> None:
        self._scenario, self._prefix = scenario, prefix
        self._name = f"flow{os.getpid()}x{next(_numbers)}"
        self.node = f"{self._name}-node"
        self._lan = f"{self._name}-lan"
        self._pods = {text: f"{self._name}-pod{n}" for n, text in enumerate(sorted(needs.owned.get("pod", ())), 1)}
        self._hosts = {name: f"{self._name}-{name}" for name in LAN_HOSTS}
        self._owned = needs.owned
        mode, name = detector(scenario)
        self._bridge = name if mode == "BridgeInterface" else "" if name else "pods0"
        self._pod_prefix = name if not self._bridge else "pod"
        links = [link for link in scenario.interfaces if link not in ("lo", self._bridge)]
        self._uplink = links[0] if links else "eth0"
        self._routes: set[str] = set()
        self.node_addresses = scenario.node_addresses | self._lab_addresses()

    # Addresses of the lab: 1 the node on the LAN (where the file gives it none), 2 the node towards pods,
    # from 10 on the LAN hosts. The rest is for markers.

    def _gateway(self, family: int) -> str:
        mine = [text for text in self._scenario.interfaces.get(self._uplink, ()) if (":" in text) == (family == 6)]
        return mine[0] if mine else self._prefix.address(family, 1)

    def _host_address(self, name: str, family: int) -> str:
        return self._prefix.address(family, 10 + LAN_HOSTS.index(name))

    def _lab_addresses(self) -> frozenset[str]:
        return frozenset(self._prefix.address(family, n) for family in FAMILIES for n in (1, 2))

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def namespace(self, place: str, address: str) -> str:
        """Return the namespace in which an address lives."""
        if place == "node":
            return self.node
        return self._pods[address] if place == "pod" else self._hosts[place]

    def enter(self, scenario: Scenario) -> None:
        """Have the node route to where the addresses of this scenario live."""
        wanted = set(self._scenario_routes(places(scenario)))
        lines = [f"route del {route}" for route in self._routes - wanted]
        lines += [f"route replace {route}" for route in wanted - self._routes]
        self._routes = wanted
        if lines:
            run_batches({self.node: lines})

    def _scenario_routes(self, where: Mapping[str, str]) -> Iterator[str]:
        for text, place in where.items():
            if place == "pod":
                yield f"{_host(text)} dev {self._pod_device(text)}"
            elif place != "node":
                via = self._host_address(place, 6 if ":" in text else 4)
                yield f"{_host(text)} via {via} dev {self._uplink} onlink"

    def _pod_device(self, text: str) -> str:
        return self._bridge or self._pod_port(text)

    def _pod_port(self, text: str) -> str:
        return f"{self._pod_prefix[:13]}{self._pods[text].rpartition('pod')[2]}"

    # Building: namespaces, then all links from outside, then each namespace configures itself.

    def _namespaces(self) -> list[str]:
        return [self.node, self._lan, *self._hosts.values(), *self._pods.values()]

    def _build(self) -> None:
        run_batches({None: [f"netns add {name}" for name in self._namespaces()]})
        netns.set_sysctls(self._lan, LAN_SYSCTLS)
        netns.set_sysctls(self.node, NODE_SYSCTLS)
        for name in (*self._hosts.values(), *self._pods.values()):
            netns.set_sysctls(name, HOST_SYSCTLS)
        run_batches({None: list(self._links()), self.node: list(self._node_links())})
        batches = {self._lan: self._lan_lines(), self.node: list(self._node_lines())}
        batches |= {space: list(self._host_lines(name)) for name, space in self._hosts.items()}
        batches |= {space: list(self._pod_lines(text)) for text, space in self._pods.items()}
        run_batches(batches)

    def _node_links(self) -> Iterator[str]:
        """Links that end in the node; those whose other end is elsewhere are in `_links`."""
        for name in self._scenario.interfaces:
            if name not in ("lo", self._bridge, self._uplink):
                yield f"link add {name} type dummy"

    def _links(self) -> Iterator[str]:
        yield f"link add node netns {self._lan} type veth peer {self._uplink} netns {self.node}"
        for name, space in self._hosts.items():
            yield f"link add {name} netns {self._lan} type veth peer eth0 netns {space}"
        for text, space in self._pods.items():
            yield f"link add {self._pod_port(text)} netns {self.node} type veth peer eth0 netns {space}"

    def _lan_lines(self) -> list[str]:
        ports = [f"link set {name} up master lan" for name in ("node", *self._hosts)]
        return [f"link add lan {BRIDGE}", *ports, "link set lan up"]

    def _host_lines(self, name: str) -> Iterator[str]:
        yield from ("link set lo up", "link set eth0 up")
        own = [self._host_address(name, family) for family in FAMILIES]
        yield from (_add(text, "eth0") for text in (*own, *sorted(self._owned.get(name, ()))))
        yield from (f"route add default via {self._gateway(family)} dev eth0 onlink" for family in FAMILIES)

    def _pod_lines(self, text: str) -> Iterator[str]:
        yield from ("link set lo up", "link set eth0 up", _add(text, "eth0"))
        yield f"route add default via {self._prefix.address(6 if ':' in text else 4, 2)} dev eth0 onlink"

    def _node_lines(self) -> Iterator[str]:
        if self._bridge:
            yield f"link add {self._bridge} {BRIDGE}"
        links = self._scenario.interfaces.keys() | {"lo", self._uplink, self._bridge} - {""}
        yield from (f"link set {name} up" for name in sorted(links))
        for name, texts in self._scenario.interfaces.items():
            yield from (_add(text, name) for text in texts if text not in LOOPBACKS)
        own = {self._gateway(family) for family in FAMILIES} & self._lab_addresses()
        yield from (_add(text, self._uplink) for text in sorted(own))
        yield from self._node_pod_lines()
        for family in FAMILIES:
            yield f"route add default via {self._host_address('beyond', family)} dev {self._uplink} onlink"

    def _node_pod_lines(self) -> Iterator[str]:
        """The ends of pods' links; the node's address towards pods is on the bridge, or on each of them."""
        for text in self._pods:
            port = self._pod_port(text)
            if self._bridge:
                yield f"link set {port} up master {self._bridge}"
                yield f"link set {port} type bridge_slave hairpin on"
            else:
                yield f"link set {port} up"
        devices = {self._bridge} if self._bridge else set(map(self._pod_port, self._pods))
        for device in sorted(devices):
            yield from (_add(self._prefix.address(family, 2), device) for family in FAMILIES)

    def _remove(self) -> None:
        with contextlib.suppress(RuntimeError):
            run_batches({None: [f"netns del {name}" for name in self._namespaces()]})


def _host(text: str) -> str:
    return f"{text}/128" if ":" in text else f"{text}/32"


def _add(text: str, device: str) -> str:
    return f"address add {_host(text)} dev {device}{' nodad' if ':' in text else ''}"


def run_batches(batches: Mapping[str | None, list[str]]) -> None:
    """Run an `ip -batch` in each namespace (None: here), all at once. Raises RuntimeError."""
    running = []
    for where, lines in batches.items():
        argv = ["ip", *(["-n", where] if where else []), "-force", "-batch", "-"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append((where, lines, subprocess.Popen(argv, text=True, **pipes)))
    for where, lines, process in running:
        _, errors = process.communicate("\n".join(lines) + "\n")
        if process.returncode != 0:
            raise RuntimeError(f"ip -batch in {where}: {errors}\n" + "\n".join(lines))
