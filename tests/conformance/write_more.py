"""Write flows-more.json: what flows.json lacks, in the same format.

    python -m tests.conformance.write_more

Twins: each IPv4 scenario with its addresses moved to IPv6 (where flows.json has no such twin), and each TCP
scenario over UDP and over SCTP. A twin keeps what must come of each flow, since none of it depends on family
or protocol. Extras: every detector, masqueradeAll, remote pods as clients, endpoints in the node's own
network namespace, other schedulers, several interfaces, and other programs' rules on the node (`host_rules`, an
addition to the format): a hostPort on the port of a Service, and a FORWARD policy of drop. Tenants have
a module of their own, extras_tenants.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from tests.conformance.extras import extras
from tests.conformance.extras_tenants import tenants
from tests.support.api_object import ApiObject

HERE = pathlib.Path(__file__).parent
PREFIX6 = int(ipaddress.IPv6Address("fd00:4::"))
LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")
V4 = re.compile(r"(\d+\.\d+\.\d+\.\d+)(?:/(\d+))?(?::(\d+))?(/[A-Z]+)?")
# Of a state block a twin keeps what names addresses of its own family.
STATE_KEYS = ("virtual_servers", "bound_addresses", "cluster_endpoints", "local_endpoints")
FLOW_KEYS = ("id", "name", "from", "src_ip", "dst_ip", "dst_port", "proto", "expect", "endpoints", "masquerade")
FLOW_KEYS += ("masquerade_by_endpoint", "affinity", "repeat", "differs", "by_others")
SCENARIO_KEYS = ("id", "title", "family", "node", "config", "services", "endpoints", "flows", "state")
# Both families in one scenario: nothing to move.
NO_SIX = {"ipvs-v4-family-filter", "ipvs-nodeport-v4-tcp", "ipvs-externalips", "ipvs-externalips-matching"}


def slim(scenario: ApiObject) -> ApiObject:
    """Leave out what upstream asserts and what other backends do."""
    kept = copy.deepcopy({key: scenario[key] for key in SCENARIO_KEYS if key in scenario})
    kept["flows"] = [{key: flow[key] for key in FLOW_KEYS if key in flow} for flow in kept["flows"]]
    state = {key: value for key, value in kept.get("state", {}).items() if key in STATE_KEYS}
    return (kept | {"state": state}) if state else {key: value for key, value in kept.items() if key != "state"}


def renamed(scenario: ApiObject, suffix: str) -> ApiObject:
    old = scenario["id"]
    scenario["id"] = f"{old}-{suffix}"
    scenario["title"] = f"{scenario.get('title', old)} ({suffix})"
    for flow in scenario["flows"]:
        flow["id"] = flow["id"].replace(old, scenario["id"], 1)
    return scenario


def six(text: str) -> str:
    """Move an address, a range, ADDRESS:PORT or ADDRESS:PORT/PROTO to IPv6; other texts stay."""
    match = V4.fullmatch(text.strip())
    if not match:
        return text
    host, length, port, proto = match.groups()
    four = ipaddress.IPv4Address(host)
    moved = "::1" if four in LOOPBACK else str(ipaddress.IPv6Address(PREFIX6 + int(four)))
    if length is not None:
        bits = 128 if four in LOOPBACK else 0 if length == "0" else 96 + int(length)
        return f"{moved if bits else '::'}/{bits}"
    return f"[{moved}]:{port}{proto or ''}" if port else moved


def moved(value: Any) -> Any:
    """Move everything in a value; lists lose what was IPv6 before."""
    if isinstance(value, dict):
        return {six(key): moved(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [moved(entry) for entry in value if not (isinstance(entry, str) and is_six(entry))]
    return six(value) if isinstance(value, str) else value


def is_six(text: str) -> bool:
    try:
        return ipaddress.ip_network(text.strip(), strict=False).version == 6
    except ValueError:
        return text.startswith("[")


def six_twin(scenario: ApiObject) -> ApiObject:
    twin = moved(scenario) | {"id": scenario["id"], "family": "IPv6"}
    twin["node"]["interfaces"]["lo"] = ["127.0.0.1", "::1"]
    return renamed(twin, "v6")


def proto_twin(scenario: ApiObject, proto: str) -> ApiObject:
    twin = copy.deepcopy(scenario)
    health = {service.get("healthCheckNodePort") for service in twin["services"]}
    for part in (*twin["services"], *twin["endpoints"]):
        for port in part["ports"]:
            port["protocol"] = proto
    for flow in twin["flows"]:
        # Health checks stay TCP, of course.
        flow["proto"] = "TCP" if flow["dst_port"] in health else proto
        if ipaddress.ip_address(flow["dst_ip"]).is_loopback:
            # The relay of NodePorts on loopback addresses has TCP only.
            flow |= {"expect": "passes-through", "endpoints": [], "masquerade": None, "differs": False}
    state = twin.get("state", {})
    if "virtual_servers" in state:
        servers = state["virtual_servers"].items()
        state["virtual_servers"] = {key.replace("/TCP", f"/{proto}"): value for key, value in servers}
    return renamed(twin, proto.lower())


def protos(scenario: ApiObject) -> set[str]:
    return {port["protocol"] for part in (*scenario["services"], *scenario["endpoints"]) for port in part["ports"]}


def twins(scenarios: list[ApiObject]) -> Iterator[ApiObject]:
    known = {scenario["id"] for scenario in scenarios}
    for scenario in map(slim, scenarios):
        name = scenario["id"]
        if scenario["family"] == "IPv4" and name not in NO_SIX and name.replace("v4", "v6") not in known - {name}:
            yield six_twin(scenario)
    for proto in ("UDP", "SCTP"):
        yield from (proto_twin(slim(scenario), proto) for scenario in scenarios if protos(scenario) == {"TCP"})


def main() -> None:
    original = json.loads((HERE / "flows.json").read_text())
    made = [*twins(original["scenarios"]), *extras(), *tenants()]
    head = {"format_version": 1, "about": " ".join((__doc__ or "").split()[:12]), "scenarios": []}
    lines = ",\n".join(json.dumps(scenario, separators=(",", ":")) for scenario in made)
    text = json.dumps(head)[:-3] + f"[\n{lines}\n]}}\n"
    (HERE / "flows-more.json").write_text(text)
    print(f"{len(made)} scenarios, {sum(len(scenario['flows']) for scenario in made)} flows")


if __name__ == "__main__":
    main()
