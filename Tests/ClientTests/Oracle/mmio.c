// Exits of memory accesses where no memory is.
#include "oracle.h"

GUEST(writes, 32,
      "mov $0x50000, %ebx\n mov $0x12345678, %eax\n mov %al, (%ebx)\n mov %ax, 2(%ebx)\n mov %eax, 4(%ebx)\n "
      "mov %eax, 0x101(%ebx)\n"
      "movb $0x5a, 8(%ebx)\n movl $0x55aa55aa, 12(%ebx)\n mov %eax, 0xffe(%ebx)\n mov %ax, 0x1fff(%ebx)\n hlt\n");
GUEST(reads, 32,
      "mov $0x50000, %ebp\n mov $-1, %eax\n mov %eax, %ecx\n mov (%ebp), %al\n mov 2(%ebp), %cx\n mov 4(%ebp), %edx\n"
      "mov 0x101(%ebp), %esi\n mov 0xffe(%ebp), %edi\n movzbl (%ebp), %ebx\n movswl 0xfff(%ebp), %ebp\n hlt\n");
GUEST(long_accesses, 64,
      "mov $0x50000, %ebp\n mov $0x1122334455667788, %rax\n mov %rax, (%rbp)\n mov %rax, 0xffc(%rbp)\n mov (%rbp), %rbx\n"
      "mov 0xffd(%rbp), %rcx\n mov $-1, %rdx\n mov (%rbp), %edx\n movslq (%rbp), %rsi\n hlt\n");

static void sizes(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, writes);
	run_through(&m, 30);
	LOAD32(&m, reads);
	run_through(&m, 30);
	say_registers(&m);
	LOAD64(&m, long_accesses);
	run_through(&m, 30);
	say_registers(&m);
}

GUEST(changes, 32,
      "mov $0x50000, %ebx\n mov $0x12345678, %eax\n incb (%ebx)\n add %eax, 4(%ebx)\n xchg %eax, 8(%ebx)\n "
      "lock xadd %eax, 12(%ebx)\n"
      "mov $0x11, %eax\n cmpxchg %ecx, 16(%ebx)\n btsl $3, 20(%ebx)\n notl 24(%ebx)\n shll $1, 28(%ebx)\n "
      "negb 32(%ebx)\n hlt\n");
GUEST(tests, 32,
      "mov $0x50000, %ebx\n mov $0x40, %eax\n cmp %al, (%ebx)\n setb %cl\n test %al, (%ebx)\n setnz %ch\n or (%ebx), %eax\n"
      "imul (%ebx), %esi\n mull 4(%ebx)\n hlt\n");

static void changing(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, changes);
	run_through(&m, 40);
	say_registers(&m);
	LOAD32(&m, tests);
	run_through(&m, 40);
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	// Of the last flags only carry and overflow are defined.
	say("eax 0x%llx ecx 0x%llx edx 0x%llx esi 0x%llx, carry and overflow 0x%llx", r.rax, r.rcx, r.rdx, r.rsi, r.rflags & 0x801);
}

GUEST(stack, 32, "mov $0x50010, %esp\n push %eax\n pop %ebx\n pushw $5\n call 1f\n hlt\n 1: ret\n");

static void stacks(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, stack);
	// The return goes where the client says.
	for (int i = 0; i < 10; i++) {
		int reason = run(&m);
		if (reason != KVM_EXIT_MMIO) break;
		uint32_t target = CODE + 0x200;
		if (!m.run->mmio.is_write) memcpy(m.run->mmio.data, &target, 4);
		m.memory[CODE + 0x200] = 0xf4;
	}
	say_registers(&m);
}

GUEST(moves, 32,
      "cld\n mov $0x50000, %edi\n mov $0x4000, %esi\n mov $3, %ecx\n rep movsb\n mov $0x50100, %esi\n "
      "mov $0x4100, %edi\n mov $2, %ecx\n"
      "rep movsl\n mov $0x50200, %esi\n mov $0x50300, %edi\n movsw\n mov $0x50400, %edi\n mov $2, %ecx\n "
      "mov $0xab, %eax\n rep stosb\n"
      "mov $0x50500, %esi\n lodsl\n mov $0x50600, %edi\n mov $3, %ecx\n xor %edx, %edx\n mov $0x11111111, %eax\n "
      "repne scasl\n hlt\n");

