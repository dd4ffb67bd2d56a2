"""What says which cluster is meant, for all commands that may bring one up."""

from __future__ import annotations

import argparse
import os

from tests.cluster import place, proxies


def add_name(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get("NAME") or "lab"
    parser.add_argument("--name", default=default, help="of the cluster; several may run (default: lab)")


def add(parser: argparse.ArgumentParser) -> None:
    """What a new one is made of. KUBE, PROXY and MODE in the environment are meant where nothing is said."""
    default = os.environ.get
    parser.add_argument("--kube", default=default("KUBE"), help="the folder with the programs of Kubernetes")
    parser.add_argument("--nodes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--plugins", choices=place.PLUGINS, default=place.PLUGINS[0], help="of the pods' network")
    parser.add_argument("--proxy", choices=proxies.PROXIES, default=default("PROXY") or proxies.OURS)
    parser.add_argument("--mode", default=default("MODE") or "nftables", help="of kube-proxy (default: nftables)")
