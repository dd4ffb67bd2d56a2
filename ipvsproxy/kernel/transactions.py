"""Carrying out nft transactions and recognising them when the kernel notifies them.

The kernel numbers the transactions of a network namespace (its generations). One that was carried out between two
looks at that number is ours; when others had one at the same moment, the name of the program has to tell.
"""

from collections import deque
from contextlib import suppress
from pathlib import Path

from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.notification import RulesChanged
from nft import Client, Transaction

MAX_OWN, MAX_UNSURE = 4096, 64
"""Transactions of ours, or one of ours among some, whose notification may not have come yet."""
OWN_NAME = Path("/proc/self/comm").read_text().strip()


class Transactions:
    """Our transactions. Belongs to the loop's thread."""

    def __init__(self, nft: Client, ruleset: Ruleset) -> None:
        self._nft = nft
        self._ruleset = ruleset
        self._own: deque[int] = deque(maxlen=MAX_OWN)
        self._unsure: deque[int] = deque(maxlen=MAX_UNSURE)

    def run(self, transaction: Transaction) -> None:
        """Carry out a transaction and remember its number. Raises NftError.

        One whose number cannot be read is taken for another program's: what it did is then done once more.
        """
        before = self._number()
        self._nft.run(transaction)
        after = self._number()
        if before is None or after is None:
            return
        numbers = range(before + 1, after + 1)[-MAX_UNSURE:]
        (self._own if len(numbers) == 1 else self._unsure).extend(numbers)

    def check(self, transaction: Transaction) -> None:
        """Have a transaction judged without carrying it out. Raises NftError when it would be refused."""
        self._nft.check(transaction)

    def _number(self) -> int | None:
        """Return the number of the last transaction. That it cannot be read must not hide what was done."""
        with suppress(KernelError):
            return self._ruleset.generation()
        return None

    def consume_own(self, notice: RulesChanged) -> bool:
        """Whether a notice is about one of ours; each comes once and is then forgotten, with those before it."""
        if notice.generation not in self._own:
            return notice.generation in self._unsure and notice.program == OWN_NAME
        while self._own.popleft() != notice.generation:
            pass
        return True
