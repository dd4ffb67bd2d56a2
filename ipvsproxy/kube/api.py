"""List and watch as the Kubernetes API speaks them: what is asked, what comes back, what can go wrong.

In: the bytes of answers. Out: `Page`s of a list, `WatchEvent`s of a stream, or `RequestFailed`, the one exception
for a request that came to nothing. Objects stay undecoded JSON (`msgspec.Raw`) here, so that a malformed one
affects only itself. Nothing here opens a connection: that is a `Transport`, see `kube.client`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol as Interface
from typing import TypeVar

import msgspec

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.ceilings import ANSWER_BYTES, OBJECT_BYTES

PAGE_SIZE = 500
"""Objects of one page of a list, as client-go asks for them."""
GONE = 410
UNAUTHORIZED = 401
# The connection failed before there was a status, or broke later.
NO_ANSWER = 0
# The server answered with success, but sent something that is no list and no event.
MALFORMED = 200
MAX_LINE = OBJECT_BYTES + (1 << 16)
MAX_REASON = 300

T = TypeVar("T")

Observe = Callable[[str, str, str, float], None]
"""Called for each request: verb, host, status (`<error>` without an answer), seconds to the response headers."""


class RequestFailed(Exception):
    """A list or watch that came to nothing: an HTTP status, a failure of the connection, or nonsense.

    `retry_after` is how many seconds the server asked us to stay away, 0 when it did not.
    """

    def __init__(self, reason: str, status: int = NO_ANSWER, retry_after: float = 0) -> None:
        super().__init__(reason)
        self.reason = reason[:MAX_REASON]
        self.status = status
        self.retry_after = retry_after


class TooLarge(RequestFailed):
    """An answer that is larger than what is taken of it."""

    def __init__(self, most: int) -> None:
        super().__init__(f"the answer has more than {most} bytes, decompressed", MALFORMED)


class Response(Interface):
    """An answer whose body is still to be read. Reading raises RequestFailed when the connection breaks."""

    @property
    def status(self) -> int:
        """The HTTP status."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, found in any case."""

    def read(self, most: int = ANSWER_BYTES) -> bytes:
        """Return the whole body. Raises TooLarge, and RequestFailed as well when it takes too long."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives, without waiting for more than is there; pieces may be empty."""

    def interrupt(self) -> None:
        """Make a read that is blocked in another thread return."""

    def close(self) -> None:
        """Give the connection back or close it."""


class Transport(Interface):
    """The connection to an API server. Requests raise RequestFailed if there is no answer."""

    def list(self, kind: Kind, limit: int, continue_: str, resource_version: str) -> Response:
        """Ask for a page of all objects of a kind."""

    def watch(self, kind: Kind, resource_version: str, timeout_seconds: int) -> Response:
        """Ask for what changes after a version, for a time, with bookmarks."""

    def refresh(self) -> None:
        """Fetch credentials anew: the server did not accept those at hand."""


class ListMeta(msgspec.Struct, rename="camel"):
    """Metadata of a list."""

    resource_version: str
    continue_: str | None = msgspec.field(default=None, name="continue")


class Page(msgspec.Struct, rename="camel"):
    """A part of a list."""

    kind: str
    metadata: ListMeta
    items: list[msgspec.Raw] | None


class WatchEvent(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: int | None = None


class _Status(msgspec.Struct):
    """What the API returns instead of an object when something is wrong."""

    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: _Details | None = None


_PAGE = msgspec.json.Decoder(Page)
_EVENT = msgspec.json.Decoder(WatchEvent)
_STATUS = msgspec.json.Decoder(_Status)


def read_page(kind: Kind, body: bytes) -> Page:
    """Decode a part of a list.

    Raises RequestFailed when it is anything else, so that no answer of a proxy passes for an empty list.
    """
    page = _sense(_PAGE, body, "list")
    if page.kind != f"{kind}List" or not page.metadata.resource_version:
        raise RequestFailed(f"no {kind}List but {page.kind[:40]!r}", MALFORMED)
    return page


def read_event(line: bytes) -> WatchEvent:
    """Decode a line of a watch. Raises RequestFailed when it is none."""
    return _sense(_EVENT, line, "watch event")


def _sense(decoder: "msgspec.json.Decoder[T]", data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestFailed(f"malformed {what}: {error}", MALFORMED) from None


def failure_of(status: int, body: bytes | msgspec.Raw, headers: Mapping[str, str]) -> RequestFailed:
    """Return what an error answer, or an ERROR event of a watch, means."""
    try:
        found = _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _Status()
    code = GONE if found.reason in ("Expired", "Gone") else found.code or status
    text = found.message or found.reason or "no reason given"
    return RequestFailed(f"{code} {text}", code, max(_seconds(headers.get("Retry-After")), _wish(found)))


def _seconds(header: str | None) -> float:
    # The other form of the header, a date, is not used by API servers.
    return float(header) if header and header.isascii() and header.isdigit() else 0


def _wish(status: _Status) -> float:
    return float(status.details.retry_after_seconds or 0) if status.details else 0


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a stream into lines, each as soon as it is complete; an unfinished last line is dropped.

    Raises RequestFailed when a line has no end.
    """
    parts: list[bytes] = []
    size = 0
    for chunk in filter(None, chunks):
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise RequestFailed(f"a line of a watch is longer than {MAX_LINE} bytes", MALFORMED)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts, size = [rest[-1]], len(rest[-1])
