// Guests that change the processor's mode, and faults that they handle.
#include "oracle.h"

static void say_control(struct machine *m)
{
	struct kvm_sregs s;
	NEED(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0);
	say("cr0 0x%llx cr3 0x%llx cr4 0x%llx efer 0x%llx", s.cr0, s.cr3, s.cr4, s.efer);
	say("cs: base 0x%llx limit 0x%x selector 0x%x type %u dpl %u db %u l %u g %u", s.cs.base, s.cs.limit, s.cs.selector, s.cs.type,
	    s.cs.dpl, s.cs.db, s.cs.l, s.cs.g);
	say("ss: base 0x%llx limit 0x%x selector 0x%x type %u dpl %u db %u g %u", s.ss.base, s.ss.limit, s.ss.selector, s.ss.type, s.ss.dpl,
	    s.ss.db, s.ss.g);
}

// Far jumps go where the code is: CODE and what was counted.
GUEST(enters, 16,
      "cli\n lgdtl 0x7f00\n mov %cr0, %eax\n or $1, %eax\n mov %eax, %cr0\n ljmpl *0x7f08\n .org 0x40\n .code32\n "
      "mov $16, %eax\n mov %eax, %ds\n"
      "mov %eax, %ss\n out %al, $0x80\n mov $0x10000, %eax\n mov %eax, %cr3\n mov %cr4, %eax\n or $0x20, %eax\n "
      "mov %eax, %cr4\n"
      "mov $0xc0000080, %ecx\n rdmsr\n or $0x100, %eax\n wrmsr\n mov %cr0, %eax\n or $0x80000000, %eax\n "
      "mov %eax, %cr0\n out %al, $0x81\n"
      "ljmpl *0x7f10\n .org 0xa0\n .code64\n out %al, $0x82\n mov $0x1122334455667788, %rax\n hlt\n");

static void real_to_long(void)
{
	struct machine m = make_machine(PLAIN);
	const uint64_t descriptors[] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff};
	memcpy(m.memory + TABLES, descriptors, sizeof descriptors);
	memcpy(m.memory + 0x7f00, (uint8_t[]){0x1f, 0, 0, 0x80, 0, 0}, 6);
	memcpy(m.memory + 0x7f08, (uint8_t[]){0x40, 0x10, 0, 0, 8, 0}, 6);
	memcpy(m.memory + 0x7f10, (uint8_t[]){0xa0, 0x10, 0, 0, 24, 0}, 6);
	uint64_t *tables = (uint64_t *)(m.memory + PAGES);
	tables[0] = PAGES + 0x1007;
	tables[512] = PAGES + 0x2007;
	tables[1024] = 0x87;
	LOAD(&m, enters);
	for (int i = 0; i < 4; i++) {
		if (run(&m) == -1) break;
		say_control(&m);
	}
	say_registers(&m);
	say("accessed and dirty: 0x%llx 0x%llx 0x%llx", (unsigned long long)tables[0] & 0x60, (unsigned long long)tables[512] & 0x60,
	    (unsigned long long)tables[1024] & 0x60);
}

// A handler says what it was given: the error code is at the stack's top if there is one.
GUEST(handler, 64, "mov %cr2, %r8\n mov (%rsp), %r9\n mov 8(%rsp), %r10\n out %al, $0x99\n hlt\n");

