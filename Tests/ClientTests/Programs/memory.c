// Memory of a guest goes away under every kind of access, in four ways: KVM_RUN fails with EFAULT, and goes on where it
// was once the memory is back.
#include "client.h"
#include <linux/userfaultfd.h>
#include <poll.h>

enum { PAGE = 4096, PAGE_COUNT = 64, PORT = 0x10 };

// The guest's pages, which are mapped to themselves.
enum {
	START = 0x1000,
	MAP4 = 0x2000,
	MAP3 = 0x3000,
	MAP2 = 0x4000,
	MAP1 = 0x5000,
	GDT = 0x6000,
	IDT = 0x7000,
	STACK = 0x9000,
	A = 0xa000,
	B = 0xb000,
	C = 0xc000,
	D = 0xd000,
	CLOCK = 0xf000,
	FAR = 0x10000,
	HANDLER = 0x11000,
	STACK2 = 0x12000,
	SMM_CODE = 0x38000,
	SMM_AREA = 0x3f000,
};

// Each guest is a loop of 64-bit code, which tells its progress at a port. RBX is a data page, RBP the one behind it, R12 a
// third, R13 the one behind that.
#define GUEST(name, text)                                                                                              \
	extern const uint8_t guest_##name[], guest_##name##_end[];                                                     \
	__asm__(".section .rodata\nguest_" #name ":\n" text "\nguest_" #name "_end:\n.text\n")
#define TELL "out %eax, $0x10\n"
#define LOOP(text) "1:\n" text "\n" TELL "jmp 1b\n"

GUEST(load, LOOP("mov (%rbx), %eax"));
GUEST(store, LOOP("inc %eax\nmov %eax, (%rbx)"));
GUEST(locked, LOOP("lock incl (%rbx)\nmov (%rbx), %eax"));
GUEST(exchange, LOOP("inc %ecx\nmov %ecx, %eax\nxchg %eax, (%rbx)\nmov %ecx, %eax"));
GUEST(vector, LOOP("movups (%rbx), %xmm0\nmovups %xmm0, 16(%rbx)"));
GUEST(push, LOOP("inc %rax\npush %rax\npop %rcx\ncall 2f\nmov %ecx, %eax\njmp 3f\n2: ret\n3:"));
GUEST(cross_load, LOOP("mov -4(%rbp), %rax\nshr $32, %rax"));
GUEST(cross_add, LOOP("addq $1, -4(%rbp)\nmov -4(%rbp), %rax"));
GUEST(cross_locked, LOOP("lock addq $1, -4(%rbp)\nmov -4(%rbp), %rax"));
GUEST(walk, LOOP("mov %cr3, %rax\nmov %rax, %cr3\nincl (%rbx)\nmov (%rbx), %eax"));
GUEST(interrupt, LOOP("inc %eax\nint $0x80"));
GUEST(segment, LOOP("inc %eax\nmov $0x10, %ecx\nmov %ecx, %ds"));
GUEST(far_code, LOOP("inc %eax\nmov $0x10000, %edx\ncall *%rdx"));
GUEST(move_page, LOOP("mov %rbx, %rsi\nmov %r12, %rdi\nmov $64, %ecx\nrep movsq\nlea (%rdi,%rcx), %eax"));
GUEST(move_edge,
      LOOP("lea -0x80(%rbp), %rsi\nlea -0x40(%r13), %rdi\nmov $0x100, %ecx\nrep movsb\nlea (%rdi,%rcx), %eax"));
GUEST(move_down,
      LOOP("std\nlea 0x7f(%rbp), %rsi\nlea 0x3f(%r13), %rdi\nmov $0x100, %ecx\nrep movsb\ncld\nlea (%rdi,%rcx), %eax"));
GUEST(fill_page, LOOP("mov %rbx, %rdi\nmov $512, %ecx\nmov $0x55, %eax\nrep stosq\nlea (%rdi,%rcx), %eax"));
GUEST(fill_edge, LOOP("lea -0x42(%rbp), %rdi\nmov $0x20, %ecx\nmov $0x55, %eax\nrep stosl\nlea (%rdi,%rcx), %eax"));
GUEST(load_string, LOOP("mov %rbx, %rsi\nxor %eax, %eax\nlodsb"));
GUEST(scan, LOOP("mov %rbx, %rdi\nmov $0x200, %ecx\nmov $0xee, %eax\nrepne scasb\nlea (%rdi,%rcx), %eax"));
GUEST(compare, LOOP("mov %rbx, %rsi\nmov %r12, %rdi\nmov $0x200, %ecx\nrepe cmpsb\nlea (%rdi,%rcx), %eax"));
GUEST(save, LOOP("inc %eax\nfxsave (%rbx)"));
GUEST(restore, LOOP("inc %eax\nfxrstor (%rbx)"));
GUEST(bits, LOOP("inc %r8d\nmov $100, %ecx\nbtc %rcx, (%rbx)\nmov 12(%rbx), %eax\nshr $4, %eax\nxor %r8d, %eax\n"
		 "and $1, %eax\nlea (%rax,%r8,2), %eax"));
GUEST(locked_bits, LOOP("mov $-1, %rcx\nlock btc %rcx, (%rbp)\nmov -1(%rbp), %al"));
GUEST(masked, LOOP("inc %eax\npcmpeqb %xmm0, %xmm0\nmov %rbx, %rdi\nmaskmovdqu %xmm0, %xmm0"));
GUEST(out_string, LOOP("mov %rbx, %rsi\nmov $0x11, %edx\noutsb"));
GUEST(in_string, LOOP("mov %rbx, %rdi\nmov $0x11, %edx\ninsb\nmov (%rbx), %eax"));
GUEST(clock, LOOP("mov $0x4b564d01, %ecx\nmov $0xf001, %eax\nxor %edx, %edx\nwrmsr"));
GUEST(mixture, LOOP("lock incl (%rbx)\naddq $1, -4(%rbp)\nmov %cr3, %rax\nmov %rax, %cr3\n"
		    "push %rbx\ncall 2f\npop %rcx\n"
		    "int $0x80\nlea -0x80(%rbp), %rsi\nlea -0x40(%r13), %rdi\nmov $0x100, %ecx\nrep movsb\n"
		    "mov %r12, %rdi\nmov $0x40, %ecx\nrep stosq\nmov %rbx, %rdi\nmov $-1, %ecx\nmov $0xee, %eax\n"
		    "mov $0x300, %ecx\nrepne scasb\nfxsave (%r12)\nlock btsq $70, (%r13)\nmov $0x10, %ecx\nmov %ecx, %ds\n"
		    "mov $0x10000, %edx\ncall *%rdx\nmov (%rbx), %eax\njmp 3f\n2: ret\n3:"));
GUEST(spin, "1: jmp 1b\n");

struct machine {
	int kvm, vm, vcpu, vcpu2;
	struct kvm_run *run, *run2;
	uint8_t *memory, *copy;
	int file[PAGE_COUNT];
};

static void map_page(struct machine *m, int page)
{
	uint8_t *address = m->memory + page * PAGE;
	CHECK(mmap(address, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m->file[page], 0) == address);
}

static void set_registers(int vcpu, uint64_t stack)
{
	struct kvm_sregs s;
	CHECK(ioctl(vcpu, KVM_GET_SREGS, &s) == 0);
	struct kvm_segment data = {.limit = ~0u, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .l = 1, .s = 1, .g = 1};
	s.cs = code;
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	s.cr0 = 0x80010033;
	s.cr3 = MAP4;
	s.cr4 = 0x620;
	s.efer = 0x500;
	s.gdt.base = GDT, s.gdt.limit = 0x1f;
	s.idt.base = IDT, s.idt.limit = 0xfff;
	CHECK(ioctl(vcpu, KVM_SET_SREGS, &s) == 0);
	struct kvm_regs r = {.rip = START, .rflags = 2, .rsp = stack + PAGE, .rbx = A, .rbp = B, .r12 = C, .r13 = D};
	CHECK(ioctl(vcpu, KVM_SET_REGS, &r) == 0);
}

static void entry(struct machine *m, uint64_t table, int index, uint64_t value)
{
	memcpy(m->memory + table + index * 8, &value, 8);
}

static struct machine make_machine(const uint8_t *code, const uint8_t *end)
{
	struct machine m = {.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)};
	CHECK(m.kvm >= 0);
	CHECK((m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0)) >= 0);
	m.memory = mmap(NULL, PAGE_COUNT * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	m.copy = malloc(PAGE_COUNT * PAGE);
	for (int page = 0; page < PAGE_COUNT; page++) {
		CHECK((m.file[page] = syscall(SYS_memfd_create, "page", 0)) >= 0);
		CHECK(ftruncate(m.file[page], PAGE) == 0);
		map_page(&m, page);
	}
	struct kvm_userspace_memory_region region = {.memory_size = PAGE_COUNT * PAGE,
						     .userspace_addr = (uintptr_t)m.memory};
	CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	entry(&m, MAP4, 0, MAP3 | 7);
	entry(&m, MAP3, 0, MAP2 | 7);
	entry(&m, MAP2, 0, MAP1 | 7);
	for (int page = 0; page < PAGE_COUNT; page++) entry(&m, MAP1, page, page * PAGE | 7);
	entry(&m, GDT, 1, 0x00af9b000000ffff);
	entry(&m, GDT, 2, 0x00cf93000000ffff);
	entry(&m, IDT, 0x100, (uint64_t)(HANDLER & 0xffff) | 8 << 16 | 0x8e00ull << 32 | (uint64_t)(HANDLER >> 16) << 48);
	memcpy(m.memory + START, code, end - code);
	// ret; iretq; out %al, $0x10 and rsm
	memcpy(m.memory + FAR, "\xc3", 1);
	memcpy(m.memory + HANDLER, "\x48\xcf", 2);
	memcpy(m.memory + SMM_CODE, "\xe6\x10\x0f\xaa", 4);
	for (int i = 0; i < 4 * PAGE; i++) m.memory[A + i] = i < PAGE || i >= 2 * PAGE ? 0 : i * 7;
	// What FXRSTOR loads.
	memcpy(m.memory + A, "\x7f\x03", 2);
	memcpy(m.memory + A + 24, "\x80\x1f", 2);
	int size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	CHECK((m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0)) >= 0 && (m.vcpu2 = ioctl(m.vm, KVM_CREATE_VCPU, 1)) >= 0);
	m.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	m.run2 = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu2, 0);
	CHECK(m.run != MAP_FAILED && m.run2 != MAP_FAILED);
	struct {
		struct kvm_cpuid2 header;
		struct kvm_cpuid_entry2 entries[200];
	} cpuid = {.header.nent = 200};
	CHECK(ioctl(m.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0);
	CHECK(ioctl(m.vcpu, KVM_SET_CPUID2, &cpuid) == 0 && ioctl(m.vcpu2, KVM_SET_CPUID2, &cpuid) == 0);
	set_registers(m.vcpu, STACK);
	set_registers(m.vcpu2, STACK2);
	return m;
}

