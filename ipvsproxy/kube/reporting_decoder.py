"""Decodes objects of one kind, and logs what of them cannot be used.

A problem is logged once for as long as it is the same, and no more lines about a namespace than its budget has.
Belongs to the thread that follows the objects.
"""

import time
from collections.abc import Container

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LINES, Budget, namespace_of
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.kube.decoded import Decoded, InvalidObject

log = structlog.get_logger()


class ReportingDecoder:
    """Remembers the problems of each object by its key."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._problems: dict[str, tuple[str, ...]] = {}
        self._lines = Budget(time.monotonic, LINES)
        self._log = log.bind(kind=str(kind))

    def decode(self, key: str, raw: msgspec.Raw) -> Decoded | None:
        """Decode an object, None if it cannot be used."""
        try:
            decoded = decode_json(self._kind, raw)
        except InvalidObject as refused:
            if self._is_new(key, (str(refused),)):
                self._warn(key, messages.OBJECT_REFUSED, field=refused.field, err=refused.reason)
            return None
        if decoded.skipped:
            self._log.debug("Left object to other programs", object=key, reason=decoded.skipped)
        if self._is_new(key, decoded.complaints) and decoded.complaints:
            self._warn(key, messages.OBJECT_PART_IGNORED, err="; ".join(decoded.complaints))
        return decoded

    def forget(self, key: str) -> None:
        """An object is gone."""
        self._problems.pop(key, None)

    def keep(self, keys: Container[str]) -> None:
        """All objects but these are gone."""
        self._problems = {key: problems for key, problems in self._problems.items() if key in keys}

    def _warn(self, key: str, message: str, **more: object) -> None:
        """Log a line about an object, unless its namespace has had too many."""
        namespace = namespace_of(key)
        if not self._lines.take(namespace):
            return
        self._log.warning(message, object=key, **more)
        if count := self._lines.take_withheld(namespace):
            self._log.warning(
                "Suppressed more log lines about objects of a namespace", namespace=namespace, count=count
            )

    def _is_new(self, key: str, problems: tuple[str, ...]) -> bool:
        before = self._problems.pop(key, ())
        if problems:
            self._problems[key] = problems
        elif before and self._lines.take(namespace_of(key)):
            self._log.info(messages.OBJECT_ACCEPTED, object=key)
        return problems != before
