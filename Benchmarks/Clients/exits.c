// How long a client waits for an exit: prints the nanoseconds of an empty KVM_RUN, of a port output, and of a read of memory that
// is not there, each a line "NAME NANOSECONDS", the median of several rounds.
//
// Runs on whatever /dev/kvm it is given.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 11, COUNT = 20000 };

// mov dx, 0x3f8; again: out dx, al; jmp again
static const uint8_t port_code[] = {0xba, 0xf8, 0x03, 0xee, 0xeb, 0xfd};
// mov al, [0x8000]; jmp back
static const uint8_t memory_code[] = {0xa0, 0x00, 0x80, 0xeb, 0xfb};

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void measure(const char *name, const void *code, size_t size, int is_immediate, uint32_t reason)
{
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {.memory_size = 0x4000, .userspace_addr = (uintptr_t)memory};
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) exit(1);
	memcpy(memory + 0x1000, code, size);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs special;
	ioctl(vcpu, KVM_GET_SREGS, &special);
	special.cs.base = special.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &special);
	struct kvm_regs registers = {.rip = 0x1000, .rflags = 2};
	ioctl(vcpu, KVM_SET_REGS, &registers);
	double rounds[ROUNDS];
	for (int round = 0; round < ROUNDS; round++) {
		run->immediate_exit = is_immediate;
		double start = now();
		for (int i = 0; i < COUNT; i++) {
			int result = ioctl(vcpu, KVM_RUN, 0);
			if (is_immediate ? result == 0 : result || run->exit_reason != reason) {
				fprintf(stderr, "%s: %d, exit %u\n", name, result, run->exit_reason);
				exit(1);
			}
		}
		rounds[round] = (now() - start) / COUNT;
	}
	qsort(rounds, ROUNDS, sizeof *rounds, compare);
	printf("%s %.0f\n", name, rounds[ROUNDS / 2]);
	close(vcpu), close(vm), close(kvm);
}

int main(void)
{
	measure("empty", port_code, sizeof port_code, 1, 0);
	measure("port", port_code, sizeof port_code, 0, KVM_EXIT_IO);
	measure("memory", memory_code, sizeof memory_code, 0, KVM_EXIT_MMIO);
}
