"""Where the addresses of a scenario live, and which scenarios can share one network. Pure.

An address lives in the node, in a pod of it (`pod`, one namespace for each address), or in one of four hosts
on the node's LAN: `remote` (endpoints elsewhere), `far` (clients that are pods elsewhere), `client` (external
clients) and `beyond` (the rest of the world, the node's default route: it owns what must be passed through to
it, and swallows everything else without a word).

The LAN hosts hold many addresses each, so a network is sound only if none of them has to exchange packets
with an address that it owns itself. Flows that cannot share a network with others of their scenario (one
address as pod in one flow and as external client in another) get a run of their own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Self

from tests.conformance.objects import detector, flags
from tests.conformance.scenario_file import Flow, Scenario

SENDERS = {"pod": "pod", "remote-pod": "far", "external": "client"}
LAN_HOSTS = ("client", "remote", "far", "beyond")


def places(scenario: Scenario) -> dict[str, str]:
    """Say for each address in which kind of place it lives; those of VIPs are missing, unless passed through."""
    found = dict.fromkeys(scenario.node_addresses, "node")
    for endpoint in scenario.endpoints:
        if endpoint.local:
            found.setdefault(endpoint.address, "pod")
    for flow in scenario.flows:
        if flow.sender == "pod":
            found.setdefault(flow.source, "pod")
    for endpoint in scenario.endpoints:
        found.setdefault(endpoint.address, "remote")
    for flow in scenario.flows:
        if flow.sender in SENDERS:
            found.setdefault(flow.source, SENDERS[flow.sender])
    for flow in scenario.flows:
        if flow.expect == "passes-through":
            found.setdefault(flow.address, "beyond")
    return found


@dataclasses.dataclass
class Needs:
    """What a network must have for some scenarios: addresses by kind of place, and who has to talk to whom."""

    owned: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    pod_clients: set[str] = dataclasses.field(default_factory=set)
    frontends: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, scenario: Scenario) -> Self:
        owned: dict[str, set[str]] = {}
        for address, place in places(scenario).items():
            owned.setdefault(place, set()).add(address)
        pods = {flow.source for flow in scenario.flows if flow.sender == "pod"}
        return cls(owned, pods, {flow.address for flow in scenario.flows})

    def __or__(self, other: Self) -> Needs:
        kinds = self.owned.keys() | other.owned.keys()
        owned = {kind: self.owned.get(kind, set()) | other.owned.get(kind, set()) for kind in kinds}
        return Needs(owned, self.pod_clients | other.pod_clients, self.frontends | other.frontends)

    def sound(self) -> bool:
        client, remote, far, beyond = (self.owned.get(name, set()) for name in LAN_HOSTS)
        asking = client | far
        return (
            not asking & self.frontends
            and not remote & (asking | self.pod_clients)
            and not beyond & (asking | self.pod_clients)
        )


def split(scenario: Scenario) -> Iterator[Scenario]:
    """Yield the scenario in as few parts as it takes for each to be sound; mostly that is one."""
    parts: list[list[Flow]] = []
    for flow in scenario.flows:
        for part in parts:
            if _fits(scenario, part, flow):
                part.append(flow)
                break
        else:
            parts.append([flow])
    for part in parts or [[]]:
        yield scenario.with_flows(part)


def _fits(scenario: Scenario, part: list[Flow], flow: Flow) -> bool:
    senders = {other.source: other.sender for other in part if other.sender in SENDERS}
    same = flow.sender not in SENDERS or senders.get(flow.source, flow.sender) == flow.sender
    return same and Needs.of(scenario.with_flows([*part, flow])).sound()


@dataclasses.dataclass
class ScenarioGroup:
    """Scenarios that share a network; those that follow each other with equal flags share a process, too."""

    key: str
    needs: Needs
    scenarios: list[Scenario]


def group(scenarios: Iterable[Scenario]) -> list[ScenarioGroup]:
    """Put scenarios together whose node looks the same from outside, as far as one network can serve them."""
    groups: list[ScenarioGroup] = []
    for scenario in sorted(scenarios, key=flags):
        key = json.dumps([scenario.interfaces, scenario.host_rules, detector(scenario)[1]])
        needs = Needs.of(scenario)
        for known in groups:
            if known.key == key and (known.needs | needs).sound():
                known.needs |= needs
                known.scenarios.append(scenario)
                break
        else:
            groups.append(ScenarioGroup(key, needs, [scenario]))
    return groups
