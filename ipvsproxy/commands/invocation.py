"""What a command is called with, and how it can fail.

A command is a module with `run(invocation) -> int`, which returns an exit status. It raises `WrongUsage` for
arguments that mean nothing (status 2) and `CommandFailed` when it cannot do its work (status 1): one line each, no
traceback.
"""

import errno
from collections.abc import Mapping
from typing import Any, NamedTuple

from ipvsproxy.base.errors import located
from ipvsproxy.config import Config
from ipvsproxy.config.commandline import WrongUsage
from ipvsproxy.config.settle import Settings

__all__ = ["CommandFailed", "Invocation", "WrongUsage", "unreadable"]


class CommandFailed(Exception):
    """A command that cannot do its work; the text is one line."""


def unreadable(error: Exception) -> CommandFailed:
    """Return what a command raises when the kernel does not tell it what it must know."""
    needs = "; it takes the capability CAP_NET_ADMIN" if getattr(error, "errno", 0) == errno.EPERM else ""
    return CommandFailed(f"the kernel cannot be read: {located(error)}{needs}")


class Invocation(NamedTuple):
    """Words without a flag, the command's own flags by name (with defaults), and the settings of the proxy.

    `settings` are those of `config` before their assembly, `origin` is where they come from.
    """

    arguments: tuple[str, ...]
    flags: Mapping[str, Any]
    config: Config
    settings: Settings
    origin: str = ""
