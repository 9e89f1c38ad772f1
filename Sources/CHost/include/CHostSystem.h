#pragma once

// System calls that have no importable wrapper. Those that return int give 0 or the (positive) error number,
// those that return a descriptor give it or the negated error number: none leaves its result in errno only.

#include <errno.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

// ioctl() with a pointer argument; -1 and errno as the C function.
static inline int martlet_ioctl(int fd, unsigned long request, void *argument)
{
	return ioctl(fd, request, argument);
}

// ioctl() with an integer argument; -1 and errno as the C function.
static inline int martlet_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
	return ioctl(fd, request, argument);
}

static inline int martlet_prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)
{
	return prctl(option, a, b, c, d);
}

// Flags of memfd_create() and seals of fcntl(), which the C library declares under _GNU_SOURCE only.
enum {
	MARTLET_MFD_CLOEXEC = 0x1,
	MARTLET_MFD_ALLOW_SEALING = 0x2,
	MARTLET_F_ADD_SEALS = 1033,
	MARTLET_F_GET_SEALS = 1034,
	MARTLET_F_SEAL_SEAL = 0x1,
	MARTLET_F_SEAL_SHRINK = 0x2,
	MARTLET_F_SEAL_GROW = 0x4,
	MARTLET_F_SEAL_WRITE = 0x8,
};

static inline int martlet_memfd_create(const char *name, unsigned int flags)
{
	int fd = (int)syscall(SYS_memfd_create, name, flags);
	return fd < 0 ? -errno : fd;
}

// Returns the value of the command (a mask for MEMBARRIER_CMD_QUERY) or the negated error number.
static inline int martlet_membarrier(int command, unsigned int flags)
{
	int r = (int)syscall(SYS_membarrier, command, flags, 0);
	return r < 0 ? -errno : r;
}

// Sleeps while *word == expected, until a wake-up or `deadline` (absolute, CLOCK_MONOTONIC; NULL: none).
// 0, EAGAIN (value differs), ETIMEDOUT or EINTR.
static inline int martlet_futex_wait(void *word, uint32_t expected, const struct timespec *deadline,
				     _Bool process_private)
{
	int op = FUTEX_WAIT_BITSET | (process_private ? FUTEX_PRIVATE_FLAG : 0);
	long r = syscall(SYS_futex, word, op, expected, deadline, NULL, FUTEX_BITSET_MATCH_ANY);
	return r < 0 ? errno : 0;
}

// Wakes up to `count` sleepers; returns how many, or the negated error number.
static inline int martlet_futex_wake(void *word, int count, _Bool process_private)
{
	int op = FUTEX_WAKE | (process_private ? FUTEX_PRIVATE_FLAG : 0);
	long r = syscall(SYS_futex, word, op, count, NULL, NULL, 0);
	return r < 0 ? -errno : (int)r;
}

static inline int martlet_gettid(void)
{
	return (int)syscall(SYS_gettid);
}

// Sends a signal to one thread of this process.
static inline int martlet_tgkill(int tid, int signal)
{
	return syscall(SYS_tgkill, getpid(), tid, signal) < 0 ? errno : 0;
}

// Copies `count` bytes of this process by a system call: 0 or the error number, EFAULT also where only a part can be read.
static inline int martlet_copy_by_kernel(void *destination, const void *source, size_t count)
{
	struct iovec local = {destination, count};
	struct iovec remote = {(void *)source, count};
	long r = syscall(SYS_process_vm_readv, getpid(), &local, 1UL, &remote, 1UL, 0UL);
	return r < 0 ? errno : (size_t)r == count ? 0 : EFAULT;
}

// Reads from the current offset if that needs no waiting, also where the file itself would wait (RWF_NOWAIT); the count or the
// negated error number: EAGAIN if there is nothing, EOPNOTSUPP if the kernel cannot tell.
static inline long martlet_read_without_waiting(int fd, void *buffer, size_t count)
{
	struct iovec target = {buffer, count};
	long r = syscall(SYS_preadv2, fd, &target, 1UL, -1L, -1L, 8UL);
	return r < 0 ? -errno : r;
}

// epoll, whose structure is packed; `token` comes back with each event.
static inline int martlet_epoll_create(void)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

// Waits for `fd` to become readable, for as long as it is.
static inline int martlet_epoll_add(int epoll, int fd, uint64_t token)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = token};
	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? errno : 0;
}

static inline int martlet_epoll_remove(int epoll, int fd)
{
	return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL) < 0 ? errno : 0;
}

// Waits without limit for one event; 0, or the error number.
static inline int martlet_epoll_wait(int epoll, uint64_t *token)
{
	struct epoll_event event;
	if (epoll_wait(epoll, &event, 1, -1) < 0) return errno;
	*token = event.data.u64;
	return 0;
}

// Who wants to know which descriptors this code opens for itself, in a process whose program does not know of them; NULL without
// such. Called before a descriptor is used and before it is closed.
extern void (*martlet_descriptor_watcher)(int fd, _Bool is_taken);

static inline void martlet_note_descriptor(int fd, _Bool is_taken)
{
	if (martlet_descriptor_watcher) martlet_descriptor_watcher(fd, is_taken);
}
