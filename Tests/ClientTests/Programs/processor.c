// A client that looks with CPUID itself whether the processor can virtualize, before it opens the device.
#include "client.h"

#include <cpuid.h>

static int has_virtualization(void)
{
	unsigned a, b, c, d, top, name;
	CHECK(__get_cpuid(0, &top, &name, &c, &d) && top >= 1);
	if (name == signature_INTEL_ebx) return __get_cpuid(1, &a, &b, &c, &d) && c & 1 << 5;
	return __get_cpuid(0x80000001, &a, &b, &c, &d) && c & 1 << 2;
}

// Every other bit is the host's: what the program finds agrees with what the C library has found.
static int agrees_with_library(void)
{
	unsigned a, b, c, d;
	__cpuid(1, a, b, c, d);
	return !(d & bit_SSE2) == !__builtin_cpu_supports("sse2") && !(c & bit_SSE4_2) == !__builtin_cpu_supports("sse4.2") &&
	       !(c & bit_POPCNT) == !__builtin_cpu_supports("popcnt");
}

// The bytes of CPUID within another instruction.
static unsigned __attribute__((noinline)) constant(void)
{
	unsigned value;
	__asm__ volatile("movl $0x00a20f00, %0" : "=r"(value));
	return value;
}

// And as data among the code, which belongs to no function.
__asm__(".pushsection .text\n"
	".globl data_in_code\n"
	"data_in_code: .byte 0x90, 0x0f, 0xa2, 0x90\n"
	".popsection");
extern const uint8_t data_in_code[];

static volatile sig_atomic_t illegal_count;

static void on_illegal(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	CHECK(info->si_code == ILL_ILLOPN || info->si_code == ILL_ILLOPC);
	illegal_count++;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

int main(void)
{
	CHECK(has_virtualization());
	CHECK(agrees_with_library());
	CHECK(constant() == 0x00a20f00);
	CHECK(data_in_code[1] == 0x0f && data_in_code[2] == 0xa2);

	// The program's own illegal instructions are still its own.
	struct sigaction action = {.sa_sigaction = on_illegal, .sa_flags = SA_SIGINFO}, old;
	CHECK(sigaction(SIGILL, &action, &old) == 0 && old.sa_handler == SIG_DFL);
	__asm__ volatile("ud2");
	CHECK(illegal_count == 1);
	CHECK(has_virtualization());
	CHECK(illegal_count == 1);
	CHECK(sigaction(SIGILL, NULL, &old) == 0 && old.sa_sigaction == on_illegal);

	// Nor does a thread that blocks every signal notice.
	sigset_t all;
	sigfillset(&all);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
	CHECK(has_virtualization());
	CHECK(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
	CHECK(has_virtualization());

	struct client c = make_client(out_code, sizeof(out_code), 0);
	CHECK(ioctl(c.vcpu, KVM_RUN, 0) == 0 && c.run->exit_reason == KVM_EXIT_IO);
	CHECK(has_virtualization());

	// And in a child.
	pid_t child = fork();
	if (child == 0) _exit(has_virtualization() ? 0 : 1);
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	puts("passed");
	return 0;
}
