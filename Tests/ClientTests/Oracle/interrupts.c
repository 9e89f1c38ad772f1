// Interrupt controllers and timers: their requests, and interrupts that reach guests.
#include "oracle.h"

static void creation(void)
{
	struct kvm_pit_config timer = {};
	struct machine m = make_machine(WITHOUT_VCPU);
	ASK("timer without chips", m.vm, KVM_CREATE_PIT2, &timer);
	struct kvm_irq_level line = {.irq = 4, .level = 1};
	ASK("line without chips", m.vm, KVM_IRQ_LINE, &line);
	ASK("line with status without chips", m.vm, KVM_IRQ_LINE_STATUS, &line);
	struct kvm_irqchip chip = {};
	ASK("state without chips", m.vm, KVM_GET_IRQCHIP, &chip);
	struct kvm_msi message = {.address_lo = 0xfee00000, .data = 0x31};
	ASK("message without chips", m.vm, KVM_SIGNAL_MSI, &message);
	struct kvm_irq_routing routes = {};
	ASK("routes without chips", m.vm, KVM_SET_GSI_ROUTING, &routes);
	ASK("chips", m.vm, KVM_CREATE_IRQCHIP, 0);
	ASK("chips again", m.vm, KVM_CREATE_IRQCHIP, 0);
	answer("split chips beside them", enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 24));
	m = make_machine(WITHOUT_VCPU | WITH_CHIPS);
	timer.flags = 2;
	ASK("timer with unknown flags", m.vm, KVM_CREATE_PIT2, &timer);
	m = make_machine(WITHOUT_VCPU | WITH_CHIPS);
	timer.flags = 1;
	ASK("timer", m.vm, KVM_CREATE_PIT2, &timer);
	ASK("timer again", m.vm, KVM_CREATE_PIT2, &timer);
	ASK("old timer", m.vm, KVM_CREATE_PIT, 0);
	ASK("timer from nowhere", m.vm, KVM_CREATE_PIT2, NULL);
	m = make_machine(PLAIN);
	ASK("chips after a processor", m.vm, KVM_CREATE_IRQCHIP, 0);
	answer("split chips after a processor", enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 24));
	struct kvm_lapic_state lapic = {};
	ASK("local controller", m.vcpu, KVM_GET_LAPIC, &lapic);
	ASK("local controller is set", m.vcpu, KVM_SET_LAPIC, &lapic);
	m = make_machine(WITHOUT_VCPU);
	answer("split chips with too many pins", enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 5000));
	answer("split chips without pins", enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 0));
	answer("split chips", enable(m.vm, KVM_CAP_SPLIT_IRQCHIP, 24));
	ASK("chips beside them", m.vm, KVM_CREATE_IRQCHIP, 0);
	ASK("timer", m.vm, KVM_CREATE_PIT2, &timer);
	ASK("state", m.vm, KVM_GET_IRQCHIP, &chip);
	ASK("line", m.vm, KVM_IRQ_LINE, &line);
}

static void chip_states(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	for (uint32_t id = 0; id < 5; id++) {
		struct kvm_irqchip chip;
		memset(&chip, 0, sizeof chip);
		chip.chip_id = id;
		say("chip %u", id);
		if (ASK("state", m.vm, KVM_GET_IRQCHIP, &chip) != 0) continue;
		if (id < 2) say_bytes("state", &chip.chip.pic, sizeof chip.chip.pic);
		if (id == 2)
			say("base 0x%llx select %u id %u irr 0x%x first 0x%llx last 0x%llx", chip.chip.ioapic.base_address,
			    chip.chip.ioapic.ioregsel, chip.chip.ioapic.id, chip.chip.ioapic.irr,
			    (unsigned long long)chip.chip.ioapic.redirtbl[0].bits,
			    (unsigned long long)chip.chip.ioapic.redirtbl[23].bits);
		if (id < 2) {
			chip.chip.pic.imr = 0xa5;
			chip.chip.pic.irq_base = 0x40;
			chip.chip.pic.elcr = 0xff;
		} else {
			chip.chip.ioapic.redirtbl[5].bits = 0xff000000000189ab;
			chip.chip.ioapic.id = 3;
		}
		ASK("set", m.vm, KVM_SET_IRQCHIP, &chip);
		memset(&chip.chip, 0, sizeof chip.chip);
		NEED(ioctl(m.vm, KVM_GET_IRQCHIP, &chip) == 0);
		if (id < 2) say_bytes("state", &chip.chip.pic, sizeof chip.chip.pic);
		if (id == 2) say("id %u entry 5: 0x%llx", chip.chip.ioapic.id, (unsigned long long)chip.chip.ioapic.redirtbl[5].bits);
	}
	struct kvm_irqchip chip = {.chip_id = 9};
	ASK("chip 9 is set", m.vm, KVM_SET_IRQCHIP, &chip);
	ASK("from nowhere", m.vm, KVM_SET_IRQCHIP, NULL);
	ASK("to nowhere", m.vm, KVM_GET_IRQCHIP, NULL);
}