GUEST(divides, 64, "xor %ecx, %ecx\n div %ecx\n");
GUEST(undefined, 64, "ud2\n");
GUEST(reads_unmapped, 64, "mov 0x300000, %eax\n");
GUEST(writes_unmapped, 64, "mov $0x345678, %ebx\n mov %eax, (%rbx)\n");
GUEST(jumps_unmapped, 64, "mov $0x345678, %ebx\n jmp *%rbx\n");
GUEST(not_canonical, 64, "mov $0x8000000000000000, %rbx\n mov (%rbx), %eax\n");
GUEST(bad_selector, 64, "mov $0x3b8, %eax\n mov %eax, %ds\n");
GUEST(absent_segment, 64, "mov $0x28, %eax\n mov %eax, %ds\n");
GUEST(breakpoint, 64, "int3\n");
GUEST(software, 64, "int $0x40\n");
GUEST(bad_control, 64, "mov $0x80000000, %eax\n mov %rax, %cr0\n");
GUEST(bad_control_4, 64, "mov $-1, %rax\n mov %rax, %cr4\n");
GUEST(bad_priority, 64, "mov $0x10, %eax\n mov %rax, %cr8\n");
GUEST(bad_debug, 64, "mov $-1, %rax\n mov %rax, %dr7\n");
GUEST(bad_table, 64, "mov $-1, %rax\n mov %rax, %cr3\n");
GUEST(writes_code_segment, 64, "mov $8, %eax\n mov %eax, %ss\n");
GUEST(reserved_entry, 64, "mov 0x40000000, %eax\n");
GUEST(unknown_register, 64, "mov $0x12345678, %ecx\n rdmsr\n");
GUEST(no_instruction, 64, ".byte 0x0f, 0xff, 0xc0\n");
GUEST(lock_prefix, 64, ".byte 0xf0\n nop\n");
GUEST(misaligned, 64, "movaps 0x4001, %xmm0\n");
GUEST(floating_off, 64, "mov %cr0, %rax\n or $8, %eax\n mov %rax, %cr0\n fninit\n");
GUEST(long_instruction, 64, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90\n");
GUEST(single_step, 64, "pushf\n orl $0x100, (%rsp)\n popf\n nop\n nop\n");

static void faults(void)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
	} all[] = {{"divides by 0", divides, divides_end},
		   {"undefined", undefined, undefined_end},
		   {"reads an unmapped page", reads_unmapped, reads_unmapped_end},
		   {"writes an unmapped page", writes_unmapped, writes_unmapped_end},
		   {"jumps to an unmapped page", jumps_unmapped, jumps_unmapped_end},
		   {"address that is not canonical", not_canonical, not_canonical_end},
		   {"selector beyond the table", bad_selector, bad_selector_end},
		   {"segment that is not present", absent_segment, absent_segment_end},
		   {"breakpoint", breakpoint, breakpoint_end},
		   {"interrupt by software", software, software_end},
		   {"paging without protection", bad_control, bad_control_end},
		   {"reserved bits of CR4", bad_control_4, bad_control_4_end},
		   {"reserved bits of CR8", bad_priority, bad_priority_end},
		   {"reserved bits of DR7", bad_debug, bad_debug_end},
		   {"reserved bits of CR3", bad_table, bad_table_end},
		   {"stack in a code segment", writes_code_segment, writes_code_segment_end},
		   {"reserved bits of an entry", reserved_entry, reserved_entry_end},
		   {"unknown register", unknown_register, unknown_register_end},
		   {"no instruction", no_instruction, no_instruction_end},
		   {"lock without memory", lock_prefix, lock_prefix_end},
		   {"vector at an odd address", misaligned, misaligned_end},
		   {"floating point while off", floating_off, floating_off_end},
		   {"16 bytes", long_instruction, long_instruction_end},
		   {"step", single_step, single_step_end}};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		struct machine m = make_machine(PLAIN);
		say("%s", all[i].name);
		load(&m, all[i].code, all[i].end - all[i].code, 64);
		uint64_t *tables = (uint64_t *)(m.memory + PAGES);
		tables[512 + 1] = 0x40000083 | 1ull << 51 | 1ull << 13;
		((uint64_t *)(m.memory + TABLES))[5] = 0x00cf13000000ffff;
		// Each vector has its own copy of the handler, so that RIP tells which it was.
		for (int vector = 0; vector < 0x41; vector++) {
			uint32_t gate[4] = {0x00080000 | (0x20000 + vector * 0x100) % 0x10000, 0x00028e00};
			memcpy(m.memory + TABLES + 0x800 + vector * 16, gate, 16);
			memcpy(m.memory + 0x20000 + vector * 0x100, handler, handler_end - handler);
		}
		struct kvm_sregs s;
		NEED(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
		s.cr4 |= 0x600;
		NEED(ioctl(m.vcpu, KVM_SET_SREGS, &s) == 0);
		run(&m);
		struct kvm_regs r;
		NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
		// The error code, or where it came from.
		say("vector 0x%llx, flags 0x%llx, rsp 0x%llx, cr2 0x%llx, stack 0x%llx 0x%llx", (r.rip - 0x20000) >> 8, r.rflags, r.rsp, r.r8,
		    r.r9, r.r10);
	}
}

GUEST(system_call, 64,
      "mov $0xc0000080, %ecx\n rdmsr\n or $1, %eax\n wrmsr\n mov $0xc0000081, %ecx\n xor %eax, %eax\n "
      "mov $0x00100008, %edx\n wrmsr\n"
      "mov $0xc0000082, %ecx\n mov $0x2000, %eax\n xor %edx, %edx\n wrmsr\n mov $0xc0000084, %ecx\n mov $0x1, %eax\n "
      "wrmsr\n stc\n"
      "syscall\n");
GUEST(system_handler, 64, "mov %rcx, %rbx\n mov %r11, %rsi\n out %al, $0x99\n hlt\n");

static void system_calls(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD64(&m, system_call);
	memcpy(m.memory + 0x2000, system_handler, system_handler_end - system_handler);
	run(&m);
	say_registers(&m);
	say_control(&m);
}

const struct group mode_group = {
	"modes", (const struct test_case[]){{"real-to-long", real_to_long}, {"faults", faults}, {"system-calls", system_calls}, {}}};
