"""Settings: from flags, files and the environment to one checked, frozen `Config`."""

from ipvsproxy.config.model import Config, ConntrackSettings, IpvsTimeouts
from ipvsproxy.config.values import (
    ALL_SERVICES,
    PRIMARY,
    DataPath,
    DetectLocalMode,
    Listen,
    LogFormat,
    TenantPods,
    TenantRefusal,
    VipMode,
)

__all__ = [
    "ALL_SERVICES",
    "PRIMARY",
    "Config",
    "ConntrackSettings",
    "DataPath",
    "DetectLocalMode",
    "IpvsTimeouts",
    "Listen",
    "LogFormat",
    "TenantPods",
    "TenantRefusal",
    "VipMode",
]
