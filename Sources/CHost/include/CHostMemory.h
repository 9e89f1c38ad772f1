#pragma once

// Copies that the kernel makes, so that an address which is not mapped gives an error and not a signal.

#include <errno.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

// Copies `count` bytes from `source` to `destination`, both in this process; 0 or the (positive) error number,
// EFAULT also where only a part could be copied. `source` may be any address.
static inline int martlet_copy_checked(void *destination, const void *source, size_t count)
{
	struct iovec local = {destination, count};
	struct iovec remote = {(void *)source, count};
	long r = syscall(SYS_process_vm_readv, getpid(), &local, 1, &remote, 1, 0L);
	return r < 0 ? errno : (size_t)r == count ? 0 : EFAULT;
}

// The same with the roles exchanged: `destination` may be any address.
static inline int martlet_copy_out_checked(void *destination, const void *source, size_t count)
{
	struct iovec local = {(void *)source, count};
	struct iovec remote = {destination, count};
	long r = syscall(SYS_process_vm_writev, getpid(), &local, 1, &remote, 1, 0L);
	return r < 0 ? errno : (size_t)r == count ? 0 : EFAULT;
}

// Maps `count` bytes of shared memory at `address` once more at `target`, in the place of what is there. An mremap of length 0
// (mremap(2)); MAP_FAILED with errno set if it cannot be done. The flags are MREMAP_MAYMOVE | MREMAP_FIXED, which need
// _GNU_SOURCE.
static inline void *martlet_duplicate_mapping(void *address, size_t count, void *target)
{
	return (void *)syscall(SYS_mremap, address, 0UL, count, 3UL, target);
}
