"""Files that we make: only their owner can read them, and nothing that is there already is followed or kept."""

import os
import secrets
import stat
from pathlib import Path

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def create(path: Path) -> int:
    """Make a file where there is nothing yet, not even a symbolic link; return its descriptor. Raises OSError."""
    return os.open(path, NEW, 0o600)


def replace(path: Path, text: str) -> None:
    """Write a file in one step; what was there, also a symbolic link, is gone then. Raises OSError.

    A device or a pipe is written to.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "w") as file:
            file.write(text)
        return
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(create(made), "w") as file:
            file.write(text)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
