"""Runs a program that can make no other system calls than these: `system_calls.py PROGRAM ...`.

They are what strace has shown of the proxy, and their likes on machines and Pythons that have others.
What it tries beside them is refused: a new thread by clone3 (the C library goes on with clone), rseq and
close_range, which not every container runtime allows and nobody misses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

NAMES = """
accept4 access arch_prctl bind brk clock_nanosleep clone close connect dup2 epoll_create1 epoll_ctl epoll_pwait
epoll_wait eventfd2 execve exit exit_group faccessat fcntl fstat futex getcwd getdents64 getegid geteuid getgid
getpeername getpid getppid getrandom getsockname getsockopt gettid getuid inotify_add_watch inotify_init1
inotify_rm_watch ioctl listen lseek madvise mmap mprotect mremap munmap newfstatat openat pipe2 poll ppoll pread64
prlimit64 pselect6 read readlink readlinkat recvfrom recvmsg rt_sigaction rt_sigprocmask rt_sigreturn
rt_sigtimedwait sched_getaffinity sched_yield sendmsg sendto set_robust_list set_tid_address setsockopt shutdown
socket socketpair sysinfo uname vfork wait4 write writev

clock_getres clock_gettime getcpu gettimeofday time
"""
"""The last ones only where the kernel has no vDSO for them."""
ALLOWED = NAMES.split()
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
"""SCMP_ACT_ALLOW, and SCMP_ACT_ERRNO without its errno."""
UNKNOWN = -1


def why_not() -> str:
    """Why system calls cannot be filtered here; empty if they can."""
    with open("/proc/self/status") as status:  # noqa: PTH123
        if "\nSeccomp:" not in status.read():
            return "the kernel has no seccomp"
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        return str(error)
    return ""


def restrict() -> None:
    """Refuse all other system calls to this process from now on, and to what it executes."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p
    ]  # fmt: skip
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    context = library.seccomp_init(REFUSE | errno.EPERM)
    # As container runtimes do: the C library goes on with clone only when it is told that there is no clone3.
    actions = {"clone3": REFUSE | errno.ENOSYS, **dict.fromkeys(ALLOWED, ALLOW)}
    for name, action in actions.items():
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == UNKNOWN or library.seccomp_rule_add_array(context, action, number, 0, None) != 0:
            raise OSError(f"no rule can be made for {name}")
    if library.seccomp_load(context) != 0:
        raise OSError("the filter cannot be loaded")


if __name__ == "__main__":
    restrict()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - that is what it is for
