"""The settings of the proxy that runs on this node, for read-only commands without settings of their own.

The metrics server of the proxy reports them at `/configz`: KubeProxyConfiguration under `kubeproxy.config.k8s.io`,
our own settings under `ipvsproxy.io`. It is asked at --metrics-bind-address, or where the command line of the
proxy that holds the lock reports, or at the default address. Where no proxy answers, that command line itself
counts.

An answer counts only if the listener is root's, or that of our own user (`commands.proxy_pages`), and is checked
as a file would be.
"""

import http
import http.client
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from ipvsproxy.base.errors import plain
from ipvsproxy.commands.invocation import Invocation
from ipvsproxy.commands.proxy_pages import ask
from ipvsproxy.config import Listen
from ipvsproxy.config.assemble import config as assembled
from ipvsproxy.config.check import problems
from ipvsproxy.config.commandline import WrongUsage, parse
from ipvsproxy.config.document import KUBE_PROXY, OURS, ConfigFileError, decode
from ipvsproxy.config.meaning import listen as read_listen
from ipvsproxy.config.settle import ENVIRONMENT_PREFIX, HEALTHZ, METRICS, NODE_NAME, Settings, settle
from ipvsproxy.config.table import SETTINGS
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.process import (
    PROC,
    arguments_of,
    environment,
    path_from_here,
    without_interpreter,
)
from ipvsproxy.probe.web import flags, get

PAGE, FLAGS, KUBE_PROXY_PART, OUR_PART = "/configz", "/flagz", "kubeproxy.config.k8s.io", "ipvsproxy.io"
LONGEST = 1 << 20
MASTER, PATHS = "--master", ("clientConnection.kubeconfig", "manifests")
ENVIRONMENT = "NODE_NAME"
"""What our manifests, and those of kubeadm, set by the downward API."""
BESIDE = frozenset((METRICS, HEALTHZ, NODE_NAME, "--metrics-port", "--healthz-port"))
"""Settings that state where the running proxy is, or who it is, and not what it should do."""
GIVEN = "those that this command was given"


class RunningSettings(NamedTuple):
    """Settings of the running proxy by their keys, none if it does not tell; where from, or why there are none."""

    values: Mapping[str, Any]
    origin: str
    metrics: str = ""


def adopted(invocation: Invocation) -> Invocation:
    """Return what a command is called with, with the settings of the running proxy unless it was given any."""
    settings = invocation.settings
    if any(map(_counts, settings.origins, settings.origins.values())):
        return _with(invocation, settings.values, GIVEN)
    found = find(settings)
    if not found.values:
        return _with(invocation, settings.values, f"the defaults of this command: {found.origin}")
    own = {key: settings.values[key] for key in settings.origins}
    values = {**settings.values, **found.values, **own}
    return _with(invocation, values, f"those of the running proxy, from {found.origin}", name_is_known=True)


def _counts(key: str, origin: str) -> bool:
    """Whether a setting that was given means that the command is to have settings of its own.

    Not so a variable: in the proxy's pod a command gets those of the proxy.
    """
    return key not in BESIDE and not key.startswith("logging.") and not origin.startswith(ENVIRONMENT_PREFIX)


def at_its_address(invocation: Invocation) -> Invocation:
    """Return what a command is called with, with the metrics address of the running proxy unless one was given."""
    if METRICS in invocation.settings.origins or "--config" in invocation.settings.origins:
        return invocation
    address = _of_command_line(_holder())[0].get(METRICS)
    if address is None:
        return invocation
    return invocation._replace(config=replace(invocation.config, metrics_bind_address=read_listen(address)))


def _with(
    invocation: Invocation, values: Mapping[str, Any], origin: str, *, name_is_known: bool = False
) -> Invocation:
    """Return it with these settings; a name that was not given is that of the environment, else of the host."""
    name = values[NODE_NAME] or ("" if name_is_known else os.environ.get(ENVIRONMENT, ""))
    if name and not values[NODE_NAME]:
        origin = f"{origin}; the node's name is from the environment ({ENVIRONMENT})"
    settings = Settings({**values, NODE_NAME: name}, invocation.settings.origins)
    config = assembled(settings, socket.gethostname())
    return invocation._replace(
        config=replace(config, files=invocation.config.files), settings=settings, origin=origin
    )


def find(settings: Settings) -> RunningSettings:
    """Look for the running proxy, and return its settings or why they are not known."""
    pid = _holder()
    values, problem = _of_command_line(pid)
    address = (
        settings.values[METRICS] if METRICS in settings.origins else values.get(METRICS, settings.values[METRICS])
    )
    listen = read_listen(address)
    if listen is not None:
        try:
            return RunningSettings(_moved(_asked(listen), pid), f"http://{listen}{PAGE}")
        except (ConfigFileError, OSError, http.client.HTTPException) as error:
            problem = f"http://{listen}{PAGE}: {plain(error)}"
    if values:
        return RunningSettings(_moved(values, pid), f"the command line of process {pid}")
    return RunningSettings({}, problem or "no running proxy was found")


# /configz


def _asked(listen: Listen) -> dict[str, Any]:
    """Return the settings that a proxy reports. Raises ConfigFileError, OSError, HTTPException."""
    values = values_of(ask(listen, PAGE, LONGEST))
    status, text = get(listen, FLAGS)
    named = dict(flags(text)) if status == http.HTTPStatus.OK and len(text) <= LONGEST else {}
    if named.get("master"):
        values[MASTER] = named["master"]
    return values


def values_of(text: str) -> dict[str, Any]:
    """Return the settings in the text of /configz, defaults where it has none. Raises ConfigFileError."""
    try:
        parts = msgspec.json.decode(text, type=dict[str, dict[str, Any]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigFileError(f"is no /configz: {error}") from None
    if OUR_PART not in parts or KUBE_PROXY_PART not in parts:
        raise ConfigFileError("is not that of an ipvsproxy")
    values = {row.key: row.default for row in SETTINGS}
    for part, form in ((KUBE_PROXY_PART, KUBE_PROXY), (OUR_PART, OURS)):
        found = decode(msgspec.json.encode(parts[part]), form).values
        values |= {form.fields[field].key: value for field, value in found.items()}
    return checked(values)


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """Return settings that could be run with. Raises ConfigFileError."""
    if wrong := list(problems(Settings(values))):
        raise ConfigFileError("; ".join(wrong))
    return values


# The command line


def _holder() -> int:
    """Return the process that holds the lock, 0 where it cannot be seen or there is none."""
    holder = InstanceLock().look()
    return holder.pid if holder is not None else 0


def _of_command_line(pid: int) -> tuple[dict[str, Any], str]:
    """Return the settings of a process by its command line, or why they are not known."""
    if not pid:
        return {}, ""
    try:
        _, *given = without_interpreter(arguments_of(PROC / str(pid)))
        arguments = parse(given[1:] if given[:1] == ["run"] else given)
        path = arguments.values.get("--config")
        flags = {**arguments.values, **({"--config": path_from_here(pid, path)} if path else {})}
        return checked(settle(flags, environment(pid)).values), ""
    except (OSError, WrongUsage, ConfigFileError, ValueError) as error:
        return {}, f"the command line of process {pid}: {plain(error)}"


def _moved(values: Mapping[str, Any], pid: int) -> dict[str, Any]:
    """Return settings with the paths by which we reach the files that the process means."""
    moved = {key: path_from_here(pid, values[key]) for key in PATHS if pid and values[key]}
    return {**values, **moved}
