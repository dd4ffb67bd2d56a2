"""ipvsproxy with a frontend that nftables refuses: `refusing.py FILE run ...`.

No element of the planner's making is known that the kernel refuses by itself, so the text on its way to
libnftables is changed: while FILE exists, the frontend it names (address . protocol . port) gets a verdict that
leads to a chain that is not there. Refusing that is the kernel's own doing.
"""

from __future__ import annotations

import pathlib
import re
import sys

from ipvsproxy.__main__ import main
from nft import Transaction

_REAL = Transaction.__str__


def poisoned(file: pathlib.Path, text: str) -> str:
    if not file.exists():
        return text
    return re.sub(f"({re.escape(file.read_text())} : )(?:accept|goto [a-z_]+)", r"\1goto nowhere", text)


if __name__ == "__main__":
    name = pathlib.Path(sys.argv.pop(1))
    Transaction.__str__ = lambda self: poisoned(name, _REAL(self))
    main()
