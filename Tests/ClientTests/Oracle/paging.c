// Paging in its three formats, and the faults it makes.
#include "oracle.h"

enum { HANDLERS = 0x20000, DIRECTORY = 0x14000 };

// CR2 and the error code.
GUEST(handles, 32, "mov %cr2, %esi\n mov (%esp), %edi\n out %al, $0x99\n hlt\n");
GUEST(handles_long, 64, "mov %cr2, %rsi\n mov (%rsp), %rdi\n out %al, $0x99\n hlt\n");
// Goes to user code at 2: by a return.
#define TO_USER                                                                                                        \
	"mov $0x23, %eax\n mov %eax, %ds\n mov %eax, %es\n call 1f\n 1: pop %ebx\n add $2f - 1b, %ebx\n pushl $0x23\n"    \
	"pushl $0x3800\n pushl $2\n pushl $0x1b\n push %ebx\n iret\n 2:"

GUEST(reads, 32, "mov 0x105000, %eax\n mov 0x5000, %eax\n hlt\n");
GUEST(writes, 32, "mov $1, %eax\n mov %eax, 0x6000\n mov %cr0, %ecx\n or $0x10000, %ecx\n mov %ecx, %cr0\n "
      "mov %eax, 0x6000\n hlt\n");
GUEST(user_reads, 32, TO_USER "mov 0x7000, %eax\n mov 0x9000, %eax\n");
GUEST(user_writes, 32, TO_USER "mov %eax, 0x7000\n mov %eax, 0x6000\n");

// Pages of 4 KiB: page 5 is not there, 6 is read-only, 7 is the user's, 9 is not.
static void build_two_levels(struct machine *m)
{
	uint32_t *directory = (uint32_t *)(m->memory + DIRECTORY), *table = directory + 1024;
	directory[0] = (DIRECTORY + 0x1000) | 7;
	// 4 MiB at 4 MiB.
	directory[1] = 0x87;
	for (uint32_t i = 0; i < 0x100; i++) table[i] = i << 12 | 7;
	table[5] = 0;
	table[6] = 6 << 12 | 5;
	table[9] = 9 << 12 | 3;
	table[0x105] = 0x6000 | 7;
}

static void build_three_levels(struct machine *m)
{
	uint64_t *pointers = (uint64_t *)(m->memory + DIRECTORY), *directory = pointers + 512, *table = pointers + 1024;
	pointers[0] = (DIRECTORY + 0x1000) | 1;
	directory[0] = (DIRECTORY + 0x2000) | 7;
	for (uint64_t i = 0; i < 0x100; i++) table[i] = i << 12 | 7;
	table[5] = 0;
	table[6] = 6 << 12 | 5;
	table[9] = 9 << 12 | 3;
	table[0x105] = 0x6000 | 7;
}

static void run_32(const char *name, int has_three, const uint8_t *code, size_t count)
{
	struct machine m = make_machine(PLAIN);
	say("%s", name);
	load(&m, code, count, 32);
	if (has_three)
		build_three_levels(&m);
	else
		build_two_levels(&m);
	memcpy(m.memory + HANDLERS, handles, handles_end - handles);
	for (int vector = 0; vector < 32; vector++) {
		uint32_t gate[2] = {8 << 16 | (HANDLERS & 0xffff), (HANDLERS & 0xffff0000) | 0x8e00};
		memcpy(m.memory + TABLES + 0x800 + vector * 8, gate, 8);
	}
	// Where handlers of the user's faults have their stack.
	*(uint32_t *)(m.memory + TABLES - 0x200 + 4) = STACK;
	*(uint32_t *)(m.memory + TABLES - 0x200 + 8) = 16;
	struct kvm_sregs s;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr3 = DIRECTORY;
	s.cr4 = has_three ? 0x20 : 0x10;
	s.tr.type = 9;
	s.cr0 = 0x80000011;
	ASK("registers", m.vcpu, KVM_SET_SREGS, &s);
	run(&m);
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	say("cr2 0x%llx code 0x%llx rsp 0x%llx", r.rsi, r.rdi, r.rsp);
	if (!has_three) {
		uint32_t *table = (uint32_t *)(m.memory + DIRECTORY + 0x1000);
		say("entries: 0x%x 0x%x 0x%x 0x%x", table[5] & 0x67, table[6] & 0x67, table[7] & 0x67, table[9] & 0x67);
	}
}
#define RUN_32(name, has_three, guest) run_32(name, has_three, guest, guest##_end - guest)

