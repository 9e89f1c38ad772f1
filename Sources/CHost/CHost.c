// The variables that the headers declare, and checks that the constants repeated there, which must import without
// _GNU_SOURCE, are the system's.

#include "CHost.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

void (*martlet_descriptor_watcher)(int fd, _Bool is_taken);
struct martlet_unregistered_record martlet_unregistered_record = {.state = 1};
MARTLET_THREAD_WORD void *martlet_thread_record = &martlet_unregistered_record;
MARTLET_THREAD_WORD uint32_t martlet_thread_number;
MARTLET_THREAD_WORD int32_t martlet_thread_kick_id;
MARTLET_THREAD_WORD int32_t martlet_thread_takes_faults;
MARTLET_THREAD_WORD uint32_t martlet_thread_core_depth;
MARTLET_THREAD_WORD uint64_t martlet_thread_deferred_signals;
MARTLET_THREAD_WORD int32_t martlet_thread_forks;
MARTLET_THREAD_WORD int64_t martlet_mappings_left = -1;
struct martlet_grace_period_line martlet_thread_grace_periods = {.counter = 1};

// The model needs no call into the dynamic linker, which is not async-signal-safe.
static _Thread_local __attribute__((tls_model("initial-exec"))) void *thread_context;

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MARTLET_SIGACTION sigaction
#endif
#endif
#ifndef MARTLET_SIGACTION
// The thread sanitizer has to see handlers; nothing else takes the C library's own name over.
int __sigaction(int signal, const struct sigaction *action, struct sigaction *old);
#define MARTLET_SIGACTION __sigaction
#endif

int martlet_exchange_action(int signal, const struct sigaction *action, struct sigaction *old)
{
	return MARTLET_SIGACTION(signal, action, old) == 0 ? 0 : errno;
}

void *martlet_thread_context(void)
{
	return thread_context;
}

void martlet_set_thread_context(void *context)
{
	thread_context = context;
}

// Offsets from an entry's own fields.
struct guarded_access {
	int32_t begin, end, continuation;
};
extern const struct guarded_access __start_martlet_guarded[], __stop_martlet_guarded[];

unsigned long martlet_guarded_continuation(unsigned long pc)
{
	for (const struct guarded_access *a = __start_martlet_guarded; a < __stop_martlet_guarded; a++) {
		if (pc >= (unsigned long)&a->begin + a->begin && pc < (unsigned long)&a->end + a->end) {
			return (unsigned long)&a->continuation + a->continuation;
		}
	}
	return 0;
}

// rdi destination, rsi source, rdx count. All of the last piece, and of a short copy, is read before anything is written. What
// is as long as an integer is written once: others may have changed it by the second time.
__asm__(".text\n"
	".p2align 5\n"
	".globl martlet_guarded_copy\n"
	".hidden martlet_guarded_copy\n"
	".type martlet_guarded_copy, @function\n"
	"martlet_guarded_copy:\n"
	"	xorl %eax, %eax\n"
	"1:	cmpq $32, %rdx\n"
	"	jbe 3f\n"
	"	cmpq $1024, %rdx\n"
	"	jae 8f\n"
	"	vmovdqu -32(%rsi,%rdx), %ymm1\n"
	"	leaq -32(%rdi,%rdx), %rcx\n"
	"2:	vmovdqu (%rsi), %ymm0\n"
	"	addq $32, %rsi\n"
	"	vmovdqu %ymm0, (%rdi)\n"
	"	addq $32, %rdi\n"
	"	cmpq %rcx, %rdi\n"
	"	jb 2b\n"
	"	vmovdqu %ymm1, (%rcx)\n"
	"	vzeroupper\n"
	"	ret\n"
	"3:	cmpl $8, %edx\n"
	"	jb 5f\n"
	"	je 4f\n"
	"	cmpl $16, %edx\n"
	"	jb 31f\n"
	"	vmovdqu (%rsi), %xmm0\n"
	"	vmovdqu -16(%rsi,%rdx), %xmm1\n"
	"	vmovdqu %xmm0, (%rdi)\n"
	"	vmovdqu %xmm1, -16(%rdi,%rdx)\n"
	"	ret\n"
	"31:	movq (%rsi), %r8\n"
	"	movq -8(%rsi,%rdx), %r9\n"
	"	movq %r8, (%rdi)\n"
	"	movq %r9, -8(%rdi,%rdx)\n"
	"	ret\n"
	"4:	movq (%rsi), %r8\n"
	"	movq %r8, (%rdi)\n"
	"	ret\n"
	"5:	cmpl $4, %edx\n"
	"	jb 6f\n"
	"	movl (%rsi), %r8d\n"
	"	je 51f\n"
	"	movl -4(%rsi,%rdx), %r9d\n"
	"	movl %r8d, (%rdi)\n"
	"	movl %r9d, -4(%rdi,%rdx)\n"
	"	ret\n"
	"51:	movl %r8d, (%rdi)\n"
	"	ret\n"
	"6:	cmpl $2, %edx\n"
	"	jb 7f\n"
	"	movzwl (%rsi), %r8d\n"
	"	movzbl -1(%rsi,%rdx), %r9d\n"
	"	movw %r8w, (%rdi)\n"
	"	je 61f\n"
	"	movb %r9b, 2(%rdi)\n"
	"61:	ret\n"
	"7:	testl %edx, %edx\n"
	"	jz 61b\n"
	"	movzbl (%rsi), %r8d\n"
	"	movb %r8b, (%rdi)\n"
	"	ret\n"
	"8:	movq %rdx, %rcx\n"
	"	rep movsb\n"
	"	ret\n"
	"9:	movl $14, %eax\n"
	"	vzeroupper\n"
	"	ret\n"
	".size martlet_guarded_copy, . - martlet_guarded_copy\n" MARTLET_GUARDED("1b", "9b", "9b"));

