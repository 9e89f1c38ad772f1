// The client's debugger in the guest.
#include "oracle.h"

GUEST(steps, 16, "inc %ax\n inc %ax\n mov %ax, 0x4000\n out %al, $0x80\n inc %bx\n hlt\n");
GUEST(stops, 16, "inc %ax\n int3\n hlt\n");
GUEST(long_steps, 64, "inc %eax\n inc %eax\n mov %eax, 0x4000\n cpuid\n inc %eax\n hlt\n");

static long debug(struct machine *m, uint32_t control, uint64_t breakpoint, uint64_t dr7)
{
	struct kvm_guest_debug request = {.control = control};
	request.arch.debugreg[0] = breakpoint;
	request.arch.debugreg[7] = dr7;
	errno = 0;
	return ioctl(m->vcpu, KVM_SET_GUEST_DEBUG, &request);
}

static void controls(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, steps);
	static const uint32_t values[] = {0,		    1,		 2,	      3,	   1 << 16,	1 << 16 | 1,
					  1 << 17 | 1, 1 << 20 | 1, 1 << 21 | 1, 1 << 22 | 1, 1u << 31 | 1, 0x30000};
	for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
		say("control 0x%x", values[i]);
		answer("is set", debug(&m, values[i], 0, 0));
	}
	ASK("from nowhere", m.vcpu, KVM_SET_GUEST_DEBUG, NULL);
	struct kvm_regs r;
	NEED(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
	say("flags 0x%llx", r.rflags);
	struct kvm_guest_debug inject = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB};
	ASK("exception is injected", m.vcpu, KVM_SET_GUEST_DEBUG, &inject);
	inject.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP;
	ASK("another meanwhile", m.vcpu, KVM_SET_GUEST_DEBUG, &inject);
}

static void single_steps(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, steps);
	answer("steps", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0, 0));
	for (int i = 0; i < 5; i++) run(&m);
	say_registers(&m);
	answer("off", debug(&m, 0, 0, 0));
	say_registers(&m);
	m = make_machine(PLAIN);
	LOAD64(&m, long_steps);
	answer("steps", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, 0, 0));
	for (int i = 0; i < 6; i++) run(&m);
}

static void software_breakpoint(void)
{
	struct machine m = make_machine(PLAIN);
	// Where it goes if the client does not get it.
	m.memory[0x2000] = 0xf4;
	*(uint32_t *)(m.memory + 3 * 4) = 0x2000;
	LOAD(&m, stops);
	answer("on", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP, 0, 0));
	run(&m);
}

static void instruction_breakpoint(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, steps);
	answer("on", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, CODE + 1, 0x401));
	run(&m);
	answer("off", debug(&m, 0, 0, 0));
	run_through(&m, 2);
}

static void write_breakpoint(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, steps);
	answer("on", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, DATA, 0x401 | 5 << 16));
	run(&m);
	answer("off", debug(&m, 0, 0, 0));
	run_through(&m, 2);
}

GUEST(has_breakpoint, 16, "mov $0x1234, %eax\n mov %eax, %dr0\n mov $0x701, %eax\n mov %eax, %dr7\n mov %dr6, %ebx\n "
      "mov %dr7, %ecx\n hlt\n");

static void of_the_guest(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, has_breakpoint);
	run(&m);
	say_registers(&m);
	struct kvm_debugregs registers;
	NEED(ioctl(m.vcpu, KVM_GET_DEBUGREGS, &registers) == 0);
	say("dr0 0x%llx dr6 0x%llx dr7 0x%llx", registers.db[0], registers.dr6, registers.dr7);
	say("while the client uses them");
	answer("hardware", debug(&m, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0x9999, 0x401));
	LOAD(&m, has_breakpoint);
	for (int i = 0; i < 8 && run(&m) == KVM_EXIT_DEBUG; i++) {
	}
	say_registers(&m);
}

// Its own trap flag, without the client.
GUEST(traps, 16, "pushf\n pop %ax\n or $0x100, %ax\n push %ax\n popf\n nop\n hlt\n");
GUEST(trap_handler, 16, "mov %dr6, %ebx\n out %al, $0x99\n hlt\n");

static void trap_of_the_guest(void)
{
	struct machine m = make_machine(PLAIN);
	memcpy(m.memory + 0x2000, trap_handler, trap_handler_end - trap_handler);
	*(uint32_t *)(m.memory + 4) = 0x2000;
	LOAD(&m, traps);
	run(&m);
	say_registers(&m);
}

const struct group debug_group = {"debugger", (const struct test_case[]){{"controls", controls},
									 {"single-steps", single_steps},
									 {"software-breakpoint", software_breakpoint},
									 {"instruction-breakpoint", instruction_breakpoint},
									 {"write-breakpoint", write_breakpoint},
									 {"of-the-guest", of_the_guest},
									 {"trap-of-the-guest", trap_of_the_guest},
									 {}}};
