// What the little KVM programs of the tests share: a machine with one page of real-mode code, and checks.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Prints what did not hold, and ends the program with status 1.
#define CHECK(condition)                                                                                               \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			int saved = errno;                                                                             \
			printf("%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #condition, saved, strerror(saved));   \
			exit(1);                                                                                       \
		}                                                                                                      \
	} while (0)

// A call that must fail with `error`.
#define FAILS(error, call) CHECK((errno = 0, (long)(call) == -1 && errno == (error)))

struct client {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint8_t *memory;
};

// jmp $
static const uint8_t loop_code[] = {0xeb, 0xfe};
// sti; hlt; jmp back
static const uint8_t halt_code[] = {0xfb, 0xf4, 0xeb, 0xfd};
// mov dx, 0x3f8; again: out dx, al; inc al; jmp again
static const uint8_t out_code[] = {0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xfb};
// mov al, [0x8000] (no memory there); jmp back
static const uint8_t mmio_code[] = {0xa0, 0x00, 0x80, 0xeb, 0xfb};

enum { MEMORY_SIZE = 0x4000, CODE = 0x1000 };

static inline void place(struct client *c, const void *code, size_t count)
{
	memcpy(c->memory + CODE, code, count);
	struct kvm_sregs special;
	CHECK(ioctl(c->vcpu, KVM_GET_SREGS, &special) == 0);
	special.cs.base = special.cs.selector = 0;
	CHECK(ioctl(c->vcpu, KVM_SET_SREGS, &special) == 0);
	struct kvm_regs registers = {.rip = CODE, .rflags = 2, .rsp = 0x2000};
	CHECK(ioctl(c->vcpu, KVM_SET_REGS, &registers) == 0);
}

// With an interrupt controller, HLT waits in the core.
static inline struct client make_client(const void *code, size_t count, int has_irqchip)
{
	struct client c = {.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)};
	CHECK(c.kvm >= 0);
	CHECK(ioctl(c.kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION);
	c.vm = ioctl(c.kvm, KVM_CREATE_VM, 0);
	CHECK(c.vm >= 0);
	if (has_irqchip) CHECK(ioctl(c.vm, KVM_CREATE_IRQCHIP, 0) == 0);
	c.memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(c.memory != MAP_FAILED);
	struct kvm_userspace_memory_region region = {.memory_size = MEMORY_SIZE,
						     .userspace_addr = (uintptr_t)c.memory};
	CHECK(ioctl(c.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	c.vcpu = ioctl(c.vm, KVM_CREATE_VCPU, 0);
	CHECK(c.vcpu >= 0);
	int size = ioctl(c.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	c.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, c.vcpu, 0);
	CHECK(c.run != MAP_FAILED);
	place(&c, code, count);
	return c;
}

static inline void sleep_milliseconds(long count)
{
	struct timespec time = {.tv_sec = count / 1000, .tv_nsec = count % 1000 * 1000000};
	while (nanosleep(&time, &time) != 0) {
	}
}
