"""What tests have around them, whatever started them: a terminal, a background job, a service, cron."""

from __future__ import annotations

import locale
import os
import re
import resource
import signal
import time

NOT_HONORED = re.compile(
    r"COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR|CLICOLOR_FORCE|TTY_COMPATIBLE|TTY_INTERACTIVE"  # of a terminal
    r"|KUBECONFIG|KUBERNETES_.*"  # of a cluster
    # How Python runs programs: warnings, checks, modules, input and output.
    r"|PYTHON(DEVMODE|INSPECT|IOENCODING|OPTIMIZE|PATH|SAFEPATH|STARTUP|UTF8|VERBOSE|WARNINGS)"
    # Settings of the proxy; what is left of ours chooses and equips a guest.
    r"|IPVSPROXY_(?!(KEPT|KERNEL|MIRROR|OLDER|RECORD|REQUIRE|USERLAND|VM_CPUS|VM_MEMORY)$).*"
)
OPEN_FILES = 4096


def settle() -> None:
    """Make them the same everywhere, before the first test."""
    _heed_signals()
    _open_standard_input()
    for name in [name for name in os.environ if NOT_HONORED.fullmatch(name)]:
        del os.environ[name]
    os.environ.update({"TZ": "UTC", "LC_ALL": "C.UTF-8", "TERM": "xterm"})
    os.environ.setdefault("HOME", "/")
    locale.setlocale(locale.LC_ALL, "C.UTF-8")  # of this program, too, which reads files of ours
    time.tzset()
    os.umask(0o022)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def without_proxies() -> None:
    """Servers of the tests are on this machine; an HTTP proxy would be asked for them."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]


def _heed_signals() -> None:
    """Programs that are started heed signals although a background job or nohup ignores them.

    A handler that does nothing ignores them here as before, and is not handed down to a program.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _open_standard_input() -> None:
    """Otherwise the first file that is opened becomes the standard input."""
    try:
        os.fstat(0)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
