"""A node as another version of ipvsproxy left it: what tools list of it is stored, and put back by them.

A state is a folder of three files: `rules.nft` (nft's listing of our tables), `servers.ipvsadm` (`ipvsadm -Sn`)
and `links.ip` (for `ip -batch`). How to make one stands in older/README.md.
"""

from __future__ import annotations

import pathlib

from tests.lab import netns
from tests.lab.lab import Lab, LabNode

FOLDER = pathlib.Path(__file__).with_name("older")
# Every version so far has set these.
SETTINGS = {
    "net/ipv4/vs/conntrack": 1,
    "net/ipv4/vs/expire_nodest_conn": 1,
    "net/ipv4/vs/expire_quiescent_template": 1,
}
ROUTES = "table local proto 118"


def names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/rules.nft"))


def tables(lab: Lab, node: LabNode) -> list[str]:
    """Return the families and names of the node's tables that have our name."""
    lines = lab.run(node, ["nft", "list", "tables"]).splitlines()
    return [line.removeprefix("table ") for line in lines if line.endswith(" ipvsproxy")]


def rules(lab: Lab, node: LabNode) -> str:
    """Return the listing of those tables."""
    return "".join(lab.run(node, ["nft", "-s", "list", "table", *table.split()]) for table in tables(lab, node))


def record(lab: Lab, node: LabNode, folder: pathlib.Path) -> None:
    """Store what is there now."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rules.nft").write_text(rules(lab, node))
    (folder / "servers.ipvsadm").write_text(lab.run(node, ["ipvsadm", "-Sn"]))
    (folder / "links.ip").write_text("".join(f"{line}\n" for line in _links(lab, node)))


def _links(lab: Lab, node: LabNode) -> list[str]:
    lines = ["link add kube-ipvs0 type dummy"]
    for found in lab.run(node, ["ip", "-o", "address", "show", "dev", "kube-ipvs0"]).splitlines():
        address = found.split()[3]
        if not address.startswith("fe80:"):
            lines.append(f"address add {address} dev kube-ipvs0")
    for version in ("-4", "-6"):
        routes = lab.run(node, ["ip", version, "route", "show", *ROUTES.split()]).splitlines()
        lines += [f"route add {route} {ROUTES}" for route in routes]
    return lines


def leave(lab: Lab, node: LabNode, name: str) -> None:
    """Put a stored state on the node."""
    folder = FOLDER / name
    netns.set_sysctls(node.netns, SETTINGS)
    netns.ip(node.netns, (folder / "links.ip").read_text())
    lab.run(node, ["ipvsadm", "-R"], (folder / "servers.ipvsadm").read_text())
    lab.run(node, ["nft", "-f", str(folder / "rules.nft")])
