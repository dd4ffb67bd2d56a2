"""Credentials from a program: `exec` in a kubeconfig, as client-go has it.

In: the program and the cluster information for it. Out: a `Credential`, kept until it expires. A program
that fails is no configuration that can never work: it is asked again with the next request. Source: the API group
client.authentication.k8s.io, https://kubernetes.io/docs/reference/config-api/client-authentication.v1/.
"""

import base64
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ipvsproxy.base.errors import plain
from ipvsproxy.diagnosis.redact import redacted
from ipvsproxy.kube.section import Section

GROUP = "client.authentication.k8s.io"
VERSIONS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
MODES = ("Never", "IfAvailable", "Always")
LONGEST_SECONDS = 60.0
LONGEST_WORDS = 300
BYTES_READ, CHUNK = 1 << 20, 1 << 16


class PluginFailed(Exception):
    """The program has given no credential this time, as a sentence for the operator."""


class Credential(NamedTuple):
    """A token, or a certificate and its key in PEM; `expires` is in seconds since 1970, None for never."""

    token: str = ""
    certificate: bytes = b""
    key: bytes = b""
    expires: float | None = None


class Plugin:
    """A program that is asked for a credential. May be used by several threads."""

    def __init__(
        self,
        where: str,
        command: list[str],
        environment: Mapping[str, str],
        info: Mapping[str, Any],
        hint: str = "",
    ) -> None:
        self._where = where
        self._command = command
        self._environment = {**environment, "KUBERNETES_EXEC_INFO": json.dumps(info)}
        self._version = info["apiVersion"]
        self._hint = f"; {' '.join(hint.split())}" if hint else ""
        self._lock = threading.Lock()
        self._known: Credential | None = None

    def credential(self, now: Callable[[], float] = time.time) -> Credential:  # noqa: TID251  # expiry is a date
        """Return the credential, a new one where the last has expired. Raises PluginFailed."""
        with self._lock:
            known = self._known
            if known is None or (known.expires is not None and known.expires <= now()):
                self._known = known = self._ask()
            return known

    def _ask(self) -> Credential:
        try:
            return _credential(self._run(), self._version)
        except _Wrong as error:
            raise PluginFailed(f"{self._where}: {self._command[0]}: {error}") from None

    def _run(self) -> bytes:
        try:
            status, output, errors = _run(self._command, {**os.environ, **self._environment})
        except FileNotFoundError:
            raise _Wrong(f"not found{self._hint}") from None
        except TimeoutError:
            raise _Wrong(f"no answer within {LONGEST_SECONDS:g} s") from None
        except (OSError, ValueError) as error:
            raise _Wrong(plain(error)) from None
        if status:
            words = " ".join(redacted(errors.decode(errors="replace")).split())[-LONGEST_WORDS:]
            raise _Wrong(f"ended with status {status}" + (f": {words}" if words else ""))
        return output


class _Wrong(Exception):
    """Why a program has given no credential."""


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """Run a program and return its status and the first BYTES_READ of what it writes. Raises OSError.

    It is ended with all that it has started when it takes longer than LONGEST_SECONDS: that is a TimeoutError.
    """
    with subprocess.Popen(  # noqa: S603  # the operator's own program
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + LONGEST_SECONDS
        try:
            output, errors = _written(process, until)
            return process.wait(max(0.0, until - time.monotonic())), output, errors
        except (TimeoutError, subprocess.TimeoutExpired):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError from None


def _written(process: "subprocess.Popen[bytes]", until: float) -> Iterator[bytes]:
    """Yield the beginning of what comes out of both pipes, when both have ended. Raises TimeoutError."""
    found: dict[Any, bytearray] = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in found:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, until - time.monotonic()))
            if not ready or time.monotonic() > until:
                raise TimeoutError
            for key, _ in ready:
                piece = os.read(key.fd, CHUNK)
                if not piece:
                    selector.unregister(key.fileobj)
                found[key.fileobj] += piece[: BYTES_READ - len(found[key.fileobj])]
    yield from map(bytes, found.values())


