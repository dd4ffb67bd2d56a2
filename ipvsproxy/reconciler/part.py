"""What the loop is made of: parts that know when they have something to do, and do it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from ipvsproxy.base.timer import Timer

RETRY_SECONDS = (0.1, 30.0)
"""The first and the longest pause after a part has failed."""


class PartFailed(Exception):
    """A part could not do all of its work; the message reports what."""


class Part(ABC):
    """One part. Belongs to the loop's thread.

    A part that fails is tried again after a pause (`retry`), ever longer, and hinders no other part. So what it
    has learned or done by then must not be lost with the exception.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.retry = Timer(clock, *RETRY_SECONDS)

    @property
    @abstractmethod
    def next_due(self) -> float:
        """When `run` has something to do: a value of the loop's clock, infinity for never."""

    @abstractmethod
    def run(self, now: float) -> int:
        """Do what is due and return the number of changes to the kernel.

        Raises KernelError, NftError, PartFailed.
        """
