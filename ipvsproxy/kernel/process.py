"""What /proc has of another process: its command line, its environment, its files, and who listens at a port."""

from collections.abc import Iterator, Mapping
from pathlib import Path

PROC = Path("/proc")
LONGEST = 1 << 17
"""Bytes that are read of a command line or an environment at most."""
LISTENING = "0A"
"""TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp has it."""
ADDRESS, STATE, USER = 1, 3, 7


def arguments_of(folder: Path) -> list[str]:
    """Return the command line of a process by its folder below /proc. Raises OSError."""
    with (folder / "cmdline").open("rb") as file:
        return file.read(LONGEST).decode(errors="replace").rstrip("\0").split("\0")


def without_interpreter(arguments: list[str]) -> list[str]:
    """Return a command line that begins with the program, of `python program` and `python -m program` too."""
    if Path(arguments[0]).name.startswith("python") and len(arguments) > 1:
        return arguments[2:] if arguments[1] == "-m" else arguments[1:]
    return arguments[2:] if arguments[1:2] == ["-m"] else arguments


def environment(pid: int) -> Mapping[str, str]:
    """Return the environment that a process was started with; nothing where it may not be read."""
    try:
        with (PROC / str(pid) / "environ").open("rb") as file:
            pairs = file.read(LONGEST).decode(errors="replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, equals, value in (pair.partition("=") for pair in pairs) if equals}


def path_from_here(pid: int, text: str) -> str:
    """Return the path by which we reach what a process means by a path: it may have another root or folder."""
    folder = PROC / str(pid)
    try:
        is_shared = (folder / "ns/mnt").readlink() == (PROC / "thread-self/ns/mnt").readlink()
        if not text.startswith("/"):
            return str(folder / "cwd" / text)
    except OSError:
        return text
    return text if is_shared else f"{folder}/root{text}"


def listening_users(port: int) -> set[int]:
    """Return the users that listen at a TCP port in this network namespace, on any address. Raises OSError."""
    return set(_listening(port))


def _listening(port: int) -> Iterator[int]:
    for name in ("tcp", "tcp6"):
        table = PROC / "thread-self/net" / name
        if not table.exists():
            continue
        with table.open() as lines:
            next(lines, None)
            for arguments in map(str.split, lines):
                if arguments[STATE] == LISTENING and int(arguments[ADDRESS].rpartition(":")[2], 16) == port:
                    yield int(arguments[USER])