static void free_machine(struct machine *m)
{
	close(m->vcpu), close(m->vcpu2), close(m->vm), close(m->kvm);
	munmap(m->memory, PAGE_COUNT * PAGE);
	for (int page = 0; page < PAGE_COUNT; page++) close(m->file[page]);
	free(m->copy);
}

enum way { UNMAPPED, PROTECTED, READ_ONLY, TRUNCATED };

static void take(struct machine *m, int address, enum way way)
{
	uint8_t *page = m->memory + address;
	memcpy(m->copy + address, page, PAGE);
	switch (way) {
	case UNMAPPED: CHECK(munmap(page, PAGE) == 0); break;
	case PROTECTED: CHECK(mprotect(page, PAGE, PROT_NONE) == 0); break;
	case READ_ONLY: CHECK(mprotect(page, PAGE, PROT_READ) == 0); break;
	case TRUNCATED: CHECK(ftruncate(m->file[address / PAGE], 0) == 0); break;
	}
}

static void give_back(struct machine *m, int address, enum way way)
{
	switch (way) {
	case UNMAPPED: map_page(m, address / PAGE); break;
	case PROTECTED:
	case READ_ONLY: CHECK(mprotect(m->memory + address, PAGE, PROT_READ | PROT_WRITE) == 0); break;
	case TRUNCATED:
		CHECK(ftruncate(m->file[address / PAGE], PAGE) == 0);
		memcpy(m->memory + address, m->copy + address, PAGE);
		break;
	}
}

