"""Leaving the network namespace behind, for a fresh one that nothing has touched."""

import ctypes
import os
import subprocess

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def fresh_network():
    """Move this thread to a new network namespace with loopback up, as on every node.

    Without any local address IPVS refuses destinations: the kernel has no table to look them up in.
    """
    if _libc.unshare(CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