static void timer_states(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	struct kvm_pit_state2 state = {};
	ASK("without timer", m.vm, KVM_GET_PIT2, &state);
	ASK("set without timer", m.vm, KVM_SET_PIT2, &state);
	struct kvm_reinject_control control = {};
	ASK("reinjection without timer", m.vm, KVM_REINJECT_CONTROL, &control);
	struct kvm_pit_config config = {.flags = 1};
	NEED(ioctl(m.vm, KVM_CREATE_PIT2, &config) == 0);
	ASK("state", m.vm, KVM_GET_PIT2, &state);
	for (int i = 0; i < 3; i++)
		say("channel %d: count %u latched %u mode %u bcd %u gate %u rw %u", i, state.channels[i].count,
		    state.channels[i].count_latched, state.channels[i].mode, state.channels[i].bcd, state.channels[i].gate,
		    state.channels[i].rw_mode);
	say("flags 0x%x", state.flags);
	state.channels[2].count = 0x1234;
	state.channels[2].mode = 3;
	ASK("set", m.vm, KVM_SET_PIT2, &state);
	NEED(ioctl(m.vm, KVM_GET_PIT2, &state) == 0);
	say("channel 2: count 0x%x mode %u", state.channels[2].count, state.channels[2].mode);
	struct kvm_pit_state old = {};
	ASK("old state", m.vm, KVM_GET_PIT, &old);
	say("channel 2: count 0x%x", old.channels[2].count);
	ASK("old state is set", m.vm, KVM_SET_PIT, &old);
	ASK("reinjection", m.vm, KVM_REINJECT_CONTROL, &control);
	ASK("reinjection from nowhere", m.vm, KVM_REINJECT_CONTROL, NULL);
	ASK("to nowhere", m.vm, KVM_GET_PIT2, NULL);
}

static long set_route(struct machine *m, uint32_t count, uint32_t flags, struct kvm_irq_routing_entry entry)
{
	struct {
		struct kvm_irq_routing header;
		struct kvm_irq_routing_entry entries[2];
	} request = {.header = {.nr = count, .flags = flags}, .entries = {entry, entry}};
	errno = 0;
	return ioctl(m->vm, KVM_SET_GSI_ROUTING, &request);
}

static void routes(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	const struct kvm_irq_routing_entry pin = {.gsi = 5, .type = KVM_IRQ_ROUTING_IRQCHIP, .u.irqchip = {2, 5}},
					   message = {.gsi = 6, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = 0x31}};
	struct kvm_irq_routing_entry changed;
	answer("pin", set_route(&m, 1, 0, pin));
	answer("pin twice", set_route(&m, 2, 0, pin));
	answer("message", set_route(&m, 1, 0, message));
	answer("message twice", set_route(&m, 2, 0, message));
	answer("none", set_route(&m, 0, 0, pin));
	answer("with flags", set_route(&m, 1, 1, pin));
	answer("too many", set_route(&m, 5000, 0, pin));
	answer("none, with flags", set_route(&m, 0, 1, pin));
	changed = pin;
	changed.gsi = 5000;
	answer("number 5000", set_route(&m, 1, 0, changed));
	changed = pin;
	changed.type = 0;
	answer("type 0", set_route(&m, 1, 0, changed));
	changed.type = 99;
	answer("type 99", set_route(&m, 1, 0, changed));
	changed.type = KVM_IRQ_ROUTING_HV_SINT;
	answer("of Hyper-V", set_route(&m, 1, 0, changed));
	changed = pin;
	changed.flags = 1;
	answer("pin with flags", set_route(&m, 1, 0, changed));
	changed = pin;
	changed.u.irqchip.pin = 24;
	answer("pin 24", set_route(&m, 1, 0, changed));
	changed.u.irqchip.irqchip = 0;
	changed.u.irqchip.pin = 8;
	answer("pin 8 of the first", set_route(&m, 1, 0, changed));
	changed.u.irqchip.irqchip = 7;
	answer("chip 7", set_route(&m, 1, 0, changed));
	changed = message;
	changed.flags = 1;
	answer("message with an identity", set_route(&m, 1, 0, changed));
	changed.flags = 2;
	answer("message with flags", set_route(&m, 1, 0, changed));
	answer("from nowhere", (errno = 0, ioctl(m.vm, KVM_SET_GSI_ROUTING, NULL)));
	answer("split: pin", (m = make_machine(WITH_SPLIT_CHIPS), set_route(&m, 1, 0, pin)));
	answer("split: message", set_route(&m, 1, 0, message));
}