// What the guest told.
static uint32_t told(struct kvm_run *run)
{
	return *(uint32_t *)((uint8_t *)run + run->io.data_offset);
}

// Runs until the guest tells something at its port.
static uint32_t run(struct machine *m)
{
	do {
		CHECK(ioctl(m->vcpu, KVM_RUN, 0) == 0);
		if (m->run->exit_reason != KVM_EXIT_IO) {
			struct kvm_regs r;
			ioctl(m->vcpu, KVM_GET_REGS, &r);
			printf("exit %u at %llx, suberror %u\n", m->run->exit_reason, r.rip, m->run->internal.suberror);
			exit(1);
		}
	} while (m->run->io.port != PORT);
	return told(m->run);
}

static const char *const ways[] = {"munmap", "mprotect", "mprotect of writing", "ftruncate"};

// `page` goes away between two rounds of a guest. Without the failure `step` is the difference between what they tell.
static void try(const char *name, const uint8_t *code, const uint8_t *end, int page, int is_written, uint32_t step)
{
	for (enum way way = UNMAPPED; way <= TRUNCATED; way++) {
		if (way == READ_ONLY && !is_written) continue;
		struct machine m = make_machine(code, end);
		uint32_t first = run(&m);
		for (int round = 1; round <= 2; round++) {
			take(&m, page, way);
			for (int i = 0; i < 2; i++) {
				int result = ioctl(m.vcpu, KVM_RUN, 0);
				// An OUTSB may come first, and it has nothing to do with the memory.
				if (result == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.port != PORT) {
					result = ioctl(m.vcpu, KVM_RUN, 0);
				}
				if (result != -1 || errno != EFAULT) {
					printf("%s, page %x, %s: KVM_RUN gives %d, errno %d, exit %u\n", name, page, ways[way],
					       result, errno, m.run->exit_reason);
					exit(1);
				}
			}
			give_back(&m, page, way);
			uint32_t next = run(&m);
			if (next != first + round * step) {
				printf("%s, page %x, %s: told %x after %x in round %d\n", name, page, ways[way], next, first, round);
				exit(1);
			}
		}
		free_machine(&m);
	}
}
#define TRY(name, page, is_written, step) try(#name, guest_##name, guest_##name##_end, page, is_written, step)

