// The variables that the headers declare, and checks that the constants repeated there, which must import without
// _GNU_SOURCE, are the system's.

#include "CHost.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

struct martlet_unregistered_record martlet_unregistered_record = {.state = 1};
MARTLET_THREAD_WORD void *martlet_thread_record = &martlet_unregistered_record;
MARTLET_THREAD_WORD uint32_t martlet_thread_number;
MARTLET_THREAD_WORD int32_t martlet_thread_kick_id;
MARTLET_THREAD_WORD int64_t martlet_mappings_left = -1;
struct martlet_grace_period_line martlet_thread_grace_periods = {.counter = 1};

// The model needs no call into the dynamic linker, which is not async-signal-safe.
static _Thread_local __attribute__((tls_model("initial-exec"))) void *thread_context;

void *martlet_thread_context(void)
{
	return thread_context;
}

void martlet_set_thread_context(void *context)
{
	thread_context = context;
}

// rdi destination, rsi source, rdx count. One instruction can fault, with nothing on the stack.
__asm__(".text\n"
	".p2align 4\n"
	".globl martlet_guarded_copy, martlet_guarded_copy_access, martlet_guarded_copy_failure\n"
	".type martlet_guarded_copy, @function\n"
	"martlet_guarded_copy:\n"
	"	movq %rdx, %rcx\n"
	"	xorl %eax, %eax\n"
	"martlet_guarded_copy_access:\n"
	"	rep movsb\n"
	"	ret\n"
	"martlet_guarded_copy_failure:\n"
	"	movl $14, %eax\n"
	"	ret\n"
	".size martlet_guarded_copy, . - martlet_guarded_copy\n");
_Static_assert(EFAULT == 14, "EFAULT");

#define SAME(name) _Static_assert(MARTLET_##name == name, #name)
SAME(REG_R8);
SAME(REG_R9);
SAME(REG_R10);
SAME(REG_R11);
SAME(REG_R12);
SAME(REG_R13);
SAME(REG_R14);
SAME(REG_R15);
SAME(REG_RDI);
SAME(REG_RSI);
SAME(REG_RBP);
SAME(REG_RBX);
SAME(REG_RDX);
SAME(REG_RAX);
SAME(REG_RCX);
SAME(REG_RSP);
SAME(REG_RIP);
SAME(REG_EFL);
SAME(REG_CSGSFS);
SAME(REG_ERR);
SAME(REG_TRAPNO);
SAME(REG_OLDMASK);
SAME(REG_CR2);
SAME(MFD_CLOEXEC);
SAME(MFD_ALLOW_SEALING);
SAME(F_ADD_SEALS);
SAME(F_GET_SEALS);
SAME(F_SEAL_SEAL);
SAME(F_SEAL_SHRINK);
SAME(F_SEAL_GROW);
SAME(F_SEAL_WRITE);
