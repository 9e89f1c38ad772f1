// Event descriptors for writes and interrupts, and writes that wait in a ring.
#include "oracle.h"

static long set_write_event(struct machine *m, int file, uint64_t address, uint32_t length, uint32_t flags, uint64_t value)
{
	struct kvm_ioeventfd request = {.fd = file, .addr = address, .len = length, .flags = flags, .datamatch = value};
	errno = 0;
	return ioctl(m->vm, KVM_IOEVENTFD, &request);
}

static unsigned long long take(int event)
{
	uint64_t count = 0;
	return read(event, &count, 8) == 8 ? count : 0;
}

enum { MATCH = KVM_IOEVENTFD_FLAG_DATAMATCH, PORT = KVM_IOEVENTFD_FLAG_PIO, REMOVE = KVM_IOEVENTFD_FLAG_DEASSIGN };

static void write_event_requests(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	int event = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
	answer("no file", set_write_event(&m, -1, NOWHERE, 4, 0, 0));
	answer("no event", set_write_event(&m, m.kvm, NOWHERE, 4, 0, 0));
	answer("length 3", set_write_event(&m, event, NOWHERE, 3, 0, 0));
	answer("length 16", set_write_event(&m, event, NOWHERE, 16, 0, 0));
	answer("wraps", set_write_event(&m, event, -2ull, 4, 0, 0));
	answer("unknown flag", set_write_event(&m, event, NOWHERE, 4, 1 << 4, 0));
	answer("of another architecture", set_write_event(&m, event, NOWHERE + 0x100, 4, 1 << 3, 0));
	answer("any length with a value", set_write_event(&m, event, NOWHERE, 0, MATCH, 0));
	answer("new", set_write_event(&m, event, NOWHERE, 4, 0, 0));
	answer("again", set_write_event(&m, event, NOWHERE, 4, 0, 0));
	answer("with a value beside it", set_write_event(&m, other, NOWHERE, 4, MATCH, 5));
	answer("another length", set_write_event(&m, other, NOWHERE, 2, MATCH, 5));
	answer("any length", set_write_event(&m, other, NOWHERE, 0, 0, 0));
	answer("port", set_write_event(&m, other, NOWHERE, 4, PORT, 0));
	answer("removal with another event", set_write_event(&m, other, NOWHERE, 4, REMOVE, 0));
	answer("removal with another value", set_write_event(&m, event, NOWHERE, 4, REMOVE | MATCH, 0));
	answer("removal", set_write_event(&m, event, NOWHERE, 4, REMOVE, 0));
	answer("removal again", set_write_event(&m, event, NOWHERE, 4, REMOVE, 0));
	answer("removal with no file", set_write_event(&m, -1, NOWHERE, 4, REMOVE, 0));
	ASK("from nowhere", m.vm, KVM_IOEVENTFD, NULL);
}

GUEST(writes_ports, 32,
      "mov $0x510, %dx\n mov $5, %eax\n out %al, %dx\n out %ax, %dx\n out %eax, %dx\n mov $6, %eax\n out %al, %dx\n "
      "out %eax, %dx\n"
      "mov $0x520, %dx\n out %al, %dx\n out %ax, %dx\n in %dx, %al\n mov $0x4000, %esi\n mov $3, %ecx\n rep outsb\n hlt\n");
GUEST(writes_memory, 32,
      "mov $0x50000, %ebx\n mov $5, %eax\n mov %al, (%ebx)\n mov %ax, (%ebx)\n mov %eax, (%ebx)\n mov %eax, 2(%ebx)\n "
      "mov (%ebx), %ecx\n"
      "incl (%ebx)\n mov %eax, 0x100(%ebx)\n mov %al, 0x100(%ebx)\n mov %eax, -2(%ebx)\n hlt\n");

