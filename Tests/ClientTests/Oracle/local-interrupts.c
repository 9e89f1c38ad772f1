// Interrupts of the local controller in long mode: timers, commands between processors, lines of the IOAPIC, reports of accesses.
#include "oracle.h"

enum { HANDLER = 0x2000, LOCAL = 0xfee00000 };

// What every guest here does first: switches its controller on.
#define BEGIN "mov $0xfee00000, %ebx\n movl $0x1ff, 0xf0(%rbx)\n"
GUEST(ends, 64, "inc %r15\n out %al, $0x99\n mov $0xfee00000, %ebx\n movl $0, 0xb0(%rbx)\n out %al, $0x9a\n iretq\n");

// The controllers' pages need tables of their own; every vector from 0x30 to 0x5f leads to the handler.
static struct machine make_long(int options, const uint8_t *code, size_t count)
{
	struct machine m = make_machine(options);
	load(&m, code, count, 64);
	uint64_t *tables = (uint64_t *)(m.memory + PAGES);
	tables[512 + 3] = PAGES + 0x3007;
	tables[3 * 512 + 503] = 0xfee00093;
	tables[3 * 512 + 502] = 0xfec00093;
	memcpy(m.memory + HANDLER, ends, ends_end - ends);
	for (int vector = 0x30; vector < 0x60; vector++) {
		uint32_t gate[4] = {8 << 16 | HANDLER, 0x00008e00};
		memcpy(m.memory + TABLES + 0x800 + vector * 16, gate, 16);
	}
	return m;
}
#define MAKE_LONG(options, guest) make_long(options, guest, guest##_end - guest)

GUEST(one_shot, 64,
      BEGIN "movl $0xb, 0x3e0(%rbx)\n movl $0x31, 0x320(%rbx)\n movl $1000, 0x380(%rbx)\n sti\n 1: test %r15d, %r15d\n jz 1b\n cli\n "
            "mov 0x390(%rbx), %esi\n"
	    "out %al, $0x80\n hlt\n");
GUEST(periodic, 64,
      BEGIN "movl $0xb, 0x3e0(%rbx)\n movl $0x20031, 0x320(%rbx)\n sti\n movl $1000000, 0x380(%rbx)\n hlt\n hlt\n hlt\n cli\n"
	    "movl $0, 0x380(%rbx)\n out %al, $0x80\n hlt\n");
GUEST(masked, 64,
      BEGIN "movl $0xb, 0x3e0(%rbx)\n movl $0x10031, 0x320(%rbx)\n sti\n movl $1000, 0x380(%rbx)\n "
            "1: mov 0x390(%rbx), %esi\n test %esi, %esi\n"
	    "jnz 1b\n mov 0x320(%rbx), %edi\n out %al, $0x80\n hlt\n");

static void timers(void)
{
	say("once");
	struct machine m = MAKE_LONG(WITH_CHIPS, one_shot);
	for (int i = 0; i < 3; i++) run(&m);
	say_registers(&m);
	say("periodic");
	m = MAKE_LONG(WITH_CHIPS, periodic);
	// A slow host may let more of them come.
	int ticks = 0, ends = 0;
	while (ticks + ends < 1000) {
		NEED(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_IO);
		if (m.run->io.port == 0x80) break;
		ticks += m.run->io.port == 0x99;
		ends += m.run->io.port == 0x9a;
	}
	say("three at least: %d, each ends: %d", ticks >= 3, ticks == ends);
	say("masked");
	m = MAKE_LONG(WITH_CHIPS, masked);
	run(&m);
	say_registers(&m);
}

GUEST(self_command, 64,
      BEGIN "sti\n movl $0x40032, 0x300(%rbx)\n nop\n mov 0x300(%rbx), %esi\n out %al, $0x80\n movl $0x40005, 0x300(%rbx)\n"
	    "movl $0, 0x280(%rbx)\n mov 0x280(%rbx), %edi\n out %al, $0x81\n hlt\n");
GUEST(own_priority, 64,
      BEGIN "sti\n movl $0x50, 0x80(%rbx)\n movl $0x40032, 0x300(%rbx)\n mov 0xa0(%rbx), %esi\n mov 0x210(%rbx), %edi\n "
            "out %al, $0x80\n"
	    "movl $0, 0x80(%rbx)\n nop\n out %al, $0x81\n hlt\n");

static void commands(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, self_command);
	for (int i = 0; i < 4; i++) run(&m);
	say_registers(&m);
	say("below the task priority");
	m = MAKE_LONG(WITH_CHIPS, own_priority);
	for (int i = 0; i < 4; i++) run(&m);
	say_registers(&m);
}