static void accesses(void)
{
	TRY(load, A, 0, 0);
	TRY(store, A, 1, 1);
	TRY(locked, A, 1, 1);
	TRY(exchange, A, 1, 1);
	TRY(vector, A, 1, 0);
	TRY(push, STACK, 1, 1);
	TRY(cross_load, A, 0, 0);
	TRY(cross_load, B, 0, 0);
	TRY(cross_add, A, 1, 1);
	TRY(cross_add, B, 1, 1);
	TRY(cross_locked, A, 1, 1);
	TRY(cross_locked, B, 1, 1);
	TRY(bits, A, 1, 2);
	TRY(masked, A, 1, 1);
	TRY(save, A, 1, 1);
	TRY(restore, A, 0, 1);
}

static void structures(void)
{
	TRY(walk, MAP1, 0, 1);
	TRY(walk, MAP2, 0, 1);
	TRY(walk, MAP3, 0, 1);
	TRY(walk, MAP4, 0, 1);
	TRY(interrupt, IDT, 0, 1);
	TRY(interrupt, GDT, 0, 1);
	TRY(interrupt, STACK, 1, 1);
	TRY(segment, GDT, 0, 1);
}

static void strings(void)
{
	TRY(move_page, A, 0, 0);
	TRY(move_page, C, 1, 0);
	TRY(move_edge, A, 0, 0);
	TRY(move_edge, B, 0, 0);
	TRY(move_edge, C, 1, 0);
	TRY(move_edge, D, 1, 0);
	TRY(move_down, A, 0, 0);
	TRY(move_down, B, 0, 0);
	TRY(move_down, C, 1, 0);
	TRY(move_down, D, 1, 0);
	TRY(fill_page, A, 1, 0);
	TRY(fill_edge, A, 1, 0);
	TRY(fill_edge, B, 1, 0);
	TRY(load_string, A, 0, 0);
	TRY(scan, A, 0, 0);
	TRY(compare, A, 0, 0);
	TRY(compare, C, 0, 0);
	TRY(out_string, A, 0, 0);
}

// A locked change of a bit string toggles the highest bit of the byte below the page.
static void locked_bits(void)
{
	struct machine m = make_machine(guest_locked_bits, guest_locked_bits_end);
	CHECK((run(&m) & 0xff) == 0x80);
	take(&m, A, PROTECTED);
	FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
	give_back(&m, A, PROTECTED);
	CHECK((run(&m) & 0xff) == 0);
	free_machine(&m);
}

// Setting an accessed bit needs a table that can be written.
static void accessed_bits(void)
{
	struct machine m = make_machine(guest_walk, guest_walk_end);
	uint32_t first = run(&m);
	m.memory[MAP1 + A / PAGE * 8] &= ~0x60;
	take(&m, MAP1, READ_ONLY);
	FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
	CHECK((m.memory[MAP1 + A / PAGE * 8] & 0x60) == 0);
	give_back(&m, MAP1, READ_ONLY);
	CHECK(run(&m) == first + 1);
	CHECK((m.memory[MAP1 + A / PAGE * 8] & 0x60) == 0x60);
	free_machine(&m);
}

