"""What compressed answers contain, piece by piece: no piece is larger than asked for, and none waits for content.

urllib3 goes on reading until there is content, without an end where there is none.
"""

import zlib
from collections.abc import Iterable, Iterator

from ipvsproxy.kube.api import MALFORMED, RequestFailed

GZIP = 31
"""A window of 32 KiB, and 16 for the header and trailer of gzip (zlib.decompressobj)."""
IDENTITY, NAMES = ("", "identity"), ("gzip", "x-gzip")


def decoded(pieces: Iterable[bytes], encoding: str, most: int) -> Iterator[bytes]:
    """Return what pieces of a body contain, at most so many bytes at a time. Raises RequestFailed.

    Some may contain nothing.
    """
    name = encoding.strip().lower()
    if name in IDENTITY:
        return iter(pieces)
    if name not in NAMES:
        raise RequestFailed(f"the answer has an encoding that was not asked for: {encoding[:40]!r}", MALFORMED)
    return _unpacked(pieces, most)


def _unpacked(pieces: Iterable[bytes], most: int) -> Iterator[bytes]:
    inflate = zlib.decompressobj(GZIP)
    for piece in pieces:
        rest, more = piece, True
        while more:
            try:
                found = inflate.decompress(rest, most)
            except zlib.error as error:
                raise RequestFailed(f"the answer cannot be decompressed: {error}", MALFORMED) from None
            rest = inflate.unconsumed_tail
            more = bool(rest) or len(found) == most
            if inflate.eof:  # RFC 1952: another member may follow
                rest, inflate = inflate.unused_data, zlib.decompressobj(GZIP)
                more = bool(rest)
            yield found
