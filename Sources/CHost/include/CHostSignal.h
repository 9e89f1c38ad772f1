#pragma once

// What a signal handler reads and writes in the interrupted context.

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// Indices into the general registers of a context; equal to the C library's REG_… names, which exist under
// _GNU_SOURCE only.
enum {
	MARTLET_REG_R8 = 0,
	MARTLET_REG_R9 = 1,
	MARTLET_REG_R10 = 2,
	MARTLET_REG_R11 = 3,
	MARTLET_REG_R12 = 4,
	MARTLET_REG_R13 = 5,
	MARTLET_REG_R14 = 6,
	MARTLET_REG_R15 = 7,
	MARTLET_REG_RDI = 8,
	MARTLET_REG_RSI = 9,
	MARTLET_REG_RBP = 10,
	MARTLET_REG_RBX = 11,
	MARTLET_REG_RDX = 12,
	MARTLET_REG_RAX = 13,
	MARTLET_REG_RCX = 14,
	MARTLET_REG_RSP = 15,
	MARTLET_REG_RIP = 16,
	MARTLET_REG_EFL = 17,
	MARTLET_REG_CSGSFS = 18,
	MARTLET_REG_ERR = 19,
	MARTLET_REG_TRAPNO = 20,
	MARTLET_REG_OLDMASK = 21,
	MARTLET_REG_CR2 = 22,
};

// The interrupted thread's general registers, indexed by MARTLET_REG_…; writes take effect on return.
static inline uint64_t *martlet_context_registers(void *context)
{
	return (uint64_t *)((ucontext_t *)context)->uc_mcontext.gregs;
}

// The interrupted thread's vector and x87 state in FXSAVE format, or NULL.
static inline void *martlet_context_fpu_state(void *context)
{
	return ((ucontext_t *)context)->uc_mcontext.fpregs;
}

// The signal mask that is restored on return.
static inline sigset_t *martlet_context_signal_mask(void *context)
{
	return &((ucontext_t *)context)->uc_sigmask;
}

// The faulting address of SIGSEGV and SIGBUS.
static inline uint64_t martlet_siginfo_address(const siginfo_t *info)
{
	return (uint64_t)info->si_addr;
}

typedef void (*martlet_signal_handler)(int signal, siginfo_t *info, void *context);

// sigaction() of the C library itself, also where a preloaded library takes that name over, as Martlet's own does for clients.
// Either pointer may be NULL. 0 or the error number.
int martlet_exchange_action(int signal, const struct sigaction *action, struct sigaction *old);

// The same with a three-argument handler; SA_SIGINFO is added to `flags`. `old` may be NULL.
static inline int martlet_sigaction(int signal, martlet_signal_handler handler, int flags, const sigset_t *mask,
				    struct sigaction *old)
{
	struct sigaction action = {.sa_flags = flags | SA_SIGINFO, .sa_mask = *mask};
	action.sa_sigaction = handler;
	return martlet_exchange_action(signal, &action, old);
}

// Sends the calling thread a signal with what came with it before. Async-signal-safe. 0 or the error number.
static inline int martlet_requeue_signal(int signal, siginfo_t *info)
{
	return syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), signal, info) < 0 ? errno : 0;
}

// The calling thread's place for whatever a signal handler has to find; NULL in a new thread. Async-signal-safe.
void *martlet_thread_context(void);
void martlet_set_thread_context(void *context);

static inline martlet_signal_handler martlet_sigaction_handler(const struct sigaction *action)
{
	return action->sa_sigaction;
}