static void strings(void)
{
	struct machine m = make_machine(PLAIN);
	memcpy(m.memory + DATA, "\1\2\3\4", 4);
	LOAD32(&m, moves);
	run_through(&m, 40);
	say_registers(&m);
	say_bytes("memory", m.memory + DATA + 0x100, 10);
}

// Half of it is memory: MEMORY_SIZE ends in the middle.
GUEST(straddles, 32, "mov $0x40000, %ebx\n mov $0x12345678, %eax\n mov %eax, -2(%ebx)\n mov -2(%ebx), %ecx\n "
      "incl -1(%ebx)\n hlt\n");

static void half_memory(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, straddles);
	run_through(&m, 20);
	say_registers(&m);
	say_bytes("memory's end", m.memory + MEMORY_SIZE - 4, 4);
}

GUEST(vectors, 64,
      "mov $0x50000, %ebx\n movq $-1, 0x4000\n movups 0x4000, %xmm0\n movups %xmm0, (%rbx)\n movups 0x10(%rbx), %xmm1\n "
      "movdqu %xmm1, 0x4020\n"
      "hlt\n");
GUEST(quads, 64, "mov $0x50000, %ebx\n movq (%rbx), %mm0\n movq %mm0, 8(%rbx)\n hlt\n");
GUEST(doubles, 64, "mov $0x50000, %ebx\n cmpxchg8b (%rbx)\n hlt\n");

static void wide(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD64(&m, vectors);
	run_through(&m, 20);
	say_bytes("memory", m.memory + DATA + 0x20, 16);
	LOAD64(&m, quads);
	run_through(&m, 20);
	LOAD64(&m, doubles);
	run_through(&m, 20);
	say_registers(&m);
}

GUEST(jumps_out, 32, "mov $0x50000, %ebx\n jmp *%ebx\n");

static void code(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, jumps_out);
	run(&m);
	say_registers(&m);
	say("numbers of data: %d", m.run->exit_reason == KVM_EXIT_INTERNAL_ERROR && m.run->internal.ndata > 0);
}

GUEST(reads_once, 32, "mov $0x50000, %ebx\n mov (%ebx), %eax\n hlt\n");

static void registers(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, reads_once);
	run(&m);
	say_registers(&m);
	memcpy(m.run->mmio.data, "\x78\x56\x34\x12", 4);
	m.run->immediate_exit = 1;
	run(&m);
	say_registers(&m);
	m.run->immediate_exit = 0;
	run(&m);
	// A client that goes elsewhere before the access ends.
	LOAD32(&m, reads_once);
	run(&m);
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	r.rip = CODE + 7;
	NEED(ioctl(m.vcpu, KVM_SET_REGS, &r) == 0);
	run(&m);
}

// Without chips their addresses are like any other.
GUEST(touches_chips, 32, "mov 0xfee00030, %eax\n movl $0, 0xfee000b0\n mov 0xfec00000, %ebx\n hlt\n");

static void chips(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, touches_chips);
	run_through(&m, 10);
	say("with chips");
	m = make_machine(WITH_CHIPS);
	LOAD32(&m, touches_chips);
	handle_signal();
	signal_later(1000);
	run_through(&m, 10);
	say("eax & 0xff is 0x%llx, ebx 0x%llx", (unsigned long long)general_register(&m, 0) & 0xff,
	    (unsigned long long)general_register(&m, 1));
	say("with split chips");
	m = make_machine(WITH_SPLIT_CHIPS);
	LOAD32(&m, touches_chips);
	signal_later(1000);
	run_through(&m, 10);
}

const struct group mmio_group = {"memory-accesses", (const struct test_case[]){{"sizes", sizes},
									       {"changing", changing},
									       {"stacks", stacks},
									       {"strings", strings},
									       {"half-memory", half_memory},
									       {"wide", wide},
									       {"code", code},
									       {"registers", registers},
									       {"chips", chips},
									       {}}};
