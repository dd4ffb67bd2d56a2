"""Has kube-proxy left rules in legacy iptables? They can be seen from here, but only its program can change them.

The kernel lists the legacy tables in use in /proc/net/ip_tables_names and hands out the rules of one as a blob
that holds the names of its chains (IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES of
include/uapi/linux/netfilter_ipv4/ip_tables.h and ip6_tables.h). Python's getsockopt returns 1 KiB at most: ctypes.
"""

import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

GET_INFO, GET_ENTRIES = 64, 65
NAME_BYTES, INFO_BYTES, SIZE_AT, ENTRIES_AT = 32, 84, 80, 40
SURELY_KUBE_PROXYS = (b"KUBE-SERVICES\0", b"KUBE-FORWARD\0", b"KUBE-IPVS-FILTER\0")
PROGRAMS = {
    "iptables-legacy": (socket.AF_INET, socket.SOL_IP, "ip_tables_names"),
    "ip6tables-legacy": (socket.AF_INET6, socket.IPPROTO_IPV6, "ip6_tables_names"),
}


class Blob(NamedTuple):
    """One legacy table: its name, what the kernel reports about it (ipt_getinfo), and its entries."""

    table: str
    info: bytes
    entries: bytes


def legacy_leftovers() -> list[str]:
    """Return the programs that have rules of kube-proxy: iptables-legacy, ip6tables-legacy, or none of them."""
    return [program for program in PROGRAMS if any(map(_is_kube_proxys, blobs(program)))]


def _is_kube_proxys(blob: Blob) -> bool:
    return any(name in blob.entries for name in SURELY_KUBE_PROXYS)


def blobs(program: str, only: str = "") -> list[Blob]:
    """Return each legacy table in use, or only one of them; none where they cannot be read."""
    family, level, listing = PROGRAMS[program]
    try:
        found = Path("/proc/thread-self/net", listing).read_bytes().split()
        names = [name for name in found if only in ("", name.decode())]
        if not names:
            return []
        with socket.socket(family, socket.SOCK_DGRAM) as channel:
            return [_blob(channel, level, name) for name in names]
    except OSError:
        return []


def _blob(channel: socket.socket, level: int, name: bytes) -> Blob:
    info = _request(channel, level, GET_INFO, name.ljust(INFO_BYTES, b"\0"))
    (size,) = struct.unpack_from("=I", info, SIZE_AT)
    request = name.ljust(NAME_BYTES, b"\0") + struct.pack("=I", size)
    entries = _request(channel, level, GET_ENTRIES, request.ljust(ENTRIES_AT + size, b"\0"))
    return Blob(name.decode(), info, entries[ENTRIES_AT:])


def _request(channel: socket.socket, level: int, option: int, request: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(channel.fileno(), level, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer.raw
