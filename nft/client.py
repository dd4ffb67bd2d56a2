"""Carrying out transactions: the `Client` protocol and its libnftables implementation.

libnftables comes as the distribution's package `python3-nftables`, a thin ctypes layer over
libnftables.so.1; it is imported here and nowhere else. A client belongs to one thread, calls release the
interpreter lock, and the ruleset is never listed: reading back costs seconds where a change costs a
millisecond.
"""

import errno
import subprocess
import sys
from typing import Any, Protocol

from nft.errors import NftError
from nft.transaction import Transaction

PACKAGE_HINT = (
    "the Python binding of libnftables is missing: install the package python3-nftables "
    "(Debian, Ubuntu, Fedora) and use a virtual environment made with --system-site-packages"
)

LOOK = "from nftables import Nftables; Nftables().cmd('list tables')"


class Client(Protocol):
    """Something that carries out transactions atomically."""

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction.

        Raises NftError when nothing was changed.
        """

    def check(self, transaction: Transaction) -> None:
        """Find out whether a transaction would be carried out; nothing is changed.

        Raises NftError when it would be refused.
        """


class Libnftables:
    """A client on the kernel, through one libnftables context."""

    def __init__(self) -> None:
        self._nftables: Any = _binding()
        # Without this, every protocol name that is printed opens /etc/protocols.
        self._nftables.set_numeric_proto_output(True)

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction.

        Raises NftError when nothing was changed.
        """
        code, _, error = self._nftables.cmd(str(transaction))
        if code != 0:
            raise NftError.from_output(error)

    def check(self, transaction: Transaction) -> None:
        """Find out whether a transaction would be carried out: the kernel does it all, and then takes it back.

        Raises NftError when it would be refused.
        """
        self._nftables.set_dry_run(True)
        try:
            self.run(transaction)
        finally:
            self._nftables.set_dry_run(False)


def can_read_tables() -> bool:
    """Whether libnftables survives what is in this network namespace, tried in a process of its own.

    It reads the sets of all tables before a change. 1.0.6 ends with a segmentation fault when 1.1 has made one of
    them (seen with `set a { type ipv4_addr; }` of 1.1.3), in whatever table.
    """
    done = subprocess.run([sys.executable, "-c", LOOK], check=False, capture_output=True)  # noqa: S603 - ourselves
    return done.returncode >= 0


def _binding() -> Any:
    try:
        from nftables import Nftables
    except ImportError as error:
        raise NftError(errno.ENOENT, PACKAGE_HINT) from error
    try:
        return Nftables()
    except OSError as error:
        raise NftError(errno.ENOENT, f"libnftables.so.1 cannot be loaded: {error}") from error
