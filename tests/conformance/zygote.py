"""Start proxies without paying for their imports each time, which take ten seconds under emulation.

One interpreter imports ipvsproxy and then forks for each line on its standard input: a JSON object with the
network namespace, the command-line arguments and the log file. The child is a process of its own that runs
ipvsproxy's own `main` with these arguments; its number is the answer. At the end of the input all
children are killed, so none outlives a runner that died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from tests.lab import netns


def preload() -> None:
    """Import everything that `run` needs, and start nothing."""


def child(where: str, arguments: list[str], log: str) -> None:
    """Become a proxy in the namespace."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, target)
    there = os.open(netns.NETNS_FOLDER / where, os.O_RDONLY)
    netns._setns(there)
    os.close(there)
    sys.argv = ["ipvsproxy", *arguments]
    from ipvsproxy.__main__ import main

    main()


def fork(where: str, arguments: list[str], log: str) -> int:
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        child(where, arguments, log)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    children = []
    # Ended children vanish by themselves: their number then is no process any more.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    preload()
    for line in sys.stdin:
        children.append(fork(**json.loads(line)))
        print(children[-1], flush=True)
    for number in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


if __name__ == "__main__":
    serve()