GUEST(starts_other, 64,
      BEGIN "movl $0x01000000, 0x310(%rbx)\n movl $0x4500, 0x300(%rbx)\n out %al, $0x80\n movl $0x4601, 0x300(%rbx)\n "
            "out %al, $0x81\n"
	    "movl $0x4602, 0x300(%rbx)\n out %al, $0x82\n hlt\n");
GUEST(started, 16, "mov %cs, %ax\n out %ax, $0x90\n hlt\n");

static void startup(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, starts_other);
	memcpy(m.memory + 0x1000 + 0x800, started, started_end - started);
	struct machine other = m;
	other.vcpu = add_vcpu(&m, 1);
	other.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, other.vcpu, 0);
	// The code of the other one is at its own page's begin.
	uint8_t saved[64];
	memcpy(saved, m.memory + CODE, sizeof saved);
	struct kvm_mp_state state;
	for (int i = 0; i < 3; i++) {
		run(&m);
		NEED(ioctl(other.vcpu, KVM_GET_MP_STATE, &state) == 0);
		say("the other's state %u", state.mp_state);
	}
	memcpy(m.memory + CODE, started, started_end - started);
	struct kvm_sregs s;
	NEED(ioctl(other.vcpu, KVM_GET_SREGS, &s) == 0);
	struct kvm_regs r;
	NEED(ioctl(other.vcpu, KVM_GET_REGS, &r) == 0);
	say("cs 0x%x 0x%llx, rip 0x%llx", s.cs.selector, s.cs.base, r.rip);
	for (int i = 0; i < 2; i++)
		if (run(&other) != -1) break;
	NEED(ioctl(other.vcpu, KVM_GET_MP_STATE, &state) == 0);
	say("the other's state %u", state.mp_state);
}

// INIT and SIPI to one whose first run finds them.
static void first_run(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, starts_other);
	struct machine other = m;
	other.vcpu = add_vcpu(&m, 1);
	other.run = mmap(NULL, m.map_size, PROT_READ | PROT_WRITE, MAP_SHARED, other.vcpu, 0);
	run(&m);
	run(&m);
	memcpy(m.memory + CODE, started, started_end - started);
	for (int i = 0; i < 3; i++)
		if (run(&other) != -1) break;
}

// The old controllers have the line, too, and are masked.
GUEST(uses_line, 64,
      BEGIN "mov $0xff, %al\n out %al, $0x21\n out %al, $0xa1\n mov $0xfec00000, %ecx\n movl $0x1a, (%rcx)\n "
            "movl $0x8035, 0x10(%rcx)\n movl $0x1b, (%rcx)\n movl $0, 0x10(%rcx)\n"
	    "movl $1, (%rcx)\n mov 0x10(%rcx), %esi\n out %al, $0x80\n sti\n 1: hlt\n jmp 1b\n");
static void say_line(struct machine *m, const char *when)
{
	struct kvm_irqchip chip = {.chip_id = 2};
	NEED(ioctl(m->vm, KVM_GET_IRQCHIP, &chip) == 0);
	say("%s: entry 0x%llx, requests 0x%x", when, (unsigned long long)chip.chip.ioapic.redirtbl[5].bits, chip.chip.ioapic.irr);
}

static void set_line(struct machine *m, uint32_t level)
{
	struct kvm_irq_level line = {.irq = 5, .level = level};
	int result = ioctl(m->vm, KVM_IRQ_LINE_STATUS, &line);
	say("line to %u: %d, status %d", level, result, (int)line.status);
}

static void level_line(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, uses_line);
	run(&m);
	say_registers(&m);
	say_line(&m, "at first");
	set_line(&m, 1);
	say_line(&m, "raised");
	set_line(&m, 1);
	run(&m);
	say_line(&m, "in its handler");
	// Still high: it comes again after its end.
	run(&m);
	say_line(&m, "after its end");
	run(&m);
	say_line(&m, "in its handler");
	set_line(&m, 0);
	say_line(&m, "lowered");
	run(&m);
	say_line(&m, "after its end");
}

GUEST(uses_priority, 64,
      BEGIN "movl $0x20, 0x80(%rbx)\n nop\n mov 0x80(%rbx), %esi\n out %al, $0x80\n hlt\n");

static void priority_accesses(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, uses_priority);
	struct kvm_tpr_access_ctl control = {.enabled = 1};
	NEED(ioctl(m.vcpu, KVM_TPR_ACCESS_REPORTING, &control) == 0);
	for (int i = 0; i < 3; i++) run(&m);
	say_registers(&m);
}