// rdi destination, rsi pattern, rdx count.
__asm__(".text\n"
	".p2align 5\n"
	".globl martlet_guarded_fill\n"
	".hidden martlet_guarded_fill\n"
	".type martlet_guarded_fill, @function\n"
	"martlet_guarded_fill:\n"
	"	xorl %eax, %eax\n"
	"	vmovq %rsi, %xmm0\n"
	"1:	cmpq $32, %rdx\n"
	"	jbe 3f\n"
	"	cmpq $1024, %rdx\n"
	"	jae 8f\n"
	"	vpbroadcastq %xmm0, %ymm0\n"
	"	leaq -32(%rdi,%rdx), %rcx\n"
	"2:	vmovdqu %ymm0, (%rdi)\n"
	"	addq $32, %rdi\n"
	"	cmpq %rcx, %rdi\n"
	"	jb 2b\n"
	"	vmovdqu %ymm0, (%rcx)\n"
	"	vzeroupper\n"
	"	ret\n"
	"3:	cmpl $8, %edx\n"
	"	jb 5f\n"
	"	je 4f\n"
	"	cmpl $16, %edx\n"
	"	jb 31f\n"
	"	vpbroadcastq %xmm0, %xmm0\n"
	"	vmovdqu %xmm0, (%rdi)\n"
	"	vmovdqu %xmm0, -16(%rdi,%rdx)\n"
	"	ret\n"
	"31:	movq %rsi, (%rdi)\n"
	"	movq %rsi, -8(%rdi,%rdx)\n"
	"	ret\n"
	"4:	movq %rsi, (%rdi)\n"
	"	ret\n"
	"5:	cmpl $4, %edx\n"
	"	jb 6f\n"
	"	movl %esi, (%rdi)\n"
	"	je 61f\n"
	"	movl %esi, -4(%rdi,%rdx)\n"
	"	ret\n"
	"6:	cmpl $2, %edx\n"
	"	jb 7f\n"
	"	movw %si, (%rdi)\n"
	"	je 61f\n"
	"	movb %sil, 2(%rdi)\n"
	"61:	ret\n"
	"7:	testl %edx, %edx\n"
	"	jz 61b\n"
	"	movb %sil, (%rdi)\n"
	"	ret\n"
	"8:	movq %rsi, %rax\n"
	"	movq %rdx, %rcx\n"
	"	shrq $3, %rcx\n"
	"	movq %rsi, -8(%rdi,%rdx)\n"
	"	rep stosq\n"
	"	xorl %eax, %eax\n"
	"	ret\n"
	"9:	movl $14, %eax\n"
	"	vzeroupper\n"
	"	ret\n"
	".size martlet_guarded_fill, . - martlet_guarded_fill\n" MARTLET_GUARDED("1b", "9b", "9b"));
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