// Code that was never executed cannot be fetched. What was translated goes on until the page is looked at again.
static void code(void)
{
	for (enum way way = UNMAPPED; way <= TRUNCATED; way++) {
		if (way == READ_ONLY) continue;
		struct machine m = make_machine(guest_far_code, guest_far_code_end);
		take(&m, FAR, way);
		FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
		FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
		give_back(&m, FAR, way);
		uint32_t first = run(&m);
		take(&m, FAR, way);
		// A flush of the TLB forgets what is known of the page, and the next jump finds it.
		set_registers(m.vcpu, STACK);
		FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
		give_back(&m, FAR, way);
		CHECK(run(&m) >= first);
		free_machine(&m);
	}
}

// An interrupt that cannot be delivered is not lost.
static void pending_event(void)
{
	struct machine m = make_machine(guest_spin, guest_spin_end);
	// out %al, $0x10; iretq
	memcpy(m.memory + HANDLER, "\xe6\x10\x48\xcf", 4);
	struct kvm_regs r;
	CHECK(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	r.rflags |= 0x200;
	CHECK(ioctl(m.vcpu, KVM_SET_REGS, &r) == 0);
	struct kvm_interrupt interrupt = {.irq = 0x80};
	CHECK(ioctl(m.vcpu, KVM_INTERRUPT, &interrupt) == 0);
	static const int pages[] = {IDT, GDT, STACK, HANDLER};
	for (int i = 0; i < 4; i++) {
		take(&m, pages[i], PROTECTED);
		FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
		give_back(&m, pages[i], PROTECTED);
	}
	run(&m);
	free_machine(&m);
}

// The client's answer to INSB is stored once there is memory for it.
static void answered_input(void)
{
	struct machine m = make_machine(guest_in_string, guest_in_string_end);
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->io.port == 0x11 && m.run->io.direction == KVM_EXIT_IO_IN);
	*((uint8_t *)m.run + m.run->io.data_offset) = 0x5a;
	take(&m, A, PROTECTED);
	FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
	FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
	give_back(&m, A, PROTECTED);
	CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->io.port == PORT && (told(m.run) & 0xff) == 0x5a);
	free_machine(&m);
}

// The clock's structure is written if it can be, and that is all.
static void clock_page(void)
{
	for (enum way way = UNMAPPED; way <= TRUNCATED; way++) {
		struct machine m = make_machine(guest_clock, guest_clock_end);
		run(&m);
		uint32_t version;
		memcpy(&version, m.memory + CLOCK, 4);
		CHECK(version != 0 && version % 2 == 0);
		take(&m, CLOCK, way);
		run(&m);
		give_back(&m, CLOCK, way);
		run(&m);
		memcpy(&version, m.memory + CLOCK, 4);
		CHECK(version != 0 && version % 2 == 0);
		free_machine(&m);
	}
}

