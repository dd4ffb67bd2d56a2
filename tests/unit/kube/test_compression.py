"""What pieces of compressed answers contain."""

import gzip
import itertools
import random

import pytest

from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.compression import decoded

BODY = random.Random(1).randbytes(5000) + b"x" * 5000
EMPTY_BLOCK = b"\0\0\0\xff\xff"
"""Of RFC 1951: stored, no bytes."""


def cut(data, size):
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
@pytest.mark.parametrize("most", [1, 64, 5000, 10_000, 1 << 20])
@pytest.mark.parametrize("members", [1, 3])
def test_pieces_of_any_size_have_the_same_content(size, most, members):
    packed = b"".join(map(gzip.compress, cut(BODY, -(-len(BODY) // members))))
    found = list(decoded(cut(packed, size), "gzip", most))
    assert b"".join(found) == BODY
    assert max(map(len, found)) <= most


def test_what_is_not_compressed_is_passed_on():
    assert list(decoded([b"a", b"b"], "", 1)) == list(decoded([b"a", b"b"], " Identity", 1)) == [b"a", b"b"]


def test_a_piece_without_content_is_an_empty_one():
    endless = itertools.chain([gzip.compress(b"")[:10]], itertools.repeat(EMPTY_BLOCK))
    assert list(itertools.islice(decoded(endless, "gzip", 10), 100)) == [b""] * 100


@pytest.mark.parametrize("content", [b"{}", gzip.compress(BODY)[:-8] + bytes(8), gzip.compress(b"") + b"more"])
def test_what_cannot_be_decompressed_is_a_failed_request(content):
    with pytest.raises(RequestFailed, match="cannot be decompressed"):
        list(decoded([content], "gzip", 1 << 20))


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "x" * 1000])
def test_other_encodings_were_not_asked_for(encoding):
    with pytest.raises(RequestFailed, match="not asked for"):
        list(decoded([b"{}"], encoding, 10))
