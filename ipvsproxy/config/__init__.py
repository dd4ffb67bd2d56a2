"""Settings: from flags, files and the environment to one checked, frozen `Config`."""

from ipvsproxy.config.model import (
    PRIMARY,
    Config,
    Conntrack,
    DetectLocalMode,
    IpvsTimeouts,
    Listen,
    LogFormat,
    VipMode,
)

__all__ = [
    "PRIMARY",
    "Config",
    "Conntrack",
    "DetectLocalMode",
    "IpvsTimeouts",
    "Listen",
    "LogFormat",
    "VipMode",
]
