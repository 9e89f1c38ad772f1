#pragma once

// Copies from and to addresses that may not be mapped, and mappings of the same memory twice.

#include <malloc.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

// Copies `count` bytes; 0, or EFAULT if a byte cannot be read or written. That needs a handler of SIGSEGV and SIGBUS which sends
// a thread that faults at martlet_guarded_copy_access on to martlet_guarded_copy_failure.
int martlet_guarded_copy(void *destination, const void *source, size_t count);
extern const char martlet_guarded_copy_access[];
extern const char martlet_guarded_copy_failure[];

static inline unsigned long martlet_guarded_copy_access_address(void)
{
	return (unsigned long)martlet_guarded_copy_access;
}

static inline unsigned long martlet_guarded_copy_failure_address(void)
{
	return (unsigned long)martlet_guarded_copy_failure;
}

// Gives the memory that free() has taken back, and keeps for later, to the system. A GNU extension of malloc.
static inline void martlet_release_free_memory(void)
{
	malloc_trim(0);
}

// Maps `count` bytes of shared memory at `address` once more at `target`, in the place of what is there. An mremap of length 0
// (mremap(2)); MAP_FAILED with errno set if it cannot be done. The flags are MREMAP_MAYMOVE | MREMAP_FIXED, which need
// _GNU_SOURCE.
static inline void *martlet_duplicate_mapping(void *address, size_t count, void *target)
{
	return (void *)syscall(SYS_mremap, address, 0UL, count, 3UL, target);
}
