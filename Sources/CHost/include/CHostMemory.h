#pragma once

// Copies from and to addresses that may not be mapped, and mappings of the same memory twice.

#include <malloc.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

// What follows reads and writes memory that may be missing: a client's, which may unmap it, protect it, or truncate the file
// behind it at any time. Each instruction that can fault is in a table (the section martlet_guarded), which tells where the
// thread goes on after a fault; a handler of SIGSEGV and SIGBUS looks there. All are leaves, keep nothing on the stack, and do
// not care about GS.

// Where a thread that faulted at `pc` goes on; 0 if that is none of these accesses. Async-signal-safe.
unsigned long martlet_guarded_continuation(unsigned long pc);

// An entry of the table, for assembly: from a fault at `begin` or behind it, but before `end`, to `continuation`. It goes where
// the code it is for goes: into the same section group, and never away while that is there.
#define MARTLET_GUARDED(begin, end, continuation)                                                                      \
	".pushsection martlet_guarded, \"aR?\", @progbits\n"                                                           \
	".long " begin " - ., " end " - ., " continuation " - .\n"                                                     \
	".popsection\n"

// Copies `count` bytes, in ascending order: the destination may overlap a source behind it. 0, or EFAULT if a byte cannot be read
// or written; others may have been written then. Needs a processor with AVX2.
int martlet_guarded_copy(void *destination, const void *source, size_t count);

// Writes `count` bytes of elements of 1, 2, 4 or 8 bytes; `pattern` has repetitions of one. As above.
int martlet_guarded_fill(void *destination, unsigned long pattern, size_t count);

// Loads and stores of one value: false if there is no memory. A value that is not loaded is 0.
#define MARTLET_GUARDED_ACCESSES(bits, suffix, constraint)                                                             \
	static inline _Bool martlet_guarded_load##bits(const void *address, uint##bits##_t *value)                     \
	{                                                                                                              \
		uint##bits##_t loaded = 0;                                                                             \
		unsigned char failed = 1;                                                                              \
		__asm__ volatile("1: mov" suffix " (%2), %0\n"                                                         \
				 "2: movb $0, %1\n"                                                                    \
				 "3:\n" MARTLET_GUARDED("1b", "2b", "3b")                                              \
				 : "+r"(loaded), "+r"(failed)                                                          \
				 : "r"(address)                                                                        \
				 : "memory");                                                                          \
		*value = loaded;                                                                                       \
		return !failed;                                                                                        \
	}                                                                                                              \
	static inline _Bool martlet_guarded_store##bits(void *address, uint##bits##_t value)                           \
	{                                                                                                              \
		unsigned char failed = 1;                                                                              \
		__asm__ volatile("1: mov" suffix " %2, (%1)\n"                                                         \
				 "2: movb $0, %0\n"                                                                    \
				 "3:\n" MARTLET_GUARDED("1b", "2b", "3b")                                              \
				 : "+r"(failed)                                                                        \
				 : "r"(address), constraint(value)                                                     \
				 : "memory");                                                                          \
		return !failed;                                                                                        \
	}                                                                                                              \
	/* Stores `desired` if `expected` is there: 1 if it was, 0 if not, -1 if there is no memory. A full fence. */  \
	static inline int martlet_guarded_exchange##bits(void *address, uint##bits##_t expected,                       \
							 uint##bits##_t desired)                                       \
	{                                                                                                              \
		int result = -1;                                                                                       \
		__asm__ volatile("1: lock cmpxchg" suffix " %3, (%2)\n"                                                \
				 "2: movl $0, %0\n"                                                                    \
				 "sete %b0\n"                                                                          \
				 "3:\n" MARTLET_GUARDED("1b", "2b", "3b")                                              \
				 : "+q"(result), "+a"(expected)                                                        \
				 : "r"(address), constraint(desired)                                                   \
				 : "memory", "cc");                                                                    \
		return result;                                                                                         \
	}

MARTLET_GUARDED_ACCESSES(8, "b", "q")
MARTLET_GUARDED_ACCESSES(16, "w", "r")
MARTLET_GUARDED_ACCESSES(32, "l", "r")
MARTLET_GUARDED_ACCESSES(64, "q", "r")

// Whether a byte can be written. It keeps its value, whoever else writes it.
static inline _Bool martlet_guarded_touch(void *address)
{
	unsigned char failed = 1;
	__asm__ volatile("1: lock orb $0, (%1)\n"
			 "2: movb $0, %0\n"
			 "3:\n" MARTLET_GUARDED("1b", "2b", "3b")
			 : "+r"(failed)
			 : "r"(address)
			 : "memory", "cc");
	return !failed;
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