static void two_levels(void)
{
	RUN_32("reads", 0, reads);
	RUN_32("writes", 0, writes);
	RUN_32("the user reads", 0, user_reads);
	RUN_32("the user writes", 0, user_writes);
}

static void three_levels(void)
{
	RUN_32("reads", 1, reads);
	RUN_32("writes", 1, writes);
	RUN_32("the user reads", 1, user_reads);
	RUN_32("the user writes", 1, user_writes);
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, reads);
	build_three_levels(&m);
	struct kvm_sregs s;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	s.cr3 = DIRECTORY;
	s.cr4 = 0x20;
	s.cr0 = 0x80000011;
	NEED(ioctl(m.vcpu, KVM_SET_SREGS, &s) == 0);
	struct kvm_sregs2 second;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS2, &second) == 0);
	say("flags 0x%llx, pointers 0x%llx 0x%llx", second.flags, second.pdptrs[0], second.pdptrs[1]);
	ASK("with pointers", m.vcpu, KVM_SET_SREGS2, &second);
}

GUEST(executes, 64, "mov $0x5000, %eax\n jmp *%rax\n");
GUEST(executes_user, 64, "mov $0x6000, %eax\n jmp *%rax\n");
GUEST(reads_user, 64, "mov 0x6000, %eax\n mov %cr4, %rcx\n or $0x200000, %rcx\n mov %rcx, %cr4\n stac\n "
      "mov 0x6000, %eax\n clac\n mov 0x6000, %eax\n");
GUEST(reads_far, 64, "mov $0x7fffffffffff, %rax\n mov (%rax), %ebx\n");
GUEST(reads_across, 64, "mov $0x30ffd, %eax\n mov (%rax), %rbx\n");
GUEST(writes_across, 64, "mov $0x30ffd, %eax\n movq $-1, (%rax)\n");

static void run_64(const char *name, const uint8_t *code, size_t count)
{
	struct machine m = make_machine(PLAIN);
	say("%s", name);
	load(&m, code, count, 64);
	uint64_t *tables = (uint64_t *)(m.memory + PAGES), *table = tables + 1536;
	// Page 5 has no code, 6 is the user's, 0x31 is not there.
	tables[1024] = PAGES + 0x3007;
	for (uint64_t i = 0; i < 0x40; i++) table[i] = i << 12 | 3;
	table[5] |= 1ull << 63;
	table[6] |= 4;
	table[0x31] = 0;
	memcpy(m.memory + HANDLERS, handles_long, handles_long_end - handles_long);
	for (int vector = 0; vector < 32; vector++) {
		uint32_t gate[4] = {8 << 16 | (HANDLERS & 0xffff), (HANDLERS & 0xffff0000) | 0x8e00};
		memcpy(m.memory + TABLES + 0x800 + vector * 16, gate, 16);
	}
	m.memory[0x5000] = m.memory[0x6000] = 0xf4;
	struct kvm_sregs s;
	NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
	s.efer |= 0x800;
	// No execution of the user's pages.
	s.cr4 |= 1 << 20;
	ASK("registers", m.vcpu, KVM_SET_SREGS, &s);
	run(&m);
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	say("cr2 0x%llx code 0x%llx rip 0x%llx", r.rsi, r.rdi, r.rip);
}
#define RUN_64(name, guest) run_64(name, guest, guest##_end - guest)

static void four_levels(void)
{
	RUN_64("executes what is no code", executes);
	RUN_64("executes the user's page", executes_user);
	RUN_64("reads the user's page", reads_user);
	RUN_64("reads what is far", reads_far);
	RUN_64("reads across pages", reads_across);
	RUN_64("writes across pages", writes_across);
}

const struct group paging_group = {
	"paging",
	(const struct test_case[]){{"two-levels", two_levels}, {"three-levels", three_levels}, {"four-levels", four_levels}, {}}};