static void system_management(void)
{
	struct machine m = make_machine(guest_store, guest_store_end);
	if (ioctl(m.vm, KVM_CHECK_EXTENSION, KVM_CAP_X86_SMM) <= 0) {
		fputs("skipped: no system management mode\n", stderr);
		return free_machine(&m);
	}
	struct kvm_userspace_memory_region region = {
		.slot = 1 << 16, .memory_size = PAGE_COUNT * PAGE, .userspace_addr = (uintptr_t)m.memory};
	CHECK(ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	uint32_t first = run(&m);
	for (int round = 1; round <= 3; round++) {
		CHECK(ioctl(m.vcpu, KVM_SMI, 0) == 0);
		for (enum way way = UNMAPPED; way <= TRUNCATED; way++) {
			take(&m, SMM_AREA, way);
			FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
			give_back(&m, SMM_AREA, way);
		}
		CHECK(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO && m.run->io.size == 1);
		CHECK(m.run->flags & KVM_RUN_X86_SMM);
		take(&m, SMM_AREA, PROTECTED);
		FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
		give_back(&m, SMM_AREA, PROTECTED);
		CHECK(run(&m) == first + round);
	}
	free_machine(&m);
}

struct runner {
	int vcpu;
	struct kvm_run *run;
	volatile int *stop;
	uint64_t success_count, failure_count;
};

static void *run_mixture(void *argument)
{
	struct runner *r = argument;
	while (!*r->stop) {
		if (ioctl(r->vcpu, KVM_RUN, 0) == 0) {
			CHECK(r->run->exit_reason == KVM_EXIT_IO);
			r->success_count++;
		} else {
			CHECK(errno == EFAULT);
			r->failure_count++;
		}
	}
	return NULL;
}

// Two vCPUs run while pages come and go.
static void toggles(void)
{
	struct machine m = make_machine(guest_mixture, guest_mixture_end);
	volatile int stop = 0;
	struct runner runners[] = {{.vcpu = m.vcpu, .run = m.run, .stop = &stop},
				   {.vcpu = m.vcpu2, .run = m.run2, .stop = &stop}};
	pthread_t threads[2];
	// The threads block what they can, the signals of faults among it.
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (int i = 0; i < 2; i++) pthread_create(&threads[i], NULL, run_mixture, &runners[i]);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	static const int pages[] = {MAP1, MAP2, MAP3, MAP4, GDT, IDT, STACK, STACK2, A, B, C, D, FAR, HANDLER, START};
	static const int protections[] = {PROT_NONE, PROT_READ};
	unsigned seed = time(NULL);
	struct timespec begin, now;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		uint8_t *page = m.memory + pages[rand_r(&seed) % (sizeof pages / sizeof *pages)];
		CHECK(mprotect(page, PAGE, protections[rand_r(&seed) % 2]) == 0);
		for (volatile int i = rand_r(&seed) % 20000; i > 0; i--) {
		}
		CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE) == 0);
		for (volatile int i = rand_r(&seed) % 20000; i > 0; i--) {
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000 < 2000);
	stop = 1;
	for (int i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		CHECK(runners[i].success_count > 0 && runners[i].failure_count > 0);
		CHECK(ioctl(runners[i].vcpu, KVM_RUN, 0) == 0);
	}
	free_machine(&m);
}

struct pager {
	int descriptor;
	const uint8_t *content;
};

// Gives one page after a while.
static void *page_in(void *argument)
{
	struct pager *p = argument;
	struct pollfd wait = {.fd = p->descriptor, .events = POLLIN};
	CHECK(poll(&wait, 1, 10000) == 1);
	struct uffd_msg message;
	CHECK(read(p->descriptor, &message, sizeof message) == sizeof message && message.event == UFFD_EVENT_PAGEFAULT);
	sleep_milliseconds(50);
	struct uffdio_copy copy = {
		.dst = message.arg.pagefault.address & ~0xfffull, .src = (uintptr_t)p->content, .len = PAGE};
	CHECK(ioctl(p->descriptor, UFFDIO_COPY, &copy) == 0);
	return NULL;
}

// A thread that waits for a page to come is inside the guest; the access completes when the page is there.
static void late_pages(void)
{
	static const int pages[] = {A, MAP1, MAP2};
	for (int signals = 0; signals < 2; signals++) {
		for (int i = 0; i < 3; i++) {
			int descriptor = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
			if (descriptor < 0) {
				fprintf(stderr, "skipped: no userfaultfd (%s)\n", strerror(errno));
				return;
			}
			struct uffdio_api api = {.api = UFFD_API, .features = signals ? UFFD_FEATURE_SIGBUS : 0};
			CHECK(ioctl(descriptor, UFFDIO_API, &api) == 0);
			struct machine m = make_machine(guest_walk, guest_walk_end);
			uint32_t first = run(&m);
			uint8_t *page = m.memory + pages[i];
			memcpy(m.copy, page, PAGE);
			CHECK(mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
			struct uffdio_register registration = {.range = {.start = (uintptr_t)page, .len = PAGE},
							       .mode = UFFDIO_REGISTER_MODE_MISSING};
			CHECK(ioctl(descriptor, UFFDIO_REGISTER, &registration) == 0);
			struct pager pager = {descriptor, m.copy};
			if (signals) {
				FAILS(EFAULT, ioctl(m.vcpu, KVM_RUN, 0));
				struct uffdio_copy copy = {.dst = (uintptr_t)page, .src = (uintptr_t)m.copy, .len = PAGE};
				CHECK(ioctl(descriptor, UFFDIO_COPY, &copy) == 0);
				CHECK(run(&m) == first + 1);
			} else {
				pthread_t thread;
				pthread_create(&thread, NULL, page_in, &pager);
				CHECK(run(&m) == first + 1);
				pthread_join(thread, NULL);
			}
			close(descriptor);
			free_machine(&m);
		}
	}
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	accesses();
	structures();
	strings();
	locked_bits();
	accessed_bits();
	code();
	pending_event();
	answered_input();
	clock_page();
	system_management();
	toggles();
	late_pages();
	puts("passed");
}
