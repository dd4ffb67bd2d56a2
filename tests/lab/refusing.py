"""ipvsproxy with a frontend that nftables refuses: `refusing.py FILE run ...`.

No element of the planner's making is known that the kernel refuses by itself, so what is on its way to the kernel
is changed, as text and as netlink messages: while FILE exists, the frontend it names (address . protocol . port)
gets a verdict that leads to a chain that is not there. Refusing that is the kernel's own doing.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Sequence

from ipvsproxy.__main__ import main
from ipvsproxy.kernel.element_changes import KernelNft
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.ruleset.codec import key_text
from ipvsproxy.ruleset.schema import Field
from nft import Transaction

_TEXT, _CHANGE = Transaction.__str__, KernelNft._change
NOWHERE = "goto nowhere"


def poisoned(file: pathlib.Path, text: str) -> str:
    if not file.exists():
        return text
    return re.sub(f"({re.escape(file.read_text())} : )(?:accept|goto [a-z_]+)", rf"\1{NOWHERE}", text)


def poisoned_steps(file: pathlib.Path, steps: Sequence[ElementStep]) -> Sequence[ElementStep]:
    return [_poisoned(step, file.read_text()) for step in steps] if file.exists() else steps


def _poisoned(step: ElementStep, frontend: str) -> ElementStep:
    if step.value is None or Field.VERDICT not in step.slot.set.value or key_text(step.slot) != frontend:
        return step
    return ElementStep(step.slot, NOWHERE, replaces=step.replaces)


if __name__ == "__main__":
    name = pathlib.Path(sys.argv.pop(1))
    Transaction.__str__ = lambda self: poisoned(name, _TEXT(self))
    KernelNft._change = lambda self, steps: _CHANGE(self, poisoned_steps(name, steps))
    main()
