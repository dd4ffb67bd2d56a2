"""What the metrics port serves: metrics, proxy mode, configuration, flags, status, verbosity (contract 5.3)."""

import json
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ipvsproxy.exchange.report import LookUps
from ipvsproxy.serve.health import HEADERS, JSON
from ipvsproxy.serve.http import NOT_FOUND, HttpAnswer, Request, Respond

MODE = b"ipvs"
MAX_VERBOSITY = 2**31 - 1
NUMBER = re.compile(r"[0-9]{1,10}")
DEBUGGING_ONLY = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees"
    " and is for debugging purposes only."
)


class Pages:
    """Paths and their answers; `add` one after the other, then serve `respond`."""

    def __init__(self) -> None:
        self._paths: dict[str, Respond] = {"/healthz": _healthz, "/healthz/ping": lambda _: HttpAnswer(200, b"ok")}
        self._paths["/proxyMode"] = lambda _: HttpAnswer(200, MODE, headers=HEADERS)

    def add(self, path: str, respond: Respond) -> None:
        """Answer at a path."""
        self._paths[path] = respond

    def respond(self, request: Request) -> HttpAnswer:
        """Answer a request by its path."""
        respond = self._paths.get(request.path)
        return respond(request) if respond else NOT_FOUND


def _healthz(request: Request) -> HttpAnswer:
    """The one check is that we answer; `verbose` and `exclude` are those of Kubernetes components."""
    if "verbose" not in request.query:
        return HttpAnswer(200, b"ok", headers=HEADERS)
    excluded = request.query.get("exclude") == "ping"
    check = "[+]ping excluded: ok" if excluded else "[+]ping ok"
    return HttpAnswer(200, f"{check}\nhealthz check passed\n".encode(), headers=HEADERS)


def metrics(exposition: Callable[[str], tuple[bytes, str]]) -> Respond:
    """Answer with all metrics, in OpenMetrics if the client prefers it."""

    def respond(request: Request) -> HttpAnswer:
        body, content_type = exposition(request.headers.get("Accept") or "")
        return HttpAnswer(200, body, content_type)

    return respond


def slis(request: Request) -> HttpAnswer:
    """Service level indicators of the one check there is; DELETE resets them, and there is nothing to reset."""
    if request.method == "DELETE":
        return HttpAnswer(200, b"metrics reset\n")
    lines = (
        "# HELP kubernetes_healthcheck Result of a health check: 1 if it passed",
        "# TYPE kubernetes_healthcheck gauge",
        'kubernetes_healthcheck{name="ping",type="healthz"} 1',
        "",
    )
    return HttpAnswer(200, "\n".join(lines).encode(), "text/plain; version=0.0.4; charset=utf-8")


def configz(document: Mapping[str, Any], ours: Mapping[str, Any]) -> Respond:
    """Answer with the effective KubeProxyConfiguration, and with our own settings as an IPVSProxyConfiguration."""
    parts = {"kubeproxy.config.k8s.io": document, "ipvsproxy.io": ours}
    body = json.dumps(parts, separators=(",", ":")).encode()
    return lambda _: HttpAnswer(200, body, JSON)


def frontends(look_ups: Callable[[], LookUps]) -> Respond:
    """Answer with what the kernel does not know: Services, tenants, why weights and paths are as they are."""

    def respond(_: Request) -> HttpAnswer:
        found = look_ups()
        known = {str(key): service for key, service in found.holders().items()}
        wanted = {str(key): sorted(map(str, which)) for key, which in found.maintenance().items()}
        page = {"version": 1, "kind": "Frontends", "frontends": known, "maintenance": wanted}
        if named := found.tenants():
            page["tenants"] = {str(group): name for group, name in sorted(named.items())}
        if of_all := found.tenants_of_namespaces():
            shown = sorted({service.partition("/")[0] for service in known.values()} & of_all.keys())
            page["tenantsOfNamespaces"] = {name: of_all[name] for name in shown}
        if reasons := found.path_reasons():
            page["pathReasons"] = {str(key): reason for key, reason in sorted(reasons.items())}
        return HttpAnswer(200, json.dumps(page).encode(), JSON)

    return respond


def flagz(flags: Iterable[tuple[str, str]]) -> Respond:
    """Answer with all flags and their values."""
    lines = [f"{name.lstrip('-')}={value}" for name, value in sorted(flags)]
    body = "\n".join(["", "kube-proxy flags", DEBUGGING_ONLY, "", *lines, ""]).encode()
    return lambda _: HttpAnswer(200, body, headers=HEADERS)


def statusz(kubernetes_version: str, clock: Callable[[], float] = time.time) -> Respond:
    """Answer with since when which version runs."""
    started = clock()

    def respond(_: Request) -> HttpAnswer:
        up = int(clock() - started)
        lines = (
            "",
            "kube-proxy statusz",
            DEBUGGING_ONLY,
            "",
            f"Started: {datetime.fromtimestamp(started, UTC):%a %b %d %H:%M:%S UTC %Y}",
            f"Up: {up // 3600} hr {up // 60 % 60:02} min {up % 60:02} sec",
            f"Python version: {platform.python_version()}",
            f"Binary version: {kubernetes_version.removeprefix('v')} (ipvsproxy {version('ipvsproxy')})",
            "",
        )
        return HttpAnswer(200, "\n".join(lines).encode(), headers=HEADERS)

    return respond


def verbosity(change: Callable[[int], None]) -> Respond:
    """Let PUT set the verbosity of the log, as `kubectl` and people with curl expect."""

    def respond(request: Request) -> HttpAnswer:
        if request.method != "PUT":
            return HttpAnswer(406, b"http put method expected", headers=HEADERS)
        text = request.body.decode(errors="replace").strip()
        if not NUMBER.fullmatch(text) or int(text) > MAX_VERBOSITY:
            problem = f"failed to set the verbosity: {text[:40]!r} is no number\n"
            return HttpAnswer(400, problem.encode(), headers=HEADERS)
        change(int(text))
        return HttpAnswer(200, f"successfully set verbosity to {text}".encode(), headers=HEADERS)

    return respond
