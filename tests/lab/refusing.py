"""ipvsproxy with a frontend that nftables refuses: `refusing.py FILE run ...`.

No element of the planner's making is known that the kernel refuses by itself, so what is on its way to the kernel
is changed, as text and as netlink messages: while FILE exists, the frontend it names (address . protocol . port)
gets a verdict that leads to a chain that is not there. Refusing that is the kernel's own doing.
"""

from __future__ import annotations

import pathlib
import re
import sys

from ipvsproxy.__main__ import main
from ipvsproxy.kernel.element_changes import ElementTransaction, KernelNft
from ipvsproxy.ruleset.codec import key_text
from ipvsproxy.ruleset.elements import Element, ElementKey, Value
from ipvsproxy.ruleset.schema import Field
from nft import Transaction

_TEXT, _CHANGE = Transaction.__str__, KernelNft._change
NOWHERE = "goto nowhere"


def poisoned(file: pathlib.Path, text: str) -> str:
    if not file.exists():
        return text
    return re.sub(f"({re.escape(file.read_text())} : )(?:accept|goto [a-z_]+)", rf"\1{NOWHERE}", text)


def poisoned_elements(file: pathlib.Path, transaction: ElementTransaction) -> ElementTransaction:
    if not file.exists():
        return transaction
    frontend = file.read_text()
    come = {kind: [_poisoned(*item, frontend) for item in found] for kind, found in transaction.come.items()}
    return ElementTransaction(transaction.gone, come)


def _poisoned(slot: ElementKey, value: Value, frontend: str) -> Element:
    is_it = Field.VERDICT in slot.set.value and key_text(slot) == frontend
    return slot, NOWHERE if is_it else value


if __name__ == "__main__":
    name = pathlib.Path(sys.argv.pop(1))
    Transaction.__str__ = lambda self: poisoned(name, _TEXT(self))
    KernelNft._change = lambda self, transaction: _CHANGE(self, poisoned_elements(name, transaction))
    main()
