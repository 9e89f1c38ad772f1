// Exits that are neither accesses nor the debugger's.
#include "oracle.h"

GUEST(halts, 16, "mov $5, %ax\n hlt\n inc %ax\n hlt\n");

static void halt(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD(&m, halts);
	run(&m);
	say_registers(&m);
	say("ready %u, interrupts %u, flags %u, cr8 %llu", m.run->ready_for_interrupt_injection, m.run->if_flag, m.run->flags,
	    m.run->cr8);
	say("base 0x%llx", m.run->apic_base);
	run(&m);
	say_registers(&m);
	struct kvm_mp_state state;
	NEED(ioctl(m.vcpu, KVM_GET_MP_STATE, &state) == 0);
	say("state %u", state.mp_state);
}

// No handler of interrupts can be reached: a fault becomes the third at once.
GUEST(faults, 32, "movl $0, 0x4000\n lidt 0x4000\n ud2\n");
GUEST(faults_long, 64, "movl $0, 0x4000\n lidt 0x4000\n int3\n");
GUEST(faults_real, 16, "lidtl 0x4000\n int $0x20\n");

static void shutdown(void)
{
	static const struct {
		const char *name;
		const uint8_t *code, *end;
		int bits;
	} guests[] = {{"protected mode", faults, faults_end, 32},
		      {"long mode", faults_long, faults_long_end, 64},
		      {"real mode", faults_real, faults_real_end, 16}};
	for (int i = 0; i < 3; i++) {
		struct machine m = make_machine(PLAIN);
		say("%s", guests[i].name);
		load(&m, guests[i].code, guests[i].end - guests[i].code, guests[i].bits);
		run(&m);
	}
}

static void triple_fault_event(void)
{
	struct machine m = make_machine(PLAIN);
	answer("event", enable(m.vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1));
	LOAD(&m, halts);
	struct kvm_vcpu_events events;
	NEED(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events) == 0);
	say("flags 0x%x", events.flags);
	events.triple_fault.pending = 1;
	ASK("pending", m.vcpu, KVM_SET_VCPU_EVENTS, &events);
	run(&m);
	m = make_machine(PLAIN);
	NEED(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events) == 0);
	say("flags 0x%x", events.flags);
	events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	ASK("not enabled", m.vcpu, KVM_SET_VCPU_EVENTS, &events);
}

GUEST(calls, 32,
      "mov $77, %eax\n vmmcall\n mov %eax, %esi\n mov $1, %eax\n vmmcall\n mov %eax, %edi\n mov $5, %eax\n "
      "xor %ebx, %ebx\n xor %ecx, %ecx\n"
      "vmmcall\n mov %eax, %ebp\n hlt\n");
GUEST(calls_other_way, 32, "mov $77, %eax\n vmcall\n mov %eax, %esi\n mov $1, %eax\n vmcall\n hlt\n");
GUEST(calls_long, 64, "mov $-2, %rax\n vmmcall\n mov %rax, %rsi\n mov $1, %eax\n vmmcall\n hlt\n");
GUEST(calls_real, 16, "mov $77, %eax\n vmmcall\n hlt\n");
GUEST(user_call, 32,
      "mov $0x23, %eax\n mov %eax, %ds\n call 1f\n 1: pop %ebx\n add $2f - 1b, %ebx\n pushl $0x23\n pushl $0x3000\n "
      "pushl $0x3002\n pushl $0x1b\n"
      "push %ebx\n iret\n 2: mov $1, %eax\n vmmcall\n out %al, $0x80\n");

static void calls_of_kvm(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD32(&m, calls);
	run(&m);
	say_registers(&m);
	LOAD32(&m, calls_other_way);
	run(&m);
	say_registers(&m);
	LOAD64(&m, calls_long);
	run(&m);
	say_registers(&m);
	LOAD(&m, calls_real);
	run(&m);
	say_registers(&m);
	LOAD32(&m, user_call);
	run(&m);
	say_registers(&m);
}

GUEST(calls_memory, 64, "mov $12, %eax\n mov $0x5000, %ebx\n mov $1, %ecx\n mov $0x10, %edx\n vmmcall\n "
      "mov %rax, %rsi\n hlt\n");

static void memory_call(void)
{
	struct machine m = make_machine(PLAIN);
	LOAD64(&m, calls_memory);
	run(&m);
	say_registers(&m);
	m = make_machine(PLAIN);
	answer("exits", enable(m.vm, KVM_CAP_EXIT_HYPERCALL, 1 << 12));
	LOAD64(&m, calls_memory);
	if (run(&m) == KVM_EXIT_HYPERCALL) {
		m.run->hypercall.ret = 0x55;
		run(&m);
	}
	say_registers(&m);
}

GUEST(opens_window, 16, "mov $0x80, %al\n out %al, $0x80\n sti\n nop\n nop\n out %al, $0x81\n hlt\n");
GUEST(handler, 16, "out %al, $0x99\n iret\n");