static void lines(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	struct kvm_irq_level line = {.irq = 4};
	for (uint32_t number = 0; number < 30; number += 7)
		for (uint32_t level = 1; level != 3; level = level ? 0 : 3) {
			line = (struct kvm_irq_level){.irq = number, .level = level};
			int result = ioctl(m.vm, KVM_IRQ_LINE_STATUS, &line);
			say("line %u level %u: %d, status %d", number, level, result, (int)line.status);
		}
	line.irq = 5000;
	ASK("line 5000", m.vm, KVM_IRQ_LINE, &line);
	line.irq = -1;
	ASK("line -1", m.vm, KVM_IRQ_LINE, &line);
	ASK("nowhere", m.vm, KVM_IRQ_LINE, NULL);
	struct kvm_msi message = {.address_lo = 0xfee00000, .data = 0x31};
	ASK("message while the local controller is off", m.vm, KVM_SIGNAL_MSI, &message);
	message.address_lo = 0xfee77000;
	ASK("message to nobody", m.vm, KVM_SIGNAL_MSI, &message);
	message.flags = 4;
	ASK("message with flags", m.vm, KVM_SIGNAL_MSI, &message);
	ASK("message from nowhere", m.vm, KVM_SIGNAL_MSI, NULL);
}

// Sets up the controllers of a PC, unmasks all, and waits for what comes. Handlers return to what follows the wait, as an
// interrupt may come before the halt: QEMU's emulated virtualization may lose the shadow of STI.
GUEST(waits, 16,
      "mov $0x11, %al\n out %al, $0x20\n out %al, $0xa0\n mov $0x20, %al\n out %al, $0x21\n mov $0x28, %al\n "
      "out %al, $0xa1\n mov $4, %al\n"
      "out %al, $0x21\n mov $2, %al\n out %al, $0xa1\n mov $1, %al\n out %al, $0x21\n out %al, $0xa1\n mov $0, %al\n "
      "out %al, $0x21\n"
      "out %al, $0xa1\n mov $0x1000 + 2f - waits, %bp\n out %al, $0x80\n sti\n 1: hlt\n jmp 1b\n 2: out %al, $0x81\n jmp 1b\n");
GUEST(handles, 16, "mov $0x0b, %al\n out %al, $0x20\n in $0x20, %al\n out %al, $0x99\n mov $0x20, %al\n "
      "out %al, $0xa0\n out %al, $0x20\n pop %bx\n push %bp\n iret\n");

static void interrupt_of_a_line(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	memcpy(m.memory + 0x2000, handles, handles_end - handles);
	for (int vector = 0x20; vector < 0x30; vector++) *(uint32_t *)(m.memory + vector * 4) = 0x2000;
	LOAD(&m, waits);
	run(&m);
	for (uint32_t number = 4; number < 12; number += 6) {
		struct kvm_irq_level line = {.irq = number, .level = 1};
		int result = ioctl(m.vm, KVM_IRQ_LINE_STATUS, &line);
		say("line %u: %d, status %d", number, result, (int)line.status);
		result = ioctl(m.vm, KVM_IRQ_LINE_STATUS, &line);
		say("again: %d, status %d", result, (int)line.status);
		line.level = 0;
		result = ioctl(m.vm, KVM_IRQ_LINE_STATUS, &line);
		say("low: %d", result);
		run(&m);
		run(&m);
	}
	struct kvm_irqchip chip = {.chip_id = 0};
	NEED(ioctl(m.vm, KVM_GET_IRQCHIP, &chip) == 0);
	say_bytes("first chip", &chip.chip.pic, sizeof chip.chip.pic);
}

// In long mode, with the local controller on: vector 0x31 is handled, and its end is told.
GUEST(waits_long, 64,
      "mov $0xfee000f0, %ebx\n movl $0x1ff, (%rbx)\n lea 2f(%rip), %rbp\n out %al, $0x80\n sti\n 1: hlt\n jmp 1b\n"
      "2: out %al, $0x81\n jmp 1b\n");
GUEST(handles_long, 64,
      "out %al, $0x99\n mov $0xfee000b0, %ebx\n movl $0, (%rbx)\n out %al, $0x9a\n mov %rbp, (%rsp)\n iretq\n");

