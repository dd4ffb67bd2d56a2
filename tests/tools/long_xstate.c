/*
 * For LD_PRELOAD: ptrace() as on a CPU with AMX, where the extended state (NT_X86_XSTATE) takes 11,008 bytes.
 *
 * As xstateregs_set (arch/x86/kernel/fpu/regset.c) it refuses all that is shorter; and it refuses tiles of AMX in the
 * header unless they were handed over, too. Reading says that there are such tiles, and fills up with zeroes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define LENGTH 11008
#define HEADER 512
#define TILES (3UL << 17)

typedef long (*call)(enum __ptrace_request, pid_t, void *, void *);

static long get_state(call real, pid_t pid, void *set, struct iovec *state)
{
	size_t room = state->iov_len < LENGTH ? state->iov_len : LENGTH;
	unsigned long *header = (void *)((char *)state->iov_base + HEADER);
	long result = real(PTRACE_GETREGSET, pid, set, state);

	if (result == 0 && state->iov_len <= room) {
		memset((char *)state->iov_base + state->iov_len, 0, room - state->iov_len);
		state->iov_len = room;
		*header |= TILES;
	}
	return result;
}

static long set_state(call real, pid_t pid, void *set, struct iovec *state)
{
	unsigned long *header = (void *)((char *)state->iov_base + HEADER);

	if (state->iov_len < LENGTH)
		return errno = EFAULT, -1;
	if (*header & TILES)
		return errno = EINVAL, -1;
	return real(PTRACE_SETREGSET, pid, set, state);
}

long ptrace(enum __ptrace_request request, ...)
{
	static call real;
	va_list rest;
	va_start(rest, request);
	pid_t pid = va_arg(rest, pid_t);
	void *address = va_arg(rest, void *), *data = va_arg(rest, void *);
	va_end(rest);

	if (!real)
		real = (call)dlsym(RTLD_NEXT, "ptrace");
	if (address == (void *)NT_X86_XSTATE && request == PTRACE_GETREGSET)
		return get_state(real, pid, address, data);
	if (address == (void *)NT_X86_XSTATE && request == PTRACE_SETREGSET)
		return set_state(real, pid, address, data);
	return real(request, pid, address, data);
}
