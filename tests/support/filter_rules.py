"""Rules of other programs as the kernel sends them: expressions of nf_tables, and blobs of legacy iptables."""

import struct

from ipvsproxy.kernel.filters.legacy import PIECE
from ipvsproxy.kernel.filters.xtables import Blob
from ipvsproxy.kernel.wire.netlink import attribute

FORWARD, SIZE = 2, 112
"""The number of the hook, and the size of the head of an entry."""


def u32(value):
    return struct.pack(">I", value & 0xFFFFFFFF)


def expression(name, *fields):
    data = b"".join(attribute(number, payload) for number, payload in fields)
    return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, data))


def verdict(code, chain=""):
    named = attribute(2, chain.encode() + b"\0") if chain else b""
    return expression("immediate", (1, u32(0)), (2, attribute(2, attribute(1, u32(code)) + named)))


def target(name, revision=0, info=b""):
    return expression("target", (1, name.encode() + b"\0"), (2, u32(revision)), (3, info))


def standard(code):
    return PIECE.pack(40, b"", 0) + struct.pack("=i4x", code)


def entry(target, source=b"", inverted=0, out=b""):
    head = bytearray(SIZE)
    if source:
        head[0:4], head[8:12] = source, b"\xff\xff\0\0"
    head[32 : 32 + len(out)] = out
    head[64 : 64 + len(out)] = b"\xff" * len(out)
    head[83] = inverted
    struct.pack_into("=HH", head, 88, SIZE, SIZE + len(target))
    return bytes(head) + target


def blob(*entries, underflow):
    offsets = [0]
    for piece in entries:
        offsets.append(offsets[-1] + len(piece))
    hooks, ends = [0] * 5, [0] * 5
    hooks[FORWARD], ends[FORWARD] = 0, offsets[underflow]
    info = bytes(32) + struct.pack("=11I", 1 << FORWARD, *hooks, *ends) + bytes(8)
    return Blob("filter", info, b"".join(entries))