// The local controller's page needs tables of its own.
static void load_long(struct machine *m)
{
	LOAD64(m, waits_long);
	uint64_t *tables = (uint64_t *)(m->memory + PAGES);
	tables[512 + 3] = PAGES + 0x3007;
	tables[3 * 512 + 503] = 0xfee00093;
	tables[3 * 512 + 502] = 0xfec00093;
	memcpy(m->memory + 0x2000, handles_long, handles_long_end - handles_long);
	for (int vector = 0x30; vector < 0x60; vector++) {
		uint32_t gate[4] = {0x00082000, 0x00008e00};
		memcpy(m->memory + TABLES + 0x800 + vector * 16, gate, 16);
	}
}

static void message(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	load_long(&m);
	run(&m);
	struct kvm_msi message = {.address_lo = 0xfee00000, .data = 0x31};
	ASK("message", m.vm, KVM_SIGNAL_MSI, &message);
	run(&m);
	struct kvm_lapic_state lapic;
	NEED(ioctl(m.vcpu, KVM_GET_LAPIC, &lapic) == 0);
	say("in service 0x%02x%02x%02x%02x", lapic.regs[0x113], lapic.regs[0x112], lapic.regs[0x111], lapic.regs[0x110]);
	run(&m);
	run(&m);
	message.data = 5;
	ASK("vector 5", m.vm, KVM_SIGNAL_MSI, &message);
	message.data = 0x131;
	ASK("lowest priority", m.vm, KVM_SIGNAL_MSI, &message);
	run(&m);
	ASK("the same while it is handled", m.vm, KVM_SIGNAL_MSI, &message);
	ASK("once more", m.vm, KVM_SIGNAL_MSI, &message);
	for (int i = 0; i < 4; i++) run(&m);
}

static void split_end_of_interrupt(void)
{
	struct machine m = make_machine(WITH_SPLIT_CHIPS);
	load_long(&m);
	run(&m);
	// Of the lines of the client's controller; level-triggered ends are told.
	const struct kvm_irq_routing_entry entry = {
		.gsi = 5, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = 0x8031}};
	answer("route", set_route(&m, 1, 0, entry));
	struct kvm_msi message = {.address_lo = 0xfee00000, .data = 0x8031};
	ASK("message", m.vm, KVM_SIGNAL_MSI, &message);
	for (int i = 0; i < 4; i++) run(&m);
	say("edges");
	message.data = 0x31;
	answer("route", set_route(&m, 1, 0, (struct kvm_irq_routing_entry){
						    .gsi = 5, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = 0x31}}));
	ASK("message", m.vm, KVM_SIGNAL_MSI, &message);
	for (int i = 0; i < 3; i++) run(&m);
}

static void local_controller(void)
{
	struct machine m = make_machine(WITH_CHIPS);
	load_long(&m);
	run(&m);
	struct kvm_lapic_state lapic, back;
	NEED(ioctl(m.vcpu, KVM_GET_LAPIC, &lapic) == 0);
	uint32_t values[][2] = {{0x80, 0x20},	{0xd0, 0x01000000}, {0xe0, 0xffffffff}, {0x320, 0x10031},
				{0x350, 0x700}, {0x380, 0},	    {0x3e0, 0xb}};
	for (size_t i = 0; i < sizeof values / sizeof *values; i++) memcpy(lapic.regs + values[i][0], &values[i][1], 4);
	// An interrupt that is requested.
	lapic.regs[0x210 + 0x10 * 0] = 0x02;
	lapic.regs[0x212] = 0x02;
	ASK("set", m.vcpu, KVM_SET_LAPIC, &lapic);
	NEED(ioctl(m.vcpu, KVM_GET_LAPIC, &back) == 0);
	for (int reg = 0; reg < 0x400; reg += 0x10)
		if (reg != 0x390 && memcmp(lapic.regs + reg, back.regs + reg, 4) != 0) {
			char label[32];
			sprintf(label, "0x%x is not what was set", reg);
			say_bytes(label, back.regs + reg, 4);
		}
	run(&m);
	run(&m);
	NEED(ioctl(m.vcpu, KVM_GET_LAPIC, &back) == 0);
	say_bytes("requested", back.regs + 0x210, 4);
	say_bytes("in service", back.regs + 0x110, 4);
	say_bytes("priority", back.regs + 0xa0, 4);
	ASK("from nowhere", m.vcpu, KVM_SET_LAPIC, NULL);
	ASK("to nowhere", m.vcpu, KVM_GET_LAPIC, NULL);
}

const struct group interrupt_group = {"interrupts", (const struct test_case[]){{"creation", creation},
									       {"chip-states", chip_states},
									       {"timer-states", timer_states},
									       {"routes", routes},
									       {"lines", lines},
									       {"line", interrupt_of_a_line},
									       {"message", message},
									       {"split-end-of-interrupt", split_end_of_interrupt},
									       {"local-controller", local_controller},
									       {}}};