def read_plugin(user: Section, cluster: Section, server: str, authority: Path | bytes | None) -> Plugin | None:
    """Return the program of a user, None if there is none. Raises Unusable."""
    if "exec" not in user:
        return None
    section = user.section("exec")
    command, version = section.text("command"), section.text("apiVersion")
    if not command or "\0" in command:
        raise section.wrong("command", "missing" if not command else "has a control character")
    if version not in VERSIONS:
        given = f"{version} is not supported" if version.startswith(GROUP) else "missing or of another kind"
        raise section.wrong("apiVersion", f"{given}; use {VERSIONS[0]} or {VERSIONS[1]}")
    _check_mode(section)
    path = section.path("command") if "/" in command else None
    variables = _variables(section)
    cluster_info = _cluster_info(cluster, server, authority) if section.flag("provideClusterInfo") else {}
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False, **cluster_info}}
    words = [str(path or command), *section.texts("args")]
    return Plugin(section.where, words, variables, info, section.text("installHint"))


def _check_mode(section: Section) -> None:
    """A proxy has no terminal: what needs one can never work here."""
    mode = section.text("interactiveMode") or "Never"
    if mode not in MODES:
        raise section.wrong("interactiveMode", f"unknown; use {', '.join(MODES)}")
    if mode == "Always":
        raise section.wrong("interactiveMode", "Always needs a terminal, which a proxy does not have; use Never")


def _variables(section: Section) -> dict[str, str]:
    found = {}
    for item in section.sections("env"):
        name, value = item.text("name"), item.text("value")
        if not name or "=" in name or "\0" in name + value:
            raise item.wrong("name", "missing" if not name else "is no name of a variable")
        found[name] = value
    return found


def _cluster_info(cluster: Section, server: str, authority: Path | bytes | None) -> dict[str, Any]:
    """Return the cluster information for a program that asks for it."""
    content = authority.read_bytes() if isinstance(authority, Path) else authority
    found: dict[str, Any] = {"server": server, "config": _extension(cluster)}
    if content:
        found["certificate-authority-data"] = base64.b64encode(content).decode()
    for field in ("tls-server-name", "proxy-url"):
        found |= {field: cluster.text(field)} if cluster.text(field) else {}
    for field in ("insecure-skip-tls-verify", "disable-compression"):
        found |= {field: True} if cluster.flag(field) else {}
    return {"cluster": found}


def _extension(cluster: Section) -> Any:
    """Return what the cluster has for programs; its other extensions are not known here."""
    for item in cluster.sections("extensions"):
        if item.text("name") == f"{GROUP}/exec":
            content = item.raw("extension")
            try:
                json.dumps(content)
            except (TypeError, ValueError, RecursionError):
                raise item.wrong("extension", "cannot be written in JSON") from None
            return content
    return None


def _credential(output: bytes, version: str) -> Credential:
    try:
        tree = json.loads(output[:BYTES_READ])
    except (ValueError, RecursionError):
        raise _Wrong("answered with something that is no JSON") from None
    if not isinstance(tree, dict) or tree.get("kind") != "ExecCredential" or tree.get("apiVersion") != version:
        raise _Wrong(f"answered with something that is no ExecCredential of {version}")
    status = tree.get("status")
    fields = status if isinstance(status, dict) else {}
    token, certificate, key = (_word(fields, name) for name in ("token", "clientCertificateData", "clientKeyData"))
    if bool(certificate) != bool(key):
        raise _Wrong("answered with only one of certificate and key")
    if not token and not certificate:
        raise _Wrong("answered with neither a token nor a certificate")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _Wrong("answered with a token that has characters no token has")
    return Credential(token, certificate.encode(), key.encode(), _expiry(_word(fields, "expirationTimestamp")))


def _word(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str | None):
        raise _Wrong(f"answered with a {name} that is no text")
    return (value or "").strip()


def _expiry(text: str) -> float | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Wrong("answered with an expirationTimestamp that is no date") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
