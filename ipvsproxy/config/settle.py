"""Flags, files and the environment into one value for every setting.

Which one wins is decided here and nowhere else (contract 1.3, 1.5):

* a `--config` file replaces all flags but those marked `always` in the table; flags that are ignored are noted
* our own settings are no part of that file: a flag wins over the environment, that over `--extra-config`
* the least pause between syncs is 1 s by default from flags and 0 from a file, as kube-proxy has it

Reading files is the only contact with the outside.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipvsproxy.base.address import format_endpoint, parse_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.config.document import KUBE_PROXY, ConfigFileError, Document, Form, decode
from ipvsproxy.config.document import OURS as OUR_FORM
from ipvsproxy.config.kinds import BadValue, format_duration
from ipvsproxy.config.meaning import SHORTEST_SYNC, detect_local_mode
from ipvsproxy.config.table import BY_FLAG, OURS, SETTINGS, Row, Status

HEALTHZ, METRICS, BIND = "healthzBindAddress", "metricsBindAddress", "bindAddress"
NODE_NAME, SYNC_PERIOD = "hostnameOverride", "ipvs.syncPeriod"
PORTS = {HEALTHZ: BY_FLAG["healthz-port"], METRICS: BY_FLAG["metrics-port"]}
"""The deprecated flag for the port of an address."""
ENVIRONMENT_PREFIX = "IPVSPROXY_"


@dataclass
class Settings:
    """Every setting by its key, where it comes from if it was given, what to tell the operator, and files read."""

    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[tuple[Path, bytes]] = field(default_factory=list)

    def name(self, key: str) -> str:
        """Return what the operator calls a setting: as it was given, or else its flag or field."""
        known = next((row for row in SETTINGS if row.key == key), None)
        return self.origins.get(key) or (f"--{known.flag}" if known and known.flag else key)

    def take(self, row: Row, value: Any, origin: str) -> None:
        """Set a value, noting it where it was given but has no effect."""
        if row.status is Status.ACCEPTED and value != row.default:
            self.notes.append(f"{origin}: accepted, but has no effect here")
        self.values[row.key] = value
        self.origins[row.key] = origin


def settle(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Give every setting its value. Raises ConfigFileError for a file or variable that cannot be read."""
    path = flags.get("--config")
    settings = Settings({row.key: _default(row, from_file=bool(path)) for row in SETTINGS})
    if path:
        _take_file(settings, Path(path), KUBE_PROXY)
    _take_ours(settings, flags, environment)
    _take_flags(settings, flags, beside_file=bool(path))
    _complete(settings, flags)
    return settings


def _default(row: Row, *, from_file: bool) -> Any:
    return row.default if from_file or row.flag_default is None else row.flag_default


def _take_file(settings: Settings, path: Path, form: Form) -> None:
    """Take what a file gives; a zero there means the default, unless the field knows null."""
    document = _read(settings, path, form)
    settings.notes += [f"{path}: {complaint}" for complaint in document.complaints]
    for name, value in document.values.items():
        row = form.fields[name]
        if value != row.kind.zero or row.nullable:
            settings.take(row, value, f"{path}: {form.kind}.{name}")


def _read(settings: Settings, path: Path, form: Form) -> Document:
    try:
        data = path.read_bytes()
        settings.files.append((path, data))
        return decode(data, form)
    except OSError as error:
        raise ConfigFileError(f"{path}: {plain(error)}") from None
    except ConfigFileError as error:
        raise ConfigFileError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _take_ours(settings: Settings, flags: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Take our own settings from `--extra-config` and the environment; an empty variable counts as none."""
    given = {}
    for row in OURS:
        variable, *aliases = (_variable(flag) for flag in (row.flag, *(alias.flag for alias in row.aliases)))
        for name in (*aliases, variable):
            if environment.get(name):
                given[row] = (_read_variable(row, name, environment[name]), name)
        settings.notes += [f"{name}: deprecated, use {variable}" for name in aliases if environment.get(name)]
    extra = BY_FLAG["extra-config"]
    path = flags.get(extra.key) or given.get(extra, ("",))[0]
    if path:
        _take_file(settings, Path(path), OUR_FORM)
    for row, (value, name) in given.items():
        settings.take(row, value, name)


def _variable(flag: str) -> str:
    return ENVIRONMENT_PREFIX + flag.upper().replace("-", "_")


def _read_variable(row: Row, name: str, text: str) -> Any:
    try:
        return row.kind.read(text)
    except BadValue as error:
        raise ConfigFileError(f"{name}: {error}") from None


def _take_flags(settings: Settings, flags: Mapping[str, Any], *, beside_file: bool) -> None:
    ignored = []
    for row in SETTINGS:
        if row.key not in flags or (row.key == NODE_NAME and not flags[row.key]):
            continue  # an empty name is none, and the file's counts
        if beside_file and not row.always:
            ignored.append(f"--{row.flag}")
        elif beside_file and row.kind.join:
            settings.take(row, row.kind.join(flags[row.key], settings.values[row.key]), f"--{row.flag}")
        else:
            settings.take(row, flags[row.key], f"--{row.flag}")
    if ignored:
        settings.notes.append(f"{', '.join(ignored)}: ignored, since --config is given")


def _complete(settings: Settings, flags: Mapping[str, Any]) -> None:
    """Fill in what depends on other settings (contract 1.2, 1.4, 1.7)."""
    values = settings.values
    values["mode"] = values["mode"] or "ipvs"
    values["detectLocalMode"] = values["detectLocalMode"] or str(detect_local_mode(""))
    if 0 < values[SYNC_PERIOD] < SHORTEST_SYNC:
        given = format_duration(values[SYNC_PERIOD])
        settings.notes.append(f"{settings.name(SYNC_PERIOD)}: {given} counts as {format_duration(SHORTEST_SYNC)}")
    ports_count = not flags.get("--config") and not flags.get("--write-config-to")
    for key, port in PORTS.items():
        if port.key in flags:
            settings.notes.append(f"{port.key}: deprecated, use {settings.name(key)}")
        values[key] = _listen(settings, key, values[port.key] if ports_count else port.default)


def _listen(settings: Settings, key: str, port: int) -> str:
    """Return IP:port, empty for no server; an empty flag means none, an empty field the default (contract 7.1)."""
    given = settings.values[key]
    if port == 0 or (not given and key in settings.origins):
        return ""
    return with_port(given or _default_host(settings.values[BIND], loopback=key == METRICS), port)


def _default_host(bind: str, *, loopback: bool) -> str:
    six = ":" in bind
    if loopback:
        return "::1" if six else "127.0.0.1"
    return "::" if six else "0.0.0.0"  # noqa: S104


def with_port(address: str, port: int) -> str:
    """Append a port to a bare IP; whatever else it is stays as it is, for `check` to judge."""
    try:
        return format_endpoint(parse_ip(address.strip("[]")), port)
    except ValueError:
        return address