static void interrupt_window(void)
{
	struct machine m = make_machine(PLAIN);
	memcpy(m.memory + 0x2000, handler, handler_end - handler);
	*(uint32_t *)(m.memory + 0x20 * 4) = 0x2000;
	LOAD(&m, opens_window);
	run(&m);
	say("ready %u, interrupts %u", m.run->ready_for_interrupt_injection, m.run->if_flag);
	m.run->request_interrupt_window = 1;
	run(&m);
	say("ready %u, interrupts %u", m.run->ready_for_interrupt_injection, m.run->if_flag);
	struct kvm_interrupt interrupt = {.irq = 0x20};
	ASK("interrupt", m.vcpu, KVM_INTERRUPT, &interrupt);
	m.run->request_interrupt_window = 0;
	run(&m);
	say_registers(&m);
	run(&m);
	run(&m);
	say("ready %u, interrupts %u", m.run->ready_for_interrupt_injection, m.run->if_flag);
	// A halted one is woken.
	NEED(ioctl(m.vcpu, KVM_INTERRUPT, &interrupt) == 0);
	run(&m);
	say_registers(&m);
}

GUEST(sets_priority, 64, "mov $5, %eax\n mov %rax, %cr8\n mov %cr8, %rbx\n mov $3, %eax\n mov %rax, %cr8\n hlt\n");

static void task_priority(void)
{
	static const char *const names[] = {"without chips", "with split chips"};
	for (int i = 0; i < 2; i++) {
		struct machine m = make_machine(i ? WITH_SPLIT_CHIPS : PLAIN);
		say("%s", names[i]);
		LOAD64(&m, sets_priority);
		handle_signal();
		signal_later(1000);
		for (int k = 0; k < 4; k++) {
			int reason = run(&m);
			say("cr8 %llu", m.run->cr8);
			if (reason != KVM_EXIT_SET_TPR) break;
		}
		say_registers(&m);
		m.run->cr8 = 9;
		m.run->immediate_exit = 1;
		run(&m);
		struct kvm_sregs special;
		NEED(ioctl(m.vcpu, KVM_GET_SREGS, &special) == 0);
		say("cr8 %llu", special.cr8);
	}
}

GUEST(nothing, 64, "hlt\n");

// What no processor can be in.
static void impossible_state(void)
{
	struct machine m = make_machine(PLAIN);
	static const struct {
		const char *name;
		uint64_t cr0, cr4, efer;
	} states[] = {{"paging without protection", 0x80000010, 0x20, 0},
		      {"not write-through without cache", 0x20000011, 0, 0},
		      {"reserved bit of CR0", 1ull << 40 | 0x11, 0, 0},
		      {"reserved bit of CR4", 0x11, 1ull << 31, 0},
		      {"unknown bit of EFER", 0x11, 0, 1ull << 40},
		      {"reserved bit 1 of EFER", 0x11, 0, 2},
		      {"long mode that is not active", 0x80000011, 0x20, 0x100},
		      {"active long mode without paging", 0x11, 0x20, 0x500},
		      {"long mode without PAE", 0x80000011, 0, 0x500},
		      {"active long mode that is not on", 0x80000011, 0x20, 0x400},
		      {"virtualization on", 0x11, 0, 0x1000},
		      {"process identifiers outside long mode", 0x80000011, 1 << 17, 0}};
	for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
		m = make_machine(PLAIN);
		LOAD64(&m, nothing);
		struct kvm_sregs special;
		NEED(ioctl(m.vcpu, KVM_GET_SREGS, &special) == 0);
		special.cr0 = states[i].cr0;
		special.cr4 = states[i].cr4;
		special.efer = states[i].efer;
		ASK(states[i].name, m.vcpu, KVM_SET_SREGS, &special);
	}
}

GUEST(unknown, 16, "ud2\n");
GUEST(goes_nowhere, 64, "mov $0x50000, %ebx\n jmp *%rbx\n");

static void emulation_failure(void)
{
	for (int i = 0; i < 2; i++) {
		struct machine m = make_machine(PLAIN);
		if (i) answer("exits", enable(m.vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
		memcpy(m.memory + 0x2000, handler, handler_end - handler);
		*(uint32_t *)(m.memory + 6 * 4) = 0x2000;
		LOAD(&m, unknown);
		run(&m);
		LOAD64(&m, goes_nowhere);
		run(&m);
		say_registers(&m);
		if (i && m.run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
			say("data %d, flags 0x%llx", m.run->emulation_failure.ndata > 0, m.run->emulation_failure.flags);
	}
}

const struct group exit_group = {"exits", (const struct test_case[]){{"halt", halt},
								     {"shutdown", shutdown},
								     {"triple-fault-event", triple_fault_event},
								     {"calls", calls_of_kvm},
								     {"memory-call", memory_call},
								     {"interrupt-window", interrupt_window},
								     {"task-priority", task_priority},
								     {"impossible-state", impossible_state},
								     {"emulation-failure", emulation_failure},
								     {}}};