GUEST(waits, 64, BEGIN "out %al, $0x80\n sti\n 1: hlt\n jmp 1b\n");

static void message_of_an_event(void)
{
	struct machine m = MAKE_LONG(WITH_CHIPS, waits);
	struct {
		struct kvm_irq_routing header;
		struct kvm_irq_routing_entry entry;
	} routes = {.header.nr = 1,
		    .entry = {.gsi = 30, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = LOCAL, .data = 0x3a}}};
	ASK("route", m.vm, KVM_SET_GSI_ROUTING, &routes);
	int event = eventfd(0, EFD_NONBLOCK);
	struct kvm_irqfd request = {.fd = event, .gsi = 30};
	ASK("event", m.vm, KVM_IRQFD, &request);
	run(&m);
	uint64_t one = 1;
	NEED(write(event, &one, 8) == 8);
	run(&m);
	run(&m);
	struct kvm_irq_level line = {.irq = 30, .level = 1};
	ASK("line", m.vm, KVM_IRQ_LINE, &line);
	run(&m);
	run(&m);
}

GUEST(waits_real, 16,
      "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n mov $4, %al\n out %al, $0x21\n mov $1, %al\n "
      "out %al, $0x21\n"
      "mov $0xfe, %al\n out %al, $0x21\n mov $0x34, %al\n out %al, $0x43\n mov $0, %al\n out %al, $0x40\n mov $8, %al\n "
      "out %al, $0x40\n"
      "sti\n 1: hlt\n jmp 1b\n");
GUEST(ticks, 16, "out %al, $0x99\n mov $0x20, %al\n out %al, $0x20\n iret\n");
GUEST(reads_timer, 16,
      "mov $0xb6, %al\n out %al, $0x43\n mov $0x34, %al\n out %al, $0x42\n mov $0x12, %al\n out %al, $0x42\n "
      "mov $0xe8, %al\n out %al, $0x43\n"
      "in $0x42, %al\n and $0x3f, %al\n out %al, $0x80\n in $0x61, %al\n and $3, %al\n out %al, $0x81\n hlt\n");

static void timer_of_the_machine(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	struct kvm_pit_config config = {.flags = 1};
	NEED(ioctl(m.vm, KVM_CREATE_PIT2, &config) == 0);
	memcpy(m.memory + HANDLER, ticks, ticks_end - ticks);
	*(uint32_t *)(m.memory + 0x20 * 4) = HANDLER;
	LOAD(&m, waits_real);
	for (int i = 0; i < 3; i++) run(&m);
	LOAD(&m, reads_timer);
	run(&m);
	run(&m);
	struct kvm_pit_state2 state;
	NEED(ioctl(m.vm, KVM_GET_PIT2, &state) == 0);
	for (int i = 0; i < 3; i++)
		say("channel %d: count %u mode %u rw %u gate %u", i, state.channels[i].count, state.channels[i].mode,
		    state.channels[i].rw_mode, state.channels[i].gate);
}

// In system management mode, at the base that processors have first.
GUEST(manages, 16, "mov %cs, %ax\n out %ax, $0x90\n rsm\n");
GUEST(is_managed, 16, "mov $1, %ax\n out %al, $0x80\n inc %ax\n out %al, $0x81\n hlt\n");

static void management(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	// The mode has an address space of its own.
	struct kvm_userspace_memory_region region = {1 << 16, 0, 0, MEMORY_SIZE, (uintptr_t)m.memory};
	ASK("its memory", m.vm, KVM_SET_USER_MEMORY_REGION, &region);
	memcpy(m.memory + 0x38000, manages, manages_end - manages);
	LOAD(&m, is_managed);
	run(&m);
	ASK("interrupt", m.vcpu, KVM_SMI, 0);
	run(&m);
	say("flags %u", m.run->flags);
	struct kvm_vcpu_events events;
	NEED(ioctl(m.vcpu, KVM_GET_VCPU_EVENTS, &events) == 0);
	say("in the mode %u, pending %u", events.smi.smm, events.smi.pending);
	run(&m);
	say("flags %u", m.run->flags);
	say_registers(&m);
}

const struct group local_group = {"local-interrupts", (const struct test_case[]){{"timers", timers},
										 {"commands", commands},
										 {"startup", startup},
										 {"first-run", first_run},
										 {"level-line", level_line},
										 {"priority-accesses", priority_accesses},
										 {"message-of-an-event", message_of_an_event},
										 {"timer-of-the-machine", timer_of_the_machine},
										 {"management", management},
										 {}}};