static void write_events(void)
{
	struct machine m = make_machine(PLAIN);
	int five = eventfd(0, EFD_NONBLOCK), any = eventfd(0, EFD_NONBLOCK), all = eventfd(0, EFD_NONBLOCK);
	NEED(set_write_event(&m, five, 0x510, 1, PORT | MATCH, 5) == 0);
	NEED(set_write_event(&m, any, 0x510, 4, PORT, 0) == 0);
	NEED(set_write_event(&m, all, 0x520, 0, PORT, 0) == 0);
	LOAD32(&m, writes_ports);
	run_through(&m, 20);
	say("bytes of 5: %llu, doubles: %llu, of all lengths: %llu", take(five), take(any), take(all));
	m = make_machine(PLAIN);
	NEED(set_write_event(&m, five, NOWHERE, 4, MATCH, 5) == 0);
	NEED(set_write_event(&m, any, NOWHERE, 2, 0, 0) == 0);
	NEED(set_write_event(&m, all, NOWHERE + 0x100, 0, 0, 0) == 0);
	LOAD32(&m, writes_memory);
	run_through(&m, 20);
	say("doubles of 5: %llu, words: %llu, of all lengths: %llu", take(five), take(any), take(all));
}

static long set_interrupt_event(struct machine *m, int file, uint32_t gsi, uint32_t flags, int resample)
{
	struct kvm_irqfd request = {.fd = file, .gsi = gsi, .flags = flags, .resamplefd = resample};
	errno = 0;
	return ioctl(m->vm, KVM_IRQFD, &request);
}

static void interrupt_event_requests(void)
{
	struct machine m = make_machine(WITHOUT_VCPU);
	int event = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
	answer("without chips", set_interrupt_event(&m, event, 5, 0, 0));
	answer("removal without chips", set_interrupt_event(&m, event, 5, 1, 0));
	m = make_machine(WITH_CHIPS);
	answer("no file", set_interrupt_event(&m, -1, 5, 0, 0));
	answer("no event", set_interrupt_event(&m, m.kvm, 5, 0, 0));
	answer("unknown flag", set_interrupt_event(&m, event, 5, 4, 0));
	answer("new", set_interrupt_event(&m, event, 5, 0, 0));
	answer("again", set_interrupt_event(&m, event, 5, 0, 0));
	answer("another line", set_interrupt_event(&m, event, 6, 0, 0));
	answer("another event", set_interrupt_event(&m, other, 5, 0, 0));
	answer("line 5000", set_interrupt_event(&m, eventfd(0, 0), 5000, 0, 0));
	answer("resampling, no file", set_interrupt_event(&m, eventfd(0, 0), 7, 2, -1));
	answer("resampling, no event", set_interrupt_event(&m, eventfd(0, 0), 7, 2, m.kvm));
	answer("resampling", set_interrupt_event(&m, eventfd(0, 0), 7, 2, other));
	answer("removal from another line", set_interrupt_event(&m, event, 6, 1, 0));
	answer("removal", set_interrupt_event(&m, event, 5, 1, 0));
	answer("removal again", set_interrupt_event(&m, event, 5, 1, 0));
	ASK("from nowhere", m.vm, KVM_IRQFD, NULL);
	m = make_machine(WITH_SPLIT_CHIPS);
	answer("split: new", set_interrupt_event(&m, event, 5, 0, 0));
	answer("split: resampling", set_interrupt_event(&m, eventfd(0, 0), 7, 2, other));
}

GUEST(waits, 16,
      "mov $0x11, %al\n out %al, $0x20\n mov $0x20, %al\n out %al, $0x21\n mov $4, %al\n out %al, $0x21\n mov $1, %al\n "
      "out %al, $0x21\n"
      "mov $0, %al\n out %al, $0x21\n mov $0x1000 + 2f - waits, %bp\n out %al, $0x80\n sti\n 1: hlt\n jmp 1b\n"
      "2: out %al, $0x81\n jmp 1b\n");
// Returns to what follows the wait.
GUEST(handles, 16,
      "out %al, $0x99\n mov $0x20, %al\n out %al, $0x20\n out %al, $0x9a\n pop %bx\n push %bp\n iret\n");

