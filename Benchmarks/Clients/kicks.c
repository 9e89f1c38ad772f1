// How long a client's signal takes to end KVM_RUN: from before pthread_kill() in one thread to EINTR in the other, while the guest
// computes, or halts with interrupt controllers in the core. Prints lines "NAME MEDIAN 99TH-OF-100" in nanoseconds.
//
// NAME is how the client has it end: "immediate" (a handler sets immediate_exit), "handler" (a handler that does nothing) or
// "mask" (the thread blocks the signal, KVM_SET_SIGNAL_MASK lets it through), or "thread", the host's own part: no KVM, a thread
// that computes until the handler runs, or sleeps until ppoll() ends. After a hyphen it says what the guest does.
//
// Runs on whatever /dev/kvm it is given; "kicks thread" needs none.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 500 };
enum way { IMMEDIATE, HANDLER, MASK, THREAD };

// again: inc eax; add [0x2000], eax; jmp again
static const uint8_t loop_code[] = {0x66, 0x40, 0x66, 0x01, 0x06, 0x00, 0x20, 0xeb, 0xf7};
// hlt, interrupts being off
static const uint8_t halt_code[] = {0xf4};

static struct kvm_run *run;
static enum way way;
static atomic_int is_inside;
static atomic_int was_handled;
static double handled_at, ended_at;
static sem_t ended;

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void handle(int signal)
{
	(void)signal;
	if (way == IMMEDIATE) run->immediate_exit = 1;
	if (way == THREAD) handled_at = now(), was_handled = 1;
}

static int make_vcpu(int is_halted)
{
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0) fail("/dev/kvm");
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000) || ioctl(vm, KVM_CREATE_IRQCHIP, 0)) fail("machine");
	uint8_t *memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {.memory_size = 0x4000, .userspace_addr = (uintptr_t)memory};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) fail("memory");
	if (is_halted) memcpy(memory + 0x1000, halt_code, sizeof halt_code);
	else memcpy(memory + 0x1000, loop_code, sizeof loop_code);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs special;
	ioctl(vcpu, KVM_GET_SREGS, &special);
	special.cs.base = special.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &special);
	struct kvm_regs registers = {.rip = 0x1000, .rflags = 2};
	if (ioctl(vcpu, KVM_SET_REGS, &registers)) fail("vCPU");
	return vcpu;
}

static void *receive(void *argument)
{
	int is_halted = *(int *)argument, vcpu = way == THREAD ? -1 : make_vcpu(is_halted);
	sigset_t signals;
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	if (way == MASK) {
		pthread_sigmask(SIG_BLOCK, &signals, NULL);
		struct { struct kvm_signal_mask head; uint8_t set[8]; } mask = {.head.len = 8};
		if (ioctl(vcpu, KVM_SET_SIGNAL_MASK, &mask)) fail("KVM_SET_SIGNAL_MASK");
	}
	for (int i = 0; i < COUNT; i++) {
		was_handled = 0;
		is_inside = 1;
		if (way != THREAD) {
			if (ioctl(vcpu, KVM_RUN, 0) == 0 || errno != EINTR) fail("KVM_RUN");
			ended_at = now();
			run->immediate_exit = 0;
		} else if (is_halted) {
			ppoll(NULL, 0, NULL, NULL);
			ended_at = now();
		} else {
			while (!was_handled) continue;
			ended_at = handled_at;
		}
		int number;
		if (way == MASK && sigwait(&signals, &number)) fail("sigwait");
		is_inside = 0;
		sem_post(&ended);
	}
	if (vcpu >= 0) close(vcpu);
	return NULL;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void measure(const char *name, enum way its_way, int is_halted)
{
	pthread_t thread;
	double times[COUNT];
	way = its_way;
	sem_init(&ended, 0, 0);
	if (pthread_create(&thread, NULL, receive, &is_halted)) fail("thread");
	for (int i = 0; i < COUNT; i++) {
		while (!is_inside) sched_yield();
		// Inside, and no rhythm.
		usleep(500 + i * 7919 % 1000);
		double start = now();
		pthread_kill(thread, SIGUSR1);
		while (sem_wait(&ended)) continue;
		times[i] = ended_at - start;
	}
	pthread_join(thread, NULL);
	qsort(times, COUNT, sizeof *times, compare);
	printf("%s-%s %.0f %.0f\n", name, is_halted ? "halts" : "computes", times[COUNT / 2], times[COUNT * 99 / 100]);
	fflush(stdout);
}

int main(int count, char **arguments)
{
	struct sigaction action = {.sa_handler = handle};
	sigaction(SIGUSR1, &action, NULL);
	for (int is_halted = 0; is_halted < 2; is_halted++) {
		if (count > 1 && !strcmp(arguments[1], "thread")) {
			measure("thread", THREAD, is_halted);
			continue;
		}
		measure("immediate", IMMEDIATE, is_halted);
		measure("mask", MASK, is_halted);
		measure("handler", HANDLER, is_halted);
	}
}
