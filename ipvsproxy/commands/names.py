"""The names of Services, which the kernel does not know: from a running proxy, or from the objects themselves.

With --manifests, --kubeconfig or --master they are read from there and planned. Otherwise the proxy of this node
is asked at its metrics address (--metrics-bind-address, /frontends). Whatever is missing is said, and costs only
the names.
"""

import json
import urllib.request
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from ipvsproxy.address import format_endpoint, is_unspecified
from ipvsproxy.commands import objects
from ipvsproxy.config import Config
from ipvsproxy.kernel.view import View
from ipvsproxy.plan.state import FrontendKey

TIMEOUT_SECONDS = 2.0
PAGE = "/frontends"
UNKNOWN = "names of Services are unknown"
SIMILAR = 5


class Names(NamedTuple):
    """Services by their frontends, as `namespace/name`; `problem` says why there are none, empty if there are."""

    services: Mapping[str, str]
    problem: str = ""

    def of(self, key: FrontendKey) -> str:
        """Return the Service that has a frontend, empty if it is not known."""
        return self.services.get(str(key), "")


def names(config: Config, view: View) -> Names:
    """Return all names that can be had. Raises Failed when the objects asked for cannot be read."""
    if not objects.are_named(config):
        return _of_running(config)
    ledger = objects.desired_here(config, objects.read(config), view).ledger
    return Names({str(key): ledger.owner(key) for key in ledger.frontends})


def _of_running(config: Config) -> Names:
    listen = config.metrics_bind_address
    if listen is None:
        return Names({}, f"{UNKNOWN}: the proxy serves no metrics; use --manifests or --kubeconfig")
    address = listen.address
    if is_unspecified(address):
        address = b"\x7f\0\0\1" if len(address) == 4 else bytes(15) + b"\1"
    url = f"http://{format_endpoint(address, listen.port)}{PAGE}"
    try:
        # Not by a proxy of the environment: it is this node that is asked.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=TIMEOUT_SECONDS) as answer:
            return Names(json.load(answer)["frontends"])
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "reason", error)
        return Names({}, f"{UNKNOWN}: no proxy answers at {url} ({reason}); use --manifests or --kubeconfig")


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Return Services that may be meant by a name that none has: that name in another namespace comes first."""
    word = _bare(name)
    every = sorted(set(known))
    close = set(get_close_matches(word, {_bare(key) for key in every}, SIMILAR))
    found = [key for key in every if word and (_bare(key) in close or word in _bare(key))]
    return sorted(found, key=lambda key: (_bare(key) != word, _bare(key) not in close))[:SIMILAR]


def _bare(name: str) -> str:
    return name.rpartition("/")[2]
