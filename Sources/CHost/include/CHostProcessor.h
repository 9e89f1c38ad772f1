#pragma once

// Single instructions of the host processor, and the compiler barrier.

#include <asm/prctl.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

// The compiler moves no memory access across this; the processor may.
static inline void martlet_compiler_barrier(void)
{
	__asm__ volatile("" ::: "memory");
}

// Tells the processor that this is a spin loop.
static inline void martlet_pause(void)
{
	__asm__ volatile("pause");
}

// The time-stamp counter; not ordered against other instructions.
static inline uint64_t martlet_rdtsc(void)
{
	uint32_t low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

// Whether the kernel lets user space execute RDGSBASE and WRGSBASE (HWCAP2_FSGSBASE).
static inline _Bool martlet_has_fsgsbase(void)
{
	return (getauxval(AT_HWCAP2) & 2) != 0;
}

// Valid only where martlet_has_fsgsbase() holds.
static inline uint64_t martlet_rdgsbase(void)
{
	uint64_t base;
	__asm__ volatile("rdgsbase %0" : "=r"(base));
	return base;
}

// Valid only where martlet_has_fsgsbase() holds.
static inline void martlet_wrgsbase(uint64_t base)
{
	__asm__ volatile("wrgsbase %0" ::"r"(base) : "memory");
}

// GS base through the kernel, for hosts without FSGSBASE.
static inline uint64_t martlet_get_gs_base_by_call(void)
{
	uint64_t base = 0;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	return base;
}

static inline void martlet_set_gs_base_by_call(uint64_t base)
{
	syscall(SYS_arch_prctl, ARCH_SET_GS, base);
}

// The extended state components the host kernel has enabled. Valid only where OSXSAVE is set.
static inline uint64_t martlet_xgetbv(uint32_t index)
{
	uint32_t low, high;
	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(index));
	return (uint64_t)high << 32 | low;
}

struct martlet_cpuid_result {
	uint32_t eax, ebx, ecx, edx;
};

static inline struct martlet_cpuid_result martlet_cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct martlet_cpuid_result r;
	__asm__ volatile("cpuid"
			 : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
			 : "a"(leaf), "c"(subleaf));
	return r;
}

// The loop of the guest that a KVM is tried with: `count` rounds of four instructions, each waiting for the one before.
static inline uint32_t martlet_count_loop(uint32_t count)
{
	uint64_t value = count;
	uint64_t left = count;
	__asm__ volatile("1:\n\timul $0x343FD, %0, %0\n\tadd %1, %0\n\tdec %k1\n\tjnz 1b"
			 : "+r"(value), "+r"(left)
			 :
			 : "cc");
	return (uint32_t)value;
}
