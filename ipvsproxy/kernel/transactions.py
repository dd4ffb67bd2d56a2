"""Carrying out nft transactions and knowing them again when the kernel tells of them.

The kernel numbers the transactions of a network namespace (its generations). One that was carried out between two
looks at that number is ours; when others had one at the same moment, the name of the program has to tell.
"""

from collections import deque
from pathlib import Path

from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.plan.notice import RulesNoticed
from nft import Client, Transaction

MAX_OWN, MAX_UNSURE = 4096, 64
"""Transactions of ours, or one of ours among some, of which we may not have been told yet."""
OWN_NAME = Path("/proc/self/comm").read_text().strip()


class Transactions:
    """Our transactions. Belongs to the loop's thread."""

    def __init__(self, nft: Client, ruleset: Ruleset) -> None:
        self._nft = nft
        self._ruleset = ruleset
        self._own: deque[int] = deque(maxlen=MAX_OWN)
        self._unsure: deque[int] = deque(maxlen=MAX_UNSURE)

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction and remember its number. Raises NftError."""
        before = self._ruleset.generation()
        self._nft.run(transaction)
        numbers = range(before + 1, self._ruleset.generation() + 1)[-MAX_UNSURE:]
        (self._own if len(numbers) == 1 else self._unsure).extend(numbers)

    def made(self, notice: RulesNoticed) -> bool:
        """Whether a notice is about one of ours; each is told once and then forgotten, with those before it."""
        if notice.generation not in self._own:
            return notice.generation in self._unsure and notice.program == OWN_NAME
        while self._own.popleft() != notice.generation:
            pass
        return True
