"""Whether a kube-proxy answers on the ports that it has, where its process is not to be seen.

kube-proxy reports its mode at `/proxyMode` of its metrics server, and the age of its rules at `/healthz` of its
health server. So does ipvsproxy, which has the page `/frontends` besides.
"""

import http.client
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from ipvsproxy.config import Config, Listen
from ipvsproxy.probe.web import get

METRICS, HEALTH = Listen(b"\x7f\0\0\1", 10249), Listen(b"\x7f\0\0\1", 10256)
"""The defaults of kube-proxy."""
IPVS, OUR_PAGE = "ipvs", '"kind": "Frontends"'
MODES = (IPVS, "iptables", "nftables", "userspace")


class _Health(msgspec.Struct, rename="camel"):
    """What every kube-proxy reports of its health."""

    last_updated: Any


def answers(config: Config, *, ours_runs: bool) -> Iterator[tuple[str, str]]:
    """Yield what answers as a kube-proxy: where it does, and its mode, empty if that is unknown.

    `ours_runs`: an ipvsproxy runs on this node, so that an answer at a health port may be its own.
    """
    is_ours = ours_runs
    for listen in _distinct(config.metrics_bind_address, METRICS):
        mode = _page(listen, "/proxyMode")
        if mode in MODES and OUR_PAGE in _page(listen, "/frontends"):
            is_ours = True
        elif mode in MODES:
            yield f"{listen} answers in mode {mode}", mode
    if not is_ours:
        for listen in _distinct(config.healthz_bind_address, HEALTH):
            if _is_health(listen):
                yield f"{listen} answers at /healthz", ""


def other_mode(config: Config) -> str:
    """Return where a kube-proxy of a mode other than ipvs answers, and with which mode; empty if none does."""
    return next((sign for sign, mode in answers(config, ours_runs=True) if mode not in ("", IPVS)), "")


def _distinct(*found: Listen | None) -> list[Listen]:
    """Return where to ask; the same port on all addresses, and on loopback, is one."""
    return list({listen.port: listen for listen in found if listen is not None}.values())


def _page(listen: Listen, path: str) -> str:
    with suppress(OSError, http.client.HTTPException):
        status, text = get(listen, path)
        return text.strip() if status == http.HTTPStatus.OK else ""
    return ""


def _is_health(listen: Listen) -> bool:
    with suppress(OSError, http.client.HTTPException, msgspec.DecodeError, RecursionError):
        msgspec.json.decode(get(listen, "/healthz")[1], type=_Health)
        return True
    return False
