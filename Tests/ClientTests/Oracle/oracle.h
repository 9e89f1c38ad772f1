// What the cases share: how they print, a machine with a little memory, and guests in three modes of the processor.
//
// A case says what it was answered, and judges nothing: the same program runs on the kernel's KVM and on Martlet, and what
// differs is for the reader. So it prints no addresses of its own, no times, no numbers of descriptors, and nothing that the
// host's processor decides.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct test_case {
	const char *name;
	void (*run)(void);
};

// A group's cases end with one without name.
struct group {
	const char *name;
	const struct test_case *cases;
};

extern const struct group system_group, machine_group, memory_group, vcpu_group, map_group, interrupt_group, event_group,
	port_group, mmio_group, exit_group, debug_group, msr_group, state_group, mode_group, local_group, paging_group;

// Prints a line that begins with the case's name.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Prints a request's answer: the name of its error, or the value. Returns what the request did.
long answer(const char *label, long result);
// The same for a request that makes a descriptor.
int answer_descriptor(const char *label, int result);
#define ASK(label, file, request, argument) answer(label, (errno = 0, ioctl(file, request, argument)))

// What must work before the case begins; the case ends if it does not.
#define NEED(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			say("cannot go on: %s: %s", #condition, strerrorname_np(errno));                                \
			fflush(stdout);                                                                                \
			_exit(0);                                                                                      \
		}                                                                                                      \
	} while (0)

enum {
	MEMORY_SIZE = 0x40000,
	CODE = 0x1000,
	STACK = 0x3000,
	DATA = 0x4000,
	TABLES = 0x8000,
	PAGES = 0x10000,
	// No memory is there.
	NOWHERE = 0x50000,
};

enum { PLAIN = 0, WITH_CHIPS = 1, WITH_SPLIT_CHIPS = 2, WITHOUT_CPUID = 4, WITHOUT_VCPU = 8 };

struct machine {
	int kvm, vm, vcpu, map_size;
	struct kvm_run *run;
	uint8_t *memory;
};

int open_kvm(void);
struct machine make_machine(int options);
int add_vcpu(struct machine *m, unsigned long id);
void set_supported_cpuid(struct machine *m, int vcpu);
// A slot of memory of its own at `address`; returns the memory.
uint8_t *add_memory(struct machine *m, uint32_t slot, uint32_t flags, uint64_t address, uint64_t size);
long enable(int file, uint32_t capability, uint64_t first);

// A guest's code in this file's data, for 16, 32 or 64 bits.
#define GUEST(name, bits, body)                                                                                        \
	extern const uint8_t name[], name##_end[];                                                                     \
	asm(".pushsection .rodata\n.code" #bits "\n" #name ":\n" body "\n" #name "_end:\n.code64\n.popsection\n")

// Puts code at CODE and the processor before it: in real mode, or in protected or long mode with flat segments, descriptors in
// TABLES and pages that map the first 2 MiB to themselves.
#define LOAD(m, guest) load(m, guest, guest##_end - guest, 16)
#define LOAD32(m, guest) load(m, guest, guest##_end - guest, 32)
#define LOAD64(m, guest) load(m, guest, guest##_end - guest, 64)
void load(struct machine *m, const uint8_t *code, size_t count, int bits);

// Runs and prints the exit; then the exit's reason, or -1 for an error.
int run(struct machine *m);
// Runs until anything but port and memory accesses, at most `limit` times.
int run_through(struct machine *m, int limit);
// Prints RIP, RFLAGS and the general registers that are not 0.
void say_registers(struct machine *m);
void say_bytes(const char *label, const void *bytes, size_t count);
uint64_t get_msr(int vcpu, uint32_t index);
long set_msr(int vcpu, uint32_t index, uint64_t value);

// The value of a general register of the guest's.
uint64_t general_register(struct machine *m, int index);
// Lets SIGUSR1 come to this thread after a while, and again until a run is interrupted.
void signal_later(long milliseconds);
void handle_signal(void);
static inline void sleep_milliseconds(long count)
{
	struct timespec time = {.tv_sec = count / 1000, .tv_nsec = count % 1000 * 1000000};
	while (nanosleep(&time, &time) != 0) {
	}
}