static void interrupt_events(void)
{
	for (int i = 0; i < 2; i++) {
		struct machine m = make_machine(WITH_CHIPS);
		say(i ? "with resampling" : "edges");
		memcpy(m.memory + 0x2000, handles, handles_end - handles);
		*(uint32_t *)(m.memory + 0x25 * 4) = 0x2000;
		int event = eventfd(0, EFD_NONBLOCK), resample = eventfd(0, EFD_NONBLOCK);
		NEED(set_interrupt_event(&m, event, 5, i ? 2 : 0, resample) == 0);
		LOAD(&m, waits);
		run(&m);
		uint64_t one = 1;
		NEED(write(event, &one, 8) == 8);
		run(&m);
		say("told of the end: %llu", take(resample));
		run(&m);
		say("told of the end: %llu", take(resample));
		run(&m);
		// The event is taken.
		struct pollfd poll_event = {.fd = event, .events = POLLIN};
		say("still there: %d", poll(&poll_event, 1, 0));
	}
}

GUEST(writes_zone, 32,
      "mov $0x50000, %ebx\n mov $0x11223344, %eax\n mov %al, (%ebx)\n mov %ax, 4(%ebx)\n mov %eax, 8(%ebx)\n "
      "mov %eax, 0x1e(%ebx)\n"
      "mov (%ebx), %cl\n mov %eax, 0x1c(%ebx)\n mov %eax, 0x20(%ebx)\n mov $0x550, %dx\n out %al, %dx\n out %eax, %dx\n "
      "in %dx, %al\n"
      "mov $0x551, %dx\n out %ax, %dx\n hlt\n");

static void coalesced_writes(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_coalesced_mmio_zone memory = {.addr = NOWHERE, .size = 0x20}, port = {.addr = 0x550, .size = 4, .pio = 1};
	ASK("memory", m.vm, KVM_REGISTER_COALESCED_MMIO, &memory);
	ASK("ports", m.vm, KVM_REGISTER_COALESCED_MMIO, &port);
	struct kvm_coalesced_mmio_zone other = {.addr = NOWHERE, .size = 8, .pio = 2};
	ASK("another space", m.vm, KVM_REGISTER_COALESCED_MMIO, &other);
	ASK("removal from another space", m.vm, KVM_UNREGISTER_COALESCED_MMIO, &other);
	ASK("from nowhere", m.vm, KVM_REGISTER_COALESCED_MMIO, NULL);
	struct kvm_coalesced_mmio_ring *ring = (void *)((uint8_t *)m.run + KVM_COALESCED_MMIO_PAGE_OFFSET * 4096);
	for (int i = 0; i < 2; i++) {
		LOAD32(&m, writes_zone);
		uint32_t start = ring->last;
		run_through(&m, 20);
		for (uint32_t k = start; k != ring->last; k++)
			say("waits: 0x%llx size %u: 0x%x, port %u", ring->coalesced_mmio[k].phys_addr, ring->coalesced_mmio[k].len,
			    *(uint32_t *)ring->coalesced_mmio[k].data & (uint32_t)((1ull << 8 * ring->coalesced_mmio[k].len) - 1),
			    ring->coalesced_mmio[k].pio);
		say("first %u last %u", ring->first, ring->last);
		ring->first = ring->last;
		if (i == 0) ASK("removal", m.vm, KVM_UNREGISTER_COALESCED_MMIO, &memory);
	}
}

GUEST(writes_often, 32, "mov $0x50000, %ebx\n mov $200, %ecx\n 1: mov %ecx, (%ebx)\n loop 1b\n hlt\n");

static void coalesced_full(void)
{
	struct machine m = make_machine(PLAIN);
	struct kvm_coalesced_mmio_zone memory = {.addr = NOWHERE, .size = 0x20};
	NEED(ioctl(m.vm, KVM_REGISTER_COALESCED_MMIO, &memory) == 0);
	struct kvm_coalesced_mmio_ring *ring = (void *)((uint8_t *)m.run + KVM_COALESCED_MMIO_PAGE_OFFSET * 4096);
	LOAD32(&m, writes_often);
	run(&m);
	say("first %u last %u", ring->first, ring->last);
	ring->first = ring->last;
	run(&m);
	say("first %u last %u", ring->first, ring->last);
}

const struct group event_group = {"events", (const struct test_case[]){{"write-event-requests", write_event_requests},
								       {"write-events", write_events},
								       {"interrupt-event-requests", interrupt_event_requests},
								       {"interrupt-events", interrupt_events},
								       {"coalesced-writes", coalesced_writes},
								       {"coalesced-full", coalesced_full},
								       {}}};
