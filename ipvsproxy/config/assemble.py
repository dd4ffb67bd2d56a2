"""Settings into the `Config` that the machine runs with. They must have been checked."""

from typing import Any

from ipvsproxy.config.check import gate, other_mode
from ipvsproxy.config.document import OURS, tree
from ipvsproxy.config.model import KUBERNETES_VERSION, Config, ConntrackSettings, IpvsTimeouts
from ipvsproxy.config.settle import Settings
from ipvsproxy.config.table import BY_ATTRIBUTE, SETTINGS


def config(settings: Settings, host_name: str) -> Config:
    """Return what the settings mean on a host with this name."""
    values = settings.values
    version = values["--version"]
    return Config(
        node_name=(values["hostnameOverride"] or host_name).strip().lower(),
        conntrack=ConntrackSettings(**_attributes(values, "conntrack")),
        ipvs_timeouts=IpvsTimeouts(**_attributes(values, "ipvs_timeouts")),
        allow_external_ips=gate(values, "AllowServiceExternalIPs"),
        serve_flagz=gate(values, "ComponentFlagz"),
        serve_statusz=gate(values, "ComponentStatusz"),
        kubernetes_version=version if version.startswith("v") else KUBERNETES_VERSION,
        other_mode=other_mode(settings),
        document=tree({**values, "mode": "ipvs"}),
        own_document=tree(values, OURS),
        flags=tuple(_flags(settings)),
        files=tuple(settings.files),
        **_attributes(values, ""),
    )


def _attributes(values: dict[str, Any], group: str) -> dict[str, Any]:
    """Return the attributes of `Config`, or of one of its attributes, that are rows of the table."""
    rows = {name.rpartition("."): row for name, row in BY_ATTRIBUTE.items()}
    return {name: row.convert(values[row.key]) for (place, _, name), row in rows.items() if place == group}


def _flags(settings: Settings) -> list[tuple[str, str]]:
    rows = sorted((row for row in SETTINGS if row.flag), key=lambda row: row.flag)
    return [(row.flag, row.kind.show(settings.values[row.key])) for row in rows]
