"""What a command is called with, and the ways in which it can fail.

A command is a module with `run(given) -> int`, which returns an exit status. It raises `WrongUsage` for words that
mean nothing (status 2) and `Failed` when it cannot do its work (status 1): one line each, no traceback.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ipvsproxy.config import Config
from ipvsproxy.config.commandline import WrongUsage

__all__ = ["Failed", "Given", "WrongUsage"]


class Failed(Exception):
    """A command that cannot do its work; the text is one line."""


class Given(NamedTuple):
    """Words without a flag, the command's own flags by name (with defaults), and the settings of the proxy."""

    words: tuple[str, ...]
    flags: Mapping[str, Any]
    config: Config
